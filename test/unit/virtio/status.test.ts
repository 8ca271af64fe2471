import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { describeStatus, illegalStatus, STATUS } from '../../../src/virtio/status.js';

const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED, NEEDS_RESET } = STATUS;
const SEQUENCE = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

describe('device status', () => {
  it('takes the steps of an initialization, one by one', () => {
    let status = 0;
    for (const bit of SEQUENCE) {
      expect(illegalStatus(status, status | bit)).toBeUndefined();
      status |= bit;
    }
  });

  it('takes ACKNOWLEDGE and DRIVER in one write', () => {
    expect(illegalStatus(0, ACKNOWLEDGE | DRIVER)).toBeUndefined();
  });

  it.each([
    ['DRIVER before ACKNOWLEDGE', 0, DRIVER, 'sets DRIVER before ACKNOWLEDGE'],
    ['FEATURES_OK before DRIVER', ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK, 'sets FEATURES_OK before DRIVER'],
    [
      'DRIVER_OK before FEATURES_OK',
      ACKNOWLEDGE | DRIVER,
      ACKNOWLEDGE | DRIVER | DRIVER_OK,
      'sets DRIVER_OK before FEATURES_OK',
    ],
    [
      'DRIVER_OK together with FEATURES_OK, which is not read back then',
      ACKNOWLEDGE | DRIVER,
      ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
      'sets DRIVER_OK before FEATURES_OK',
    ],
    ['a bit cleared', ACKNOWLEDGE | DRIVER, ACKNOWLEDGE, 'clears DRIVER'],
    ['a step after FAILED', ACKNOWLEDGE | FAILED, ACKNOWLEDGE | FAILED | DRIVER, 'adds DRIVER after FAILED'],
    ['unknown bits', ACKNOWLEDGE, ACKNOWLEDGE | 0x20, 'unknown bits in 0x21'],
  ])('refuses %s', (_what, current, written, message) => {
    expect(illegalStatus(current, written)).toBe(message);
  });

  it('takes FAILED at every step', () => {
    let status = 0;
    for (const bit of [0, ...SEQUENCE]) {
      status |= bit;
      expect(illegalStatus(status, status | FAILED)).toBeUndefined();
    }
  });

  it('gives no meaning to NEEDS_RESET as the driver writes it', () => {
    expect(illegalStatus(ACKNOWLEDGE | NEEDS_RESET, ACKNOWLEDGE)).toBeUndefined();
    expect(illegalStatus(ACKNOWLEDGE, ACKNOWLEDGE | NEEDS_RESET)).toBeUndefined();
  });

  it('always allows a reset', () => {
    for (let status = 0; status < 256; status++) expect(illegalStatus(status, 0)).toBeUndefined();
  });

  it('never reaches a step without the steps before it, whatever is written', () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.nat(255), fc.constantFrom(1, 3, 11, 15, 0x83)), { maxLength: 40 }),
        (writes) => {
          let status = 0;
          for (const written of writes) if (!illegalStatus(status, written)) status = written;
          if (status & DRIVER_OK) expect(status & FEATURES_OK).toBe(FEATURES_OK);
          if (status & FEATURES_OK) expect(status & (ACKNOWLEDGE | DRIVER)).toBe(ACKNOWLEDGE | DRIVER);
          if (status & DRIVER) expect(status & ACKNOWLEDGE).toBe(ACKNOWLEDGE);
        },
      ),
      { numRuns: 500 },
    );
  });

  it('is told by names', () => {
    expect(describeStatus(0)).toBe('reset');
    expect(describeStatus(0x8b)).toBe('ACKNOWLEDGE, DRIVER, FEATURES_OK, FAILED');
  });
});
