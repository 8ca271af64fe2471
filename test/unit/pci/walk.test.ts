import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { walkCapabilities } from '../../../src/pci/walk.js';
import { handleOver } from './rig.js';

function spaceWith(capabilities: { [at: number]: [id: number, next: number] }, first: number): Buffer {
  const bytes = Buffer.alloc(4096);
  bytes[6] = 0x10;
  bytes[0x34] = first;
  for (const [at, pair] of Object.entries(capabilities)) bytes.set(pair, Number(at));
  return bytes;
}

describe('capability walk', () => {
  it('finds the capabilities in the order of the list', async () => {
    const bytes = spaceWith({ 128: [0x10, 0x40], 64: [0x09, 0x50], 80: [0x11, 0] }, 0x80);
    const found = await walkCapabilities(handleOver(bytes));
    expect(found.map((c) => [c.id, c.offset])).toEqual([
      [0x10, 0x80],
      [0x09, 0x40],
      [0x11, 0x50],
    ]);
    expect(found[2]?.bytes).toHaveLength(256 - 0x50);
  });

  it('finds none when the status register says so', async () => {
    const bytes = spaceWith({ 64: [0x09, 0] }, 0x40);
    bytes[6] = 0;
    expect(await walkCapabilities(handleOver(bytes))).toEqual([]);
  });

  it('ignores the two reserved bits of a link', async () => {
    const bytes = spaceWith({ 64: [0x09, 0x53], 80: [0x11, 0x03] }, 0x41);
    expect((await walkCapabilities(handleOver(bytes))).map((c) => c.offset)).toEqual([0x40, 0x50]);
  });

  it.each([
    ['a circle', spaceWith({ 64: [1, 0x50], 80: [2, 0x40] }, 0x40)],
    ['a capability that links to itself', spaceWith({ 64: [1, 0x40] }, 0x40)],
    ['a link into the header', spaceWith({ 64: [1, 0x10] }, 0x40)],
    ['a first link into the header', spaceWith({}, 0x3c)],
  ])('refuses %s', async (_what, bytes) => {
    await expect(walkCapabilities(handleOver(bytes))).rejects.toMatchObject({
      code: 'ECAPLIST',
      scope: 'device',
    });
  });

  it('ends for any content', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 256, maxLength: 256 }), async (content) => {
        const bytes = Buffer.from(content);
        bytes[6] = 0x10;
        const found = await walkCapabilities(handleOver(bytes)).catch((error) => error);
        if (Array.isArray(found)) expect(found.length).toBeLessThanOrEqual(48);
        else expect(found).toMatchObject({ code: 'ECAPLIST' });
      }),
    );
  });
});
