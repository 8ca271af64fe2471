/** Who has a ring's eventfds: the relay, or the driver that took them (docs/protocol.md, P7). */
import { closeSync } from 'node:fs';
import { expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { Notifications } from '../../../src/vhost-pci/device/notifications.js';
import { openFds, until } from './rig.js';

it('a kick is forwarded until it is taken, and again from what came in between once it is given back', async () => {
  const before = openFds();
  const page = native.memfdCreate('pages', 0x10000);
  const pages = new native.Mapping(page, 0, 0x10000, true);
  const [kick, call, vector, other] = Array.from({ length: 4 }, () => native.eventfd()) as [
    number,
    number,
    number,
    number,
  ];
  const notifications = new Notifications(pages, 1);
  const heard = (): Promise<unknown> => until('the interrupt', 5000, () => native.eventfdTake(vector) > 0);
  notifications.setVector(0, vector);
  const [kickFd, callFd] = [{ fd: kick }, { fd: call }];
  expect(notifications.setRing(0, kickFd, callFd)).toBe(false);
  expect(notifications.setRing(0, kickFd, callFd)).toBe(false);
  native.eventfdSignal(kick);
  await heard();

  expect(notifications.take(0, 9)).toEqual([{ kick, call }, {}]);
  const { forwarded } = notifications.stats();
  native.eventfdSignal(kick);
  notifications.takeBack();
  await heard();
  expect(native.eventfdTake(kick)).toBe(2); // the relay does not read it
  expect(notifications.stats().forwarded).toBe(forwarded + 1);

  notifications.take(0, 1);
  native.eventfdSignal(kick);
  expect(native.eventfdTake(kick)).toBe(1);
  // Another eventfd is the relay's at once, and whoever has the old one has to be told.
  expect(notifications.setRing(0, { fd: other }, callFd)).toBe(true);
  native.eventfdTake(vector);
  native.eventfdSignal(other);
  await heard();
  notifications.take(0, 1);
  expect(notifications.setRing(0, { fd: other }, undefined)).toBe(true);
  expect(notifications.setRing(0, undefined, undefined)).toBe(false);
  notifications.notifyPeer(0);
  expect(native.eventfdTake(call)).toBe(0);
  await notifications[Symbol.asyncDispose]();
  pages.close();
  for (const fd of [page, kick, call, vector, other]) closeSync(fd);
  expect(openFds()).toBe(before);
});
