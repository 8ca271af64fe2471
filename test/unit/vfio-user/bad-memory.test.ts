/** What a client must not send about its memory and its interrupts. */
import { describe, it } from 'vitest';
import { IRQ } from '../../../src/pci/handle.js';
import { IRQ_SET, IrqInfo } from '../../../src/pci/vfio-abi.js';
import { DmaUnmap } from '../../../src/vfio-user/protocol.js';
import { type Case, check, irqs, map } from './bad-input.js';
import { MSIX_VECTORS } from './rig.js';

const cases: Case[] = [
  {
    title: 'DMA_MAP past the end of its file',
    send: (raw, { memfd }) => raw.send(2, map({ size: 0x3000n }), [memfd]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP whose file offset lies past the end',
    send: (raw, { memfd }) => raw.send(2, map({ offset: 0xffff_ffff_ffff_f000n }), [memfd]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP that wraps',
    send: (raw, { memfd }) => raw.send(2, map({ address: 0xffff_ffff_ffff_f000n, size: 0x2000n }), [memfd]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP of nothing',
    send: (raw, { memfd }) => raw.send(2, map({ size: 0n }), [memfd]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP with unknown flags',
    send: (raw, { memfd }) => raw.send(2, map({ flags: 4 }), [memfd]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP of a socket',
    send: (raw, { socket }) => raw.send(2, map(), [socket]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP of an eventfd',
    send: (raw, { event }) => raw.send(2, map(), [event]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_MAP with two file descriptors',
    send: (raw, { memfd }) => raw.send(2, map(), [memfd, memfd]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'DMA_MAP of the wrong size',
    send: (raw) => raw.send(2, Buffer.alloc(31)),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'DMA_UNMAP of nothing mapped',
    send: (raw) => raw.send(3, DmaUnmap.encode({ argsz: 24, address: 0x1000n, size: 0x1000n })),
    errno: 'ENOENT',
    closes: false,
  },
  {
    title: 'DMA_UNMAP that wraps',
    send: (raw) => raw.send(3, DmaUnmap.encode({ argsz: 24, address: 0xffff_ffff_ffff_ffffn, size: 2n })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_UNMAP of all with an address',
    send: (raw) => raw.send(3, DmaUnmap.encode({ argsz: 24, flags: 2, address: 1n })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DMA_UNMAP with a dirty bitmap',
    send: (raw) => raw.send(3, Buffer.concat([DmaUnmap.encode({ argsz: 40, flags: 1 }), Buffer.alloc(16)])),
    errno: 'EINVAL',
    closes: false,
  },
  // -- interrupts
  {
    title: 'DEVICE_GET_IRQ_INFO of an index that cannot be',
    send: (raw) => raw.send(7, IrqInfo.encode({ argsz: 16, index: 5 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS whose start + count wraps',
    send: (raw, { event }) => raw.send(8, irqs({ start: 0xffffffff, count: 1 }), [event]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS with a huge count',
    send: (raw) => raw.send(8, irqs({ count: 0xffffffff })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS one past the last vector',
    send: (raw, { event }) => raw.send(8, irqs({ start: MSIX_VECTORS }), [event]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS of an absent index',
    send: (raw, { event }) => raw.send(8, irqs({ index: IRQ.MSI }), [event]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS of index 2^32 - 1',
    send: (raw, { event }) => raw.send(8, irqs({ index: 0xffffffff }), [event]),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS with fewer fds than vectors',
    send: (raw, { event }) => raw.send(8, irqs({ count: 2 }), [event]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'SET_IRQS with fds that it does not announce',
    send: (raw, { event }) => raw.send(8, irqs({ flags: IRQ_SET.DATA_NONE | IRQ_SET.TRIGGER }), [event]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'SET_IRQS with an fd that is no eventfd',
    send: (raw, { memfd }) => raw.send(8, irqs({}), [memfd]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'SET_IRQS with 16 fds for 16 vectors, one of them a socket',
    send: (raw, { event, socket }) =>
      raw.send(8, irqs({ count: 16 }), [...new Array(15).fill(event), socket]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'SET_IRQS with fewer booleans than vectors',
    send: (raw) =>
      raw.send(
        8,
        Buffer.concat([irqs({ flags: IRQ_SET.DATA_BOOL | IRQ_SET.MASK, count: 3 }), Buffer.alloc(2)]),
      ),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'SET_IRQS with two actions',
    send: (raw) => raw.send(8, irqs({ flags: IRQ_SET.DATA_NONE | IRQ_SET.MASK | IRQ_SET.UNMASK })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS with two kinds of data',
    send: (raw) => raw.send(8, irqs({ flags: IRQ_SET.DATA_NONE | IRQ_SET.DATA_BOOL | IRQ_SET.MASK })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS that masks an index without masks',
    send: (raw) => raw.send(8, irqs({ index: IRQ.REQ, flags: IRQ_SET.DATA_NONE | IRQ_SET.MASK })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'SET_IRQS of no vectors that is not the order to disable',
    send: (raw) => raw.send(8, irqs({ count: 0 })),
    errno: 'EINVAL',
    closes: false,
  },
];

describe('a server refuses', () => {
  for (const c of cases) it(c.title, () => check(c, true));
});
