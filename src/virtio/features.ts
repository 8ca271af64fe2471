/**
 * Device-independent feature bits (VIRTIO 1.3, chapter 6) and what can be said about a set of them without knowing the
 * device type.
 */
import { bitNames, bits, hasBit } from '../util/flags.js';

export const FEATURE = {
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  SR_IOV: 37,
  NOTIFICATION_DATA: 38,
  NOTIF_CONFIG_DATA: 39,
  RING_RESET: 40,
  ADMIN_VQ: 41,
} as const;

/** A device type's own bits, by name. */
export type FeatureNames = { readonly [name: string]: number };
/** Bits that make sense only with at least one of each of the given sets. */
export type FeatureRequirements = readonly { readonly bit: number; readonly anyOf: readonly number[] }[];

/** For messages: `CSUM, VERSION_1`, or `none`. */
export function describeFeatures(mask: bigint, deviceType: FeatureNames = {}): string {
  return bitNames(mask, { ...deviceType, ...FEATURE }).join(', ') || 'none';
}

/** Why a device refuses the accepted set, or undefined when it may take it (VIRTIO 1.3, 2.2.1 and 6.1). */
export function refusal(
  offered: bigint,
  accepted: bigint,
  deviceType: FeatureNames = {},
  requirements: FeatureRequirements = [],
): string | undefined {
  const extra = accepted & ~offered;
  if (extra !== 0n) return `not offered: ${describeFeatures(extra, deviceType)}`;
  if (!hasBit(accepted, FEATURE.VERSION_1)) return 'VERSION_1 is missing';
  return unmetRequirement(accepted, deviceType, requirements);
}

/** The first feature of the set that lacks one which it requires, as a message. */
export function unmetRequirement(
  mask: bigint,
  deviceType: FeatureNames,
  requirements: FeatureRequirements,
): string | undefined {
  for (const { bit, anyOf } of requirements)
    if (hasBit(mask, bit) && !anyOf.some((n) => hasBit(mask, n)))
      return `${describeFeatures(bits(bit), deviceType)} requires ${anyOf
        .map((n) => describeFeatures(bits(n), deviceType))
        .join(' or ')}`;
  return undefined;
}

/** The set without the bits that lack what they require. */
export function withoutUnmet(mask: bigint, requirements: FeatureRequirements): bigint {
  for (let before = -1n; before !== mask; ) {
    before = mask;
    for (const { bit, anyOf } of requirements)
      if (hasBit(mask, bit) && !anyOf.some((n) => hasBit(mask, n))) mask &= ~bits(bit);
  }
  return mask;
}

/** The 32 bits that a feature select register shows; nothing is defined above bit 63. */
export function featureWord(mask: bigint, select: number): number {
  return select > 1 ? 0 : Number((mask >> BigInt(32 * select)) & 0xffff_ffffn);
}
