/** A device process in adopt mode with testpmd's virtio_user as its peer. */
import type { Child } from './process.js';
import { Rig } from './rig.js';
import { need, type Scope } from './scope.js';
import { Testpmd, type TestpmdOptions, testpmd } from './testpmd.js';

export const SECONDS = 1000;

export type PeerOptions = Omit<TestpmdOptions, 'path'>;

export interface DpdkPeer {
  readonly rig: Rig;
  readonly device: Child;
  readonly peer: Testpmd;
  /** Starts another testpmd on the same socket. */
  restart(options?: Partial<PeerOptions>): Promise<Testpmd>;
}

/** Skips the test, with the reason, where testpmd cannot be had. */
export async function dpdkPeer(
  context: { skip: (note?: string) => never },
  scope: Scope,
  options: PeerOptions,
): Promise<DpdkPeer> {
  const program = need(context, testpmd());
  const rig = new Rig(scope);
  const device = await rig.device({ queuePairs: options.queuePairs ?? 1 });
  const restart = (changes: Partial<PeerOptions> = {}): Promise<Testpmd> =>
    Testpmd.start(scope, program, { ...options, ...changes, path: rig.vhostUser });
  const peer = await restart();
  await rig.served(device);
  return { rig, device, peer, restart };
}
