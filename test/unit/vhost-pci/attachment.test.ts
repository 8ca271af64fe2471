/** Whether the workers of a peer are told that they share its dirty log: if they do and are not, bits are lost now and then. */
import { describe, expect, it } from 'vitest';
import type { DirtyLog, PeerQueue, Worker } from '../../../src/sys/native.js';
import { Attachment } from '../../../src/vhost-pci/driver/attachment.js';
import { Bridge } from '../../../src/vhost-pci/driver/bridge.js';
import type { Peer } from '../../../src/vhost-pci/driver/peer.js';
import type { Port } from '../../../src/vhost-pci/driver/ports.js';
import type { WorkerPool } from '../../../src/vhost-pci/driver/workers.js';

const LOG = { offset: 0, bytes: 4096 } as DirtyLog;

function workers(n: number): { workers: Worker[]; logs: (DirtyLog | undefined)[] } {
  const logs: (DirtyLog | undefined)[] = [];
  const worker = { setDirtyLog: async (_: PeerQueue, log?: DirtyLog) => void logs.push(log) };
  return { workers: Array.from({ length: n }, () => ({ ...worker }) as unknown as Worker), logs };
}

function peer(pairs: number): Peer {
  return {
    pairs: Array.from({ length: pairs }, (_, index) => ({ index, queue: {}, enabled: true })),
  } as unknown as Peer;
}

const port = (oneWorker = false): Port => ({ oneWorker, lanes: () => [] }) as unknown as Port;

describe('a dirty log', () => {
  for (const [pairs, threads, oneWorker, alone] of [
    [1, 1, false, true],
    [2, 1, false, true],
    [1, 2, false, true],
    [2, 2, false, false],
    [3, 2, false, false],
    [2, 2, true, true],
  ] as const)
    it(`of ${pairs} pairs and ${threads} workers${oneWorker ? ', for a port that uses one,' : ''} has ${alone ? 'one writer' : 'several'}`, async () => {
      const pool = workers(threads);
      await Attachment.of(peer(pairs), port(oneWorker), pool.workers).setDirtyLog(LOG);
      expect(pool.logs).toEqual(Array(pairs).fill({ ...LOG, alone }));
    });

  it('that ends is no log for any of them', async () => {
    const pool = workers(2);
    await Attachment.of(peer(2), port(), pool.workers).setDirtyLog(undefined);
    expect(pool.logs).toEqual([undefined, undefined]);
  });

  for (const threads of [1, 2])
    it(`of a peer that is joined to another by ${threads} workers has ${threads === 1 ? 'one writer' : 'several'}`, async () => {
      const pool = workers(threads);
      const [side] = new Bridge({ workers: pool.workers } as unknown as WorkerPool).ports;
      await side.attach?.(peer(2)).setDirtyLog(LOG);
      expect(pool.logs).toEqual(Array(2).fill({ ...LOG, alone: threads === 1 }));
    });
});
