import { closeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { IRQ } from '../../../src/pci/handle.js';
import { native } from '../../../src/sys/native.js';
import { IrqVectors } from '../../../src/vfio-user/irq-vectors.js';
import { openFds } from './rig.js';

describe('interrupt vectors', () => {
  let fds: number;
  let event: number;
  let changes: string[];
  let irqs: IrqVectors;
  const give = () => native.dup(event);
  beforeEach(() => {
    fds = openFds();
    event = native.eventfd();
    changes = [];
    irqs = new IrqVectors((index, start, count) => changes.push(`${index} ${start} ${count}`));
  });
  afterEach(() => {
    irqs[Symbol.dispose]();
    closeSync(event);
    expect(openFds()).toBe(fds);
  });

  it('signal the eventfd that was set last and close the one before', () => {
    irqs.set(IRQ.MSIX, 2, [give()]);
    const open = openFds();
    irqs.set(IRQ.MSIX, 2, [give()]);
    expect(openFds()).toBe(open);
    expect(irqs.trigger(IRQ.MSIX, 2)).toBe(true);
    expect(irqs.trigger(IRQ.MSIX, 1)).toBe(false);
    expect(irqs.trigger(99, 0)).toBe(false);
    expect(native.eventfdTake(event)).toBe(1);
    expect(changes).toEqual(['2 2 1', '2 2 1']);
  });

  it('keep back what is raised while masked, and send it once afterwards', () => {
    irqs.set(IRQ.MSIX, 0, [give()]);
    irqs.setMasked(IRQ.MSIX, 0, 1, true);
    expect(irqs.fd(IRQ.MSIX, 0)).toBeUndefined();
    expect(irqs.trigger(IRQ.MSIX, 0)).toBe(true);
    expect(irqs.trigger(IRQ.MSIX, 0)).toBe(true);
    expect(native.eventfdTake(event)).toBe(0);
    irqs.setMasked(IRQ.MSIX, 0, 1, false);
    expect(native.eventfdTake(event)).toBe(1);
    expect(irqs.fd(IRQ.MSIX, 0)).toBeDefined();
    expect(changes).toEqual(['2 0 1', '2 0 1', '2 0 1']);
  });

  it('forget what was pending for an eventfd that is gone', () => {
    irqs.set(IRQ.MSI, 0, [give()]);
    irqs.setMasked(IRQ.MSI, 0, 1, true);
    irqs.trigger(IRQ.MSI, 0);
    irqs.set(IRQ.MSI, 0, [undefined]);
    irqs.set(IRQ.MSI, 0, [give()]);
    irqs.setMasked(IRQ.MSI, 0, 1, false);
    expect(native.eventfdTake(event)).toBe(0);
  });

  it('tell the eventfds that watch a mask', () => {
    irqs.set(IRQ.MSIX, 0, [give()], 'onMask');
    irqs.setMasked(IRQ.MSIX, 0, 1, true);
    irqs.setMasked(IRQ.MSIX, 0, 1, true);
    expect(native.eventfdTake(event)).toBe(1);
    irqs.set(IRQ.MSIX, 0, [give()], 'onUnmask');
    irqs.setMasked(IRQ.MSIX, 0, 1, false);
    expect(native.eventfdTake(event)).toBe(1);
  });

  it('are all gone after clear, masks too, and it is told once', () => {
    irqs.set(
      IRQ.MSIX,
      0,
      Array.from({ length: 5 }, () => give()),
    );
    irqs.setMasked(IRQ.MSIX, 3, 1, true);
    changes.length = 0;
    irqs.clear(IRQ.MSIX);
    irqs.clear(IRQ.MSIX);
    irqs.clear(17);
    expect(changes).toEqual(['2 0 5']);
    irqs.set(IRQ.MSIX, 3, [give()]);
    expect(irqs.trigger(IRQ.MSIX, 3)).toBe(true);
  });
});
