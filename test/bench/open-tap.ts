import { Tap, TUN_F } from '#build/sys/tap.js';

/** A TAP interface that is up and gives out unsegmented TCP. */
export function openTap(name: string): Tap {
  const tap = new Tap(name);
  tap.setUp();
  tap.setOffloads(TUN_F.CSUM | TUN_F.TSO4 | TUN_F.TSO6);
  tap.setCarrier(true);
  return tap;
}
