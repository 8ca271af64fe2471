/** The driver of a benchmark with all signals through the device process, as a receiving VM has them: `vfio-user:PATH CPU`. */
import { silentLog } from '#build/util/log.js';
import { openDevice } from '#build/vhost-pci/driver/device-name.js';
import { Endpoint } from '#build/vhost-pci/driver/endpoint.js';
import { SinkPort } from '#build/vhost-pci/driver/ports.js';

const [device = '', cpu = '0'] = process.argv.slice(2);
const endpoint = Endpoint.start({
  open: openDevice(device, silentLog),
  port: new SinkPort(),
  mode: 'interrupt',
  cpus: [Number(cpu)],
  signals: 'relay',
  onEvent: (event) => process.stdout.write(`${JSON.stringify(event)}\n`),
});
process.once('SIGTERM', () => void endpoint.close());
await endpoint.ended;
