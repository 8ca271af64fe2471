/** What the tests of the addon share: counting descriptors, and a virtio-net pair in one memfd. Owns no test. */
import { closeSync, readdirSync } from 'node:fs';
import {
  type DriverQueue,
  type Mapping,
  native,
  type PeerQueue,
  type RegionTable,
} from '../../../src/sys/native.js';

export const openFds = (): number => readdirSync('/proc/self/fd').length;

/** The error that `call` throws. */
export function errorOf(call: () => unknown): NodeJS.ErrnoException {
  try {
    call();
  } catch (error) {
    return error as NodeJS.ErrnoException;
  }
  throw new Error('nothing was thrown');
}

/** The error that `promise` rejects with. */
export async function rejectionOf(promise: Promise<unknown>): Promise<NodeJS.ErrnoException> {
  return promise.then(
    () => {
      throw new Error('it was not rejected');
    },
    (error: NodeJS.ErrnoException) => error,
  );
}

export const MAC_A = Buffer.from([0x02, 0, 0, 0, 0, 0x0a]);
export const MAC_B = Buffer.from([0x02, 0, 0, 0, 0, 0x0b]);

/** VERSION_1, MRG_RXBUF, EVENT_IDX, INDIRECT */
export const PAIR_FEATURES = (1n << 32n) | (1n << 15n) | (1n << 29n) | (1n << 28n);

export interface Pair extends Disposable {
  readonly driver: DriverQueue;
  readonly peer: PeerQueue;
  readonly fd: number;
  readonly mapping: Mapping;
  readonly table: RegionTable;
}

/** Both sides of a virtio-net queue pair over one memfd, each with a mapping of its own. */
export function makePair(size = 256, features = PAIR_FEATURES): Pair {
  const address = 0x4000_0000n;
  const bytes = native.DriverQueue.bytes(size, 2048);
  const fd = native.memfdCreate('pair', bytes);
  const own = new native.Mapping(fd, 0, bytes, true);
  const seen = new native.Mapping(fd, 0, bytes, true);
  const fds = [native.eventfd(), native.eventfd(), native.eventfd(), native.eventfd()] as const;
  const [receiveCallFd, transmitCallFd, receiveKickFd, transmitKickFd] = fds;
  const driver = new native.DriverQueue({
    mapping: own,
    offset: 0,
    address,
    size,
    bufferBytes: 2048,
    features,
    receiveCallFd,
    transmitCallFd,
    receiveKickFd,
    transmitKickFd,
  });
  const table = new native.RegionTable([{ address, size: bytes, mapping: seen, offset: 0 }]);
  const ring = { nextAvail: 0, enabled: true };
  const peer = new native.PeerQueue({
    table,
    features,
    transmit: { ...driver.transmitq, ...ring, kickFd: transmitKickFd, notify: { fd: transmitCallFd } },
    receive: { ...driver.receiveq, ...ring, kickFd: receiveKickFd, notify: { fd: receiveCallFd } },
  });
  return {
    driver,
    peer,
    fd,
    mapping: seen,
    table,
    [Symbol.dispose]() {
      driver.close();
      peer.close();
      table.close();
      own.close();
      seen.close();
      for (const open of [...fds, fd]) closeSync(open);
    },
  };
}
