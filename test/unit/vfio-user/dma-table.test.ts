import { closeSync, ftruncateSync, openSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { DmaTable } from '../../../src/vfio-user/dma-table.js';
import { openFds } from './rig.js';

const PAGE = 4096;
const window = (address: bigint, size: bigint, offset = 0n) => ({
  address,
  size,
  offset,
  readable: true,
  writable: true,
});
const code = (run: () => void): string => {
  try {
    run();
    return 'ok';
  } catch (error) {
    return (error as { code: string }).code;
  }
};

describe('a DMA table', () => {
  let fd: number;
  let table: DmaTable;
  let fds: number;
  beforeEach(() => {
    fds = openFds();
    fd = native.memfdCreate('dma', 64 * PAGE);
    table = new DmaTable();
  });
  afterEach(() => {
    table[Symbol.dispose]();
    closeSync(fd);
    expect(openFds()).toBe(fds);
  });

  it('maps a file once, however many windows it has, and lets it go with the last', () => {
    const before = native.mappingCount();
    for (let i = 0; i < 32; i++) table.map(window(BigInt(i * 2 * PAGE), BigInt(PAGE), BigInt(i * PAGE)), fd);
    expect(native.mappingCount() - before).toBe(1);
    table.unmap(0n, BigInt(62 * PAGE));
    expect(table.windows.length).toBe(1);
    expect(native.mappingCount() - before).toBe(1);
    table.unmap(BigInt(62 * PAGE), BigInt(PAGE));
    expect(native.mappingCount() - before).toBe(0);
  });

  it('knows a file by its inode, not by the number of its fd', () => {
    const other = native.dup(fd);
    table.map(window(0n, BigInt(PAGE)), fd);
    table.map(window(0x10000n, BigInt(PAGE)), other);
    expect(table.mappings).toBe(1);
    closeSync(other);
  });

  it('maps a file that has grown a second time', () => {
    table.map(window(0n, BigInt(PAGE)), fd);
    ftruncateSync(fd, 128 * PAGE);
    table.map(window(0x100000n, BigInt(PAGE), BigInt(100 * PAGE)), fd);
    table.table().write(0x100000n, Buffer.from('new'));
    expect(table.table().read(0x100000n, 3).toString()).toBe('new');
  });

  it('joins windows that follow each other in address and in file only', () => {
    table.map(window(0x3000n, 0x1000n, 0x3000n), fd);
    table.map(window(0x1000n, 0x1000n, 0x1000n), fd);
    table.map(window(0x2000n, 0x1000n, 0x2000n), fd);
    expect(table.table().regions).toBe(1);
    table.map(window(0x4000n, 0x1000n, 0x9000n), fd);
    table.map(window(0x6000n, 0x1000n, 0xa000n), fd);
    expect(table.table().regions).toBe(3);
  });

  it('gives the same table until something changes, and then another', () => {
    table.map(window(0n, 0x1000n), fd);
    const first = table.table();
    expect(table.table()).toBe(first);
    const { version } = table;
    table.map(window(0x1000n, 0x1000n), undefined);
    expect(table.version).not.toBe(version);
    expect(table.table()).not.toBe(first);
    expect(code(() => first.read(0n, 1))).toBe('EBADF');
  });

  it('reaches the top of the address space, and no further', () => {
    const top = (1n << 64n) - 0x1000n;
    table.map(window(top, 0x1000n), fd);
    table.table().write(top + 0xffcn, Buffer.from('last'));
    expect(
      table
        .table()
        .read(top + 0xffcn, 4)
        .toString(),
    ).toBe('last');
    expect(() => table.table().read(top + 0xffdn, 4)).toThrow();
  });

  it('takes a device or a read-only file for a window that cannot be reached', () => {
    const zero = openSync('/dev/zero', 'r+');
    const readOnly = openSync('/proc/self/exe', 'r');
    table.map(window(0n, 0x1000n), zero);
    table.map(window(0x1000n, 0x1000n), readOnly);
    expect(table.table().regions).toBe(0);
    closeSync(zero);
    closeSync(readOnly);
  });

  it('takes windows of a file that is too large to map whole', () => {
    const huge = native.memfdCreate('huge', 1);
    ftruncateSync(huge, 2 ** 52);
    table.map(window(0n, 0x2000n, 2n ** 51n + 0x1800n), huge);
    table.table().write(0x1ffcn, Buffer.from('here'));
    expect(table.table().read(0x1ffcn, 4).toString()).toBe('here');
    closeSync(huge);
  });

  it('does not let one client take every mapping of the process', () => {
    const files = Array.from({ length: 257 }, () => native.memfdCreate('many', PAGE));
    const results = files.map((f, i) => code(() => table.map(window(BigInt(i * PAGE), BigInt(PAGE)), f)));
    expect(results.slice(0, 256).every((r) => r === 'ok')).toBe(true);
    expect(results[256]).toBe('ENOSPC');
    for (const f of files) closeSync(f);
  });

  it('does not let one client grow the table without bound', () => {
    for (let i = 0; i < 4096; i++) table.map(window(BigInt(i * 2 * PAGE), BigInt(PAGE)), fd);
    expect(code(() => table.map(window(1n << 40n, BigInt(PAGE)), fd))).toBe('ENOSPC');
    expect(table.table().regions).toBe(4096);
  });

  it('turns a file that shrank into an error of the access, and maps it anew', () => {
    table.map(window(0n, 0x2000n), fd);
    ftruncateSync(fd, 0);
    expect(code(() => table.table().read(0n, 8))).toBe('EFAULT');
    expect(code(() => table.map(window(0x10000n, 0x1000n), fd))).toBe('EINVAL');
    ftruncateSync(fd, 64 * PAGE);
    table.map(window(0x20000n, 0x1000n), fd);
    expect(table.mappings).toBe(2);
  });

  it('agrees with a page-by-page model after any sequence of requests', () => {
    const page = fc.nat(15);
    const step = fc.record({
      op: fc.constantFrom('map', 'unmap'),
      at: page,
      pages: fc.nat(5),
      offset: fc.nat(66),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        using t = new DmaTable();
        const model: (undefined | { owner: number; offset: number })[] = new Array(32).fill(undefined);
        for (const [owner, { op, at, pages, offset }] of steps.entries()) {
          const range = Array.from({ length: pages }, (_, i) => at + i);
          const address = BigInt(at * PAGE);
          const size = BigInt(pages * PAGE);
          if (op === 'map') {
            const expected =
              pages === 0
                ? 'EINVAL'
                : range.some((p) => model[p])
                  ? 'EEXIST'
                  : offset + pages > 64
                    ? 'EINVAL'
                    : 'ok';
            expect(code(() => t.map(window(address, size, BigInt(offset * PAGE)), fd))).toBe(expected);
            if (expected === 'ok')
              for (const [i, p] of range.entries()) model[p] = { owner, offset: offset + i };
          } else {
            const owners = new Set(range.map((p) => model[p]?.owner).filter((o) => o !== undefined));
            const partial = model.some((m, p) => m && owners.has(m.owner) && !range.includes(p));
            const expected = pages === 0 || partial ? 'EINVAL' : owners.size === 0 ? 'ENOENT' : 'ok';
            expect(code(() => t.unmap(address, size))).toBe(expected);
            if (expected === 'ok') for (const p of range) model[p] = undefined;
          }
        }
        for (const [p, m] of model.entries()) {
          if (m) t.table().write(BigInt(p * PAGE), Buffer.from([p + 1, m.offset]));
          else expect(code(() => t.table().read(BigInt(p * PAGE), 1))).toBe('EFAULT');
        }
        const used = new Set(model.flatMap((m) => (m ? [m.owner] : [])));
        expect(t.windows.length).toBe(used.size);
        expect(t.mappings).toBe(used.size > 0 ? 1 : 0);
      }),
      { numRuns: 100 },
    );
  });
});
