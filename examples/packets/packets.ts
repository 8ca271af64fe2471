/**
 * The TypeScript packet API: answers every packet of the peer with a copy that has the MAC addresses exchanged, and prints
 * what it saw once a second. Start a device process first (README), then:
 *
 *     node dist/examples/packets/packets.js vfio-user:/run/vhost-pci/vfio-user.sock
 */
import { NetDevice } from 'vhost-pci';

const device = process.argv[2];
if (device === undefined) {
  console.error('Usage: node dist/examples/packets/packets.js vfio-user:PATH');
  process.exit(2);
}

await using net = new NetDevice(device, {
  onEvent: (event) => console.log(JSON.stringify(event)),
});
const stop = new Promise<void>((resolve) => {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => resolve());
});

net.onBurst((burst) => {
  // `fill` writes straight into the pool: no buffer is allocated for a packet.
  net.fill(
    burst.length,
    (slot, i) => {
      const frame = burst.frame(i);
      slot.set(frame);
      slot.set(frame.subarray(6, 12), 0);
      slot.set(frame.subarray(0, 6), 6);
      return frame.length;
    },
    burst.queue,
  );
});

const peer = await net.peer();
console.log(`peer with ${peer.pairs} queue pair(s)`);
const timer = setInterval(() => {
  for (const { pair, receive, send } of net.stats().queues)
    console.log(`queue ${pair}: ${receive.packets} packets received, ${send.packets} sent`);
}, 1000);
await stop;
clearInterval(timer);
