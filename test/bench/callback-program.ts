/**
 * Child program of the benchmarks: a program of the TypeScript packet API whose callback looks at every packet of the peer.
 * Usage: callback-program.js DEVICE MODE [CPU]
 */
import { NetDevice, type WorkerMode } from 'vhost-pci';

const [device = '', mode = 'adaptive', cpu] = process.argv.slice(2);
await using net = new NetDevice(device, {
  mode: mode as WorkerMode,
  ...(cpu !== undefined && { cpus: [Number(cpu)] }),
  onEvent: (event) => console.log(JSON.stringify(event)),
});

let packets = 0;
let bytes = 0;
let types = 0;
net.onBurst((burst) => {
  // Sums of its own for each burst: beyond 2^31 a variable of this module would be a new number object for each packet.
  let size = 0;
  let type = 0;
  for (let i = 0; i < burst.length; i++) {
    const frame = burst.frame(i);
    size += frame.length;
    type ^= frame[12] as number;
  }
  packets += burst.length;
  bytes += size;
  types ^= type;
});
await new Promise<void>((resolve) => process.on('SIGTERM', () => resolve()));
console.log(JSON.stringify({ event: 'seen', packets, bytes, types }));
