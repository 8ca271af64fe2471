/** The package's public entry point: the only file that re-exports. */
export {
  DROP_CAUSES,
  type DropCause,
  type RingStats,
  type WorkerMode,
  type WorkerStats,
} from './sys/native.js';
export { type ErrorScope, VhostPciError } from './util/errors.js';
export { createLog, type Log, type LogLevel } from './util/log.js';
export { DeviceProcess, type DeviceProcessOptions } from './vhost-pci/device/process.js';
export type { AppPortOptions, Burst } from './vhost-pci/driver/app-port.js';
export { Bridge } from './vhost-pci/driver/bridge.js';
export { openDevice } from './vhost-pci/driver/device-name.js';
export {
  Endpoint,
  type EndpointEvent,
  type EndpointOptions,
  type EndpointStats,
} from './vhost-pci/driver/endpoint.js';
export { EchoPort, type PeerFacts, type Port, SinkPort, SourcePort } from './vhost-pci/driver/ports.js';
export type { QueueTotals } from './vhost-pci/driver/statistics.js';
export { TapPort } from './vhost-pci/driver/tap-port.js';
export { WorkerPool, type WorkerPoolOptions } from './vhost-pci/driver/workers.js';
export { NetDevice, type NetDeviceOptions } from './vhost-pci/net-device.js';
export { NetPeer, type NetPeerOptions } from './virtio-net/peer.js';
export { Traffic, type TrafficOptions, type TrafficTotals } from './virtio-net/traffic.js';
