import { describe, expect, it } from 'vitest';
import { fieldWrite } from '../../../src/virtio/common-access.js';
import { CommonCfg } from '../../../src/virtio/pci-layout.js';

const { offsets } = CommonCfg;

describe('access to the common configuration', () => {
  it('is a field whole', () => {
    expect(fieldWrite(offsets.queue_select, Buffer.from([2, 1]))).toEqual({
      field: 'queue_select',
      value: 0x102n,
      mask: 0xffffn,
    });
    expect(fieldWrite(offsets.device_status, Buffer.from([9]))).toMatchObject({
      field: 'device_status',
      value: 9n,
    });
  });

  it('is a 64-bit field whole or half', () => {
    const bytes = Buffer.from([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(fieldWrite(offsets.queue_driver, bytes)).toMatchObject({ value: 0x0807_0605_0403_0201n });
    expect(fieldWrite(offsets.queue_driver, bytes.subarray(0, 4))).toEqual({
      field: 'queue_driver',
      value: 0x0403_0201n,
      mask: 0xffff_ffffn,
    });
    expect(fieldWrite(offsets.queue_driver + 4, bytes.subarray(0, 4))).toEqual({
      field: 'queue_driver',
      value: 0x0403_0201_0000_0000n,
      mask: 0xffff_ffff_0000_0000n,
    });
  });

  it.each([
    ['a half of a 16-bit field', offsets.queue_size, 1],
    ['two fields at once', offsets.queue_size, 4],
    ['the middle of a field', offsets.queue_desc + 2, 4],
    ['a quarter of a 64-bit field', offsets.queue_desc, 2],
    ['more than a 64-bit field', offsets.queue_desc, 16],
    ['nothing', offsets.queue_desc, 0],
    ['a place past the structure', CommonCfg.size, 4],
  ])('is not %s', (_what, at, bytes) => {
    expect(fieldWrite(at, Buffer.alloc(bytes))).toBeUndefined();
  });
});
