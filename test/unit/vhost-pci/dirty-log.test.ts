import { closeSync, ftruncateSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { type Mapping, native } from '../../../src/sys/native.js';
import type { VhostPciError } from '../../../src/util/errors.js';
import { DirtyLogMover, type LogRegion } from '../../../src/vhost-pci/device/dirty-log.js';
import { PAGE } from '../../../src/vhost-pci/identity.js';
import { sharedPagesLayout } from '../../../src/vhost-pci/shared-pages.js';
import { sleep, until } from '../../support/scope.js';

const open: (() => void)[] = [];
afterEach(() => {
  for (const close of open.splice(0).reverse()) close();
});

function memory(bytes: number): { fd: number; mapping: Mapping } {
  const fd = native.memfdCreate('log', bytes);
  const mapping = new native.Mapping(fd, 0, bytes, true);
  open.push(() => {
    mapping.close();
    closeSync(fd);
  });
  return { fd, mapping };
}

const FILE_PAGES = 1024;
const LOG_BYTES = 4096;
const layout = sharedPagesLayout(FILE_PAGES * PAGE);

interface Rig {
  readonly pages: Mapping;
  /** Reads the log; the mover closes its own mapping of it. */
  readonly log: Mapping;
  readonly logFd: number;
  readonly errors: VhostPciError[];
  mover(regions: readonly LogRegion[]): DirtyLogMover;
  dirty(filePage: number): void;
  logged(): number[];
}

function rig(): Rig {
  const pages = memory(layout.size).mapping;
  const { fd, mapping: log } = memory(LOG_BYTES);
  const errors: VhostPciError[] = [];
  return {
    pages,
    log,
    logFd: fd,
    errors,
    mover: (regions) => {
      const own = new native.Mapping(fd, 0, LOG_BYTES, true);
      try {
        const mover = new DirtyLogMover(pages, layout, own, regions, (error) => errors.push(error));
        open.push(() => mover[Symbol.dispose]());
        return mover;
      } catch (error) {
        own.close();
        throw error;
      }
    },
    dirty: (page) => {
      const at = layout.bitmapOffset + (page >> 3);
      pages.write(at, Buffer.of(pages.read(at, 1)[0]! | (1 << (page & 7))));
    },
    logged: () =>
      [...log.read(0, LOG_BYTES)].flatMap((byte, i) =>
        [0, 1, 2, 3, 4, 5, 6, 7].filter((bit) => byte & (1 << bit)).map((bit) => 8 * i + bit),
      ),
  };
}

/** Regions with gaps in both spaces, as QEMU's low and high memory have. */
const anyRegions = fc
  .array(
    fc.record({ pages: fc.integer({ min: 1, max: 200 }), skipFile: fc.nat(20), skipGuest: fc.nat(300) }),
    {
      minLength: 1,
      maxLength: 4,
    },
  )
  .map((parts) => {
    let file = 0;
    let guest = 0;
    return parts.map(({ pages, skipFile, skipGuest }) => {
      file += skipFile;
      guest += skipGuest;
      const region = { gpa: BigInt(guest * PAGE), size: pages * PAGE, fileOffset: file * PAGE };
      file += pages;
      guest += pages;
      return region;
    });
  });

describe('the mover of dirty bits', () => {
  it('sets the bit of each dirty page of a region, at its guest address, and takes it away where it was', () => {
    fc.assert(
      fc.property(anyRegions, fc.array(fc.nat(FILE_PAGES - 1), { maxLength: 60 }), (regions, dirty) => {
        const r = rig();
        const mover = r.mover(regions);
        for (const page of dirty) r.dirty(page);
        mover.flush();
        const expected = new Set<number>();
        for (const page of dirty)
          for (const { gpa, size, fileOffset } of regions)
            if (page * PAGE >= fileOffset && page * PAGE < fileOffset + size)
              expected.add(page - fileOffset / PAGE + Number(gpa / BigInt(PAGE)));
        expect(r.logged()).toEqual([...expected].sort((a, b) => a - b));
        expect(mover.moved).toBe(expected.size);
        // What is there stays, and is not counted again.
        mover.flush();
        expect(r.logged()).toHaveLength(expected.size);
        expect(mover.moved).toBe(expected.size);
        for (const close of open.splice(0).reverse()) close();
      }),
      { numRuns: 60 },
    );
  });

  it('moves by itself, again and again', async () => {
    const r = rig();
    r.mover([{ gpa: 0n, size: FILE_PAGES * PAGE, fileOffset: 0 }]);
    for (const page of [3, 700]) {
      r.dirty(page);
      await until(`page ${page} is in the log`, 5000, () => r.logged().includes(page));
    }
    expect(r.logged()).toEqual([3, 700]);
  });

  it('moves no more after its end', async () => {
    const r = rig();
    const mover = r.mover([{ gpa: 0n, size: FILE_PAGES * PAGE, fileOffset: 0 }]);
    mover[Symbol.dispose]();
    r.dirty(5);
    await sleep(250);
    mover.flush();
    expect(r.logged()).toEqual([]);
    expect(r.errors).toEqual([]);
  });

  it('takes every page of the regions for written when the driver went without a word', () => {
    const r = rig();
    const mover = r.mover([
      { gpa: BigInt(10 * PAGE), size: 3 * PAGE, fileOffset: 5 * PAGE },
      { gpa: BigInt(100 * PAGE), size: PAGE, fileOffset: 1000 * PAGE },
    ]);
    mover.markAll();
    expect(r.logged()).toEqual([10, 11, 12, 100]);
  });

  it('refuses a log that ends before the memory does', () => {
    const r = rig();
    const end = LOG_BYTES * 8;
    const at = (gpaPage: number, pages: number, filePage: number): LogRegion => ({
      gpa: BigInt(gpaPage) * BigInt(PAGE),
      size: pages * PAGE,
      fileOffset: filePage * PAGE,
    });
    r.mover([at(end - 8, 8, 0)]);
    expect(() => r.mover([at(end - 7, 8, 0)])).toThrow(expect.objectContaining({ code: 'ELOGSIZE' }));
    expect(() => r.mover([at(2 ** 52 - 8, 8, 0)])).toThrow(expect.objectContaining({ code: 'ELOGSIZE' }));
  });

  it('tells once when the log is taken away, and does not throw', async () => {
    const r = rig();
    const mover = r.mover([{ gpa: 0n, size: FILE_PAGES * PAGE, fileOffset: 0 }]);
    ftruncateSync(r.logFd, 0);
    r.dirty(9);
    await until('it was told', 5000, () => r.errors.length > 0);
    mover.flush();
    expect(r.errors.map((e) => [e.code, e.scope])).toEqual([['ELOGMAP', 'connection']]);
  });

  it('tells at once when it is found out by a flush', () => {
    const r = rig();
    const mover = r.mover([{ gpa: 0n, size: FILE_PAGES * PAGE, fileOffset: 0 }]);
    ftruncateSync(r.logFd, 0);
    mover.markAll();
    mover.flush();
    expect(r.errors.map((e) => e.code)).toEqual(['ELOGMAP']);
  });

  it('signals an eventfd whenever bits have arrived, and not otherwise', async () => {
    const r = rig();
    const eventfd = native.eventfd();
    open.push(() => closeSync(eventfd));
    const mover = r.mover([{ gpa: 0n, size: FILE_PAGES * PAGE, fileOffset: 0 }]);
    mover.signalTo(eventfd);
    mover.flush();
    expect(native.eventfdTake(eventfd)).toBe(0);
    r.dirty(1);
    await until('a signal', 5000, () => native.eventfdTake(eventfd) === 1);
  });

  it('leaves the bits that no region has, and those of a region that is there no more', () => {
    const r = rig();
    const mover = r.mover([{ gpa: 0n, size: 3 * PAGE, fileOffset: 5 * PAGE }]);
    for (const page of [4, 5, 6, 7, 8, 63, 64]) r.dirty(page);
    mover.flush();
    expect(r.logged()).toEqual([0, 1, 2]);
    const other = r.mover([{ gpa: BigInt(100 * PAGE), size: 64 * PAGE, fileOffset: PAGE }]);
    other.flush();
    expect(r.logged()).toEqual([0, 1, 2, 103, 107, 162, 163]);
  });

  it('reaches memory above 4 GiB, up to the last bit of the last byte', () => {
    const HIGH = 0x1_0000_0000;
    const pages = HIGH / PAGE + 11;
    const bytes = Math.ceil(pages / 8);
    const { fd, mapping: log } = memory(bytes);
    const shared = memory(layout.size).mapping;
    const own = new native.Mapping(fd, 0, bytes, true);
    const regions = [
      { gpa: 0n, size: 13 * PAGE, fileOffset: 0 },
      { gpa: BigInt(HIGH), size: 11 * PAGE, fileOffset: 13 * PAGE },
    ];
    using mover = new DirtyLogMover(shared, layout, own, regions, () => {});
    // Pages 12 and 13 of the file are far apart in the guest; 23 is the last, behind it is nothing.
    shared.write(layout.bitmapOffset, Buffer.of(0, 0x30, 0x80, 0xff));
    mover.flush();
    expect(mover.moved).toBe(3);
    expect([...log.read(0, 2)]).toEqual([0, 0x10]);
    expect([...log.read(HIGH / PAGE / 8, 2)]).toEqual([1, 0x04]);
    expect([...shared.read(layout.bitmapOffset, 4)]).toEqual([0, 0, 0, 0xff]);
  });

  it('finds the log at an offset in its file, whatever it is', () => {
    fc.assert(
      fc.property(fc.nat(200), fc.uniqueArray(fc.nat(99), { maxLength: 20 }), (offset, dirty) => {
        const r = rig();
        const own = new native.Mapping(r.logFd, 0, LOG_BYTES, true);
        const regions = [{ gpa: 0n, size: 100 * PAGE, fileOffset: 0 }];
        using mover = new DirtyLogMover(r.pages, layout, own, regions, () => {}, offset);
        for (const page of dirty) r.dirty(page);
        mover.flush();
        expect(r.logged()).toEqual(dirty.map((page) => 8 * offset + page).sort((a, b) => a - b));
        for (const close of open.splice(0).reverse()) close();
      }),
      { numRuns: 40 },
    );
  });

  it('can take every page of the regions for written, and none else', () => {
    const r = rig();
    const mover = r.mover([
      { gpa: BigInt(3 * PAGE), size: 70 * PAGE, fileOffset: PAGE },
      { gpa: BigInt(200 * PAGE), size: 5 * PAGE, fileOffset: 71 * PAGE },
    ]);
    mover.markAll();
    const range = (first: number, count: number): number[] =>
      Array.from({ length: count }, (_, i) => first + i);
    expect(r.logged()).toEqual([...range(3, 70), ...range(200, 5)]);
  });
});
