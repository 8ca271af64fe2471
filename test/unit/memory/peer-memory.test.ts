import { closeSync, fstatSync, readdirSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { PAGE_SIZE, PeerMemory, type RawRegion } from '../../../src/memory/peer-memory.js';
import { native } from '../../../src/sys/native.js';

const PAGE = BigInt(PAGE_SIZE);
const FILE_PAGES = 64;
const openFds = (): number => readdirSync('/proc/self/fd').length;

const opened: PeerMemory[] = [];
afterEach(() => {
  for (const memory of opened.splice(0)) memory[Symbol.dispose]();
});

const file = (): number => native.memfdCreate('peer', FILE_PAGES * PAGE_SIZE);

/** A region in pages. */
const region = (gpa: number, user: number, size: number, offset: number): RawRegion => ({
  gpa: BigInt(gpa) * PAGE,
  userAddress: BigInt(user) * PAGE,
  size: BigInt(size) * PAGE,
  fileOffset: BigInt(offset) * PAGE,
});

function make(...regions: RawRegion[]): PeerMemory {
  const fd = file();
  const fds = regions.map((_, i) => (i === 0 ? fd : native.dup(fd)));
  if (regions.length === 0) closeSync(fd);
  const memory = new PeerMemory(regions, fds, 8);
  opened.push(memory);
  return memory;
}

describe('a peer memory', () => {
  it('translates user addresses to guest addresses and those to file offsets', () => {
    const memory = make(region(1024, 100, 16, 32), region(0, 500, 32, 0));
    expect(memory.regions.map((r) => r.gpa)).toEqual([0n, 1024n * PAGE]);
    expect(memory.userToGuest(100n * PAGE + 5n, 10)).toBe(1024n * PAGE + 5n);
    expect(memory.userToGuest(500n * PAGE, 32 * PAGE_SIZE)).toBe(0n);
    expect(memory.guestToOffset(1024n * PAGE, 1)).toBe(32 * PAGE_SIZE);
    expect(memory.end).toBe(1040n * PAGE);
  });

  it('finds nothing that is partly outside a region, in a hole or in two regions', () => {
    const memory = make(region(0, 0, 4, 0), region(4, 4, 4, 8));
    expect(memory.guestToOffset(4n * PAGE - 1n, 1)).toBe(4 * PAGE_SIZE - 1);
    expect(memory.guestToOffset(4n * PAGE - 1n, 2)).toBeUndefined();
    expect(memory.guestToOffset(8n * PAGE, 1)).toBeUndefined();
    expect(memory.userToGuest(8n * PAGE - 1n, 2)).toBeUndefined();
    expect(memory.userToGuest((1n << 64n) - 1n, 2)).toBeUndefined();
    expect(memory.guestToOffset(0n, -1)).toBeUndefined();
  });

  it('knows the file by device, inode and size, and is the same whichever descriptor names it', () => {
    const a = make(region(0, 0, 1, 0));
    const b = new PeerMemory([region(9, 9, 1, 9)], [native.dup(a.fd)], 8);
    opened.push(b);
    const stat = fstatSync(a.fd, { bigint: true });
    expect(a.file).toEqual({ dev: stat.dev, ino: stat.ino, size: FILE_PAGES * PAGE_SIZE });
    expect(a.sameFileAs(b)).toBe(true);
    expect(a.sameFileAs(make(region(0, 0, 1, 0)))).toBe(false);
  });

  it('takes the last page of the address space, and no page more', () => {
    const last = (1n << 64n) / PAGE - 1n;
    const at = (gpa: bigint, size: bigint): RawRegion => ({
      gpa: gpa * PAGE,
      userAddress: 0n,
      size: size * PAGE,
      fileOffset: 0n,
    });
    const memory = make(at(last, 1n));
    expect(memory.guestToOffset(last * PAGE, PAGE_SIZE)).toBe(0);
    expect(memory.guestToOffset(last * PAGE, PAGE_SIZE + 1)).toBeUndefined();
    expect(() => make(at(last, 2n))).toThrow(/wraps/);
  });

  it('closes all descriptors but one, and all when it refuses', () => {
    const before = openFds();
    const memory = make(region(0, 0, 1, 0), region(1, 1, 1, 1), region(2, 2, 1, 2));
    expect(openFds()).toBe(before + 1);
    memory[Symbol.dispose]();
    memory[Symbol.dispose]();
    expect(openFds()).toBe(before);
    for (const bad of [
      [],
      [region(0, 0, 0, 0)],
      [region(0, 0, 65, 0)],
      [region(0, 0, 1, 64)],
      [region(0, 0, 2, 0), region(1, 9, 1, 0)],
      [region(0, 0, 2, 0), region(9, 1, 1, 0)],
      Array.from({ length: 9 }, (_, i) => region(i, i, 1, i)),
    ])
      expect(() => make(...bad)).toThrow(expect.objectContaining({ scope: 'connection' }));
    expect(openFds()).toBe(before);
  });

  it('refuses several files with a sentence that says what to change', () => {
    const before = openFds();
    const regions = [region(0, 0, 1, 0), region(1, 1, 1, 0)];
    expect(() => new PeerMemory(regions, [file(), file()], 8)).toThrow(/single memory backend/);
    expect(openFds()).toBe(before);
  });

  it('grows and shrinks by regions, and leaves the table before as it was', () => {
    const before = openFds();
    const one = make(region(0, 0, 4, 0));
    const two = one.with(region(8, 8, 4, 4), native.dup(one.fd), 8);
    expect(two.regions).toHaveLength(2);
    expect(one.regions).toHaveLength(1);
    const back = two.without(region(0, 0, 4, 0))!;
    expect(back.regions.map((r) => r.gpa)).toEqual([8n * PAGE]);
    expect(back.without(region(8, 8, 4, 4))).toBeUndefined();
    expect(() => back.without(region(8, 8, 3, 4))).toThrow(/no memory region/);
    for (const memory of [one, two, back]) memory[Symbol.dispose]();
    expect(openFds()).toBe(before);
  });

  it('translates like a walk over all regions', () => {
    const layout = fc
      .array(fc.record({ gap: fc.nat({ max: 3 }), size: fc.integer({ min: 1, max: 4 }) }), {
        minLength: 1,
        maxLength: 8,
      })
      .map((parts) => {
        let at = 0;
        return parts.map(({ gap, size }) => {
          at += gap;
          const made = region(at, 1000 - at, size, at);
          at += size;
          return made;
        });
      })
      // User addresses go down while guest addresses go up, so that the two orders differ.
      .map((regions) => regions.map((r) => ({ ...r, userAddress: (1n << 40n) - r.gpa * 8n })));
    const query = fc.record({
      page: fc.nat({ max: 70 }),
      byte: fc.nat({ max: 4095 }),
      length: fc.nat({ max: 20000 }),
    });
    fc.assert(
      fc.property(layout, fc.array(query, { maxLength: 20 }), (regions, queries) => {
        using memory = make(...regions);
        for (const { page, byte, length } of queries) {
          const address = BigInt(page) * PAGE + BigInt(byte);
          const home = regions.find((r) => r.gpa <= address && address + BigInt(length) <= r.gpa + r.size);
          // A range of no bytes at the very end of one region belongs to the next one, if there is one.
          if (length === 0) continue;
          const offset = home && Number(home.fileOffset + address - home.gpa);
          expect(memory.guestToOffset(address, length)).toBe(offset);
          if (home) expect(memory.userToGuest(home.userAddress + (address - home.gpa), length)).toBe(address);
        }
      }),
      { numRuns: 100 },
    );
  });
});
