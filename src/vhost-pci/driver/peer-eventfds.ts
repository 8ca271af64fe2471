/**
 * The peer's own eventfds, where the device hands them out (docs/protocol.md, P7): the driver waits on the kicks and
 * signals the calls itself, and the device process is out of the way. Owns the descriptors; rings without them go through
 * the device.
 */
import { closeSync } from 'node:fs';
import type { PciHandle, RingEventfds } from '../../pci/handle.js';
import type { RingSignals } from '../../sys/native.js';

export class PeerEventfds implements Disposable {
  readonly #rings: readonly RingEventfds[];

  private constructor(rings: readonly RingEventfds[]) {
    this.#rings = rings;
  }

  /** Those of `rings` rings; undefined when the device does not hand them out, or has no peer any more. */
  static async take(handle: PciHandle, rings: number): Promise<PeerEventfds | undefined> {
    const taken = (await handle.takeRings?.(rings)) ?? [];
    return taken.length > 0 ? new PeerEventfds(taken) : undefined;
  }

  /** What the ring has of its own; the rest stays as it is without. */
  signals(ring: number): RingSignals {
    const { kick, call } = this.#rings[ring] ?? {};
    return {
      ...(kick !== undefined && { kickFd: kick }),
      ...(call !== undefined && { notify: { fd: call } }),
    };
  }

  /** Queues keep duplicates. */
  [Symbol.dispose](): void {
    for (const { kick, call } of this.#rings) {
      if (kick !== undefined) closeSync(kick);
      if (call !== undefined) closeSync(call);
    }
  }
}
