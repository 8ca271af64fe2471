/** Sets of numbered bits, as 64-bit masks. Knows no particular set. */

/** The mask with the given bits set. */
export function bits(...numbers: number[]): bigint {
  return numbers.reduce((mask, n) => mask | (1n << BigInt(n)), 0n);
}

/** True when bit `n` is set in `mask`. */
export function hasBit(mask: bigint, n: number): boolean {
  return ((mask >> BigInt(n)) & 1n) === 1n;
}

/** The names of the set bits, unknown ones as `bit N`; for messages. */
export function bitNames(mask: bigint, names: { readonly [name: string]: number }): string[] {
  const byNumber = new Map(Object.entries(names).map(([name, n]) => [n, name]));
  const out: string[] = [];
  for (let n = 0; n < 64; n++) if (hasBit(mask, n)) out.push(byNumber.get(n) ?? `bit ${n}`);
  return out;
}
