/** The device status field: its bits, and which changes a driver may make (VIRTIO 1.3, 2.1 and 3.1.1). */
import { bitNames } from '../util/flags.js';

export const STATUS = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 0x40,
  FAILED: 0x80,
} as const;

const NAMES = { ACKNOWLEDGE: 0, DRIVER: 1, DRIVER_OK: 2, FEATURES_OK: 3, NEEDS_RESET: 6, FAILED: 7 };
const DRIVER_BITS =
  STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.DRIVER_OK | STATUS.FEATURES_OK | STATUS.FAILED;

/** What has to be set before a bit may be. */
const BEFORE = [
  { bit: STATUS.DRIVER, needs: STATUS.ACKNOWLEDGE, earlierWrite: false },
  { bit: STATUS.FEATURES_OK, needs: STATUS.ACKNOWLEDGE | STATUS.DRIVER, earlierWrite: false },
  // Between the two the driver has to read FEATURES_OK back (3.1.1, step 6), so one write cannot set both.
  { bit: STATUS.DRIVER_OK, needs: STATUS.FEATURES_OK, earlierWrite: true },
] as const;

/** For messages: `ACKNOWLEDGE, DRIVER`, or `reset`. */
export function describeStatus(status: number): string {
  return bitNames(BigInt(status & 0xff), NAMES).join(', ') || 'reset';
}

/**
 * Why a driver may not write `written` while the status is `current`, or undefined when it may. Writing 0, a reset, is
 * always legal. NEEDS_RESET is the device's own bit: the written value of it means nothing.
 */
export function illegalStatus(current: number, written: number): string | undefined {
  if (written === 0) return undefined;
  const old = current & DRIVER_BITS;
  const next = written & ~STATUS.NEEDS_RESET;
  if (next & ~DRIVER_BITS) return `unknown bits in 0x${written.toString(16)}`;
  if (old & ~next) return `clears ${describeStatus(old & ~next)}`;
  const added = next & ~old;
  if (old & STATUS.FAILED && added !== 0) return `adds ${describeStatus(added)} after FAILED`;
  for (const { bit, needs, earlierWrite } of BEFORE) {
    const there = earlierWrite ? old : next;
    if (added & bit && (there & needs) !== needs)
      return `sets ${describeStatus(bit)} before ${describeStatus(needs & ~there)}`;
  }
  return undefined;
}
