import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cpuList, logLevel, oneOf, parseOptions, size, text, wholeNumber } from '../../../src/cli/options.js';
import { VhostPciError } from '../../../src/util/errors.js';

const TABLE = { name: { type: 'string' }, on: { type: 'boolean' }, off: { type: 'boolean' } } as const;

function refusal(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(VhostPciError);
    expect((error as VhostPciError).scope).toBe('usage');
    expect((error as VhostPciError).message).not.toContain('\n');
    return (error as VhostPciError).message;
  }
  throw new Error('it was taken');
}

describe('command lines', () => {
  it('are taken apart into options and the rest', () => {
    const parsed = parseOptions('test --help', ['--name=x', 'one', '--on', '--', '--off'], TABLE);
    expect(parsed.values).toEqual({ name: 'x', on: true });
    expect(parsed.positionals).toEqual(['one', '--off']);
  });

  it('are refused with a pointer to --help', () => {
    for (const args of [['--nmae', 'x'], ['--name'], ['--on=1'], ['--name', 'a', '--name', 'b'], ['-x']])
      expect(refusal(() => parseOptions('test --help', args, TABLE))).toMatch(/; see "test --help"$/);
    expect(refusal(() => parseOptions('test --help', ['--on', '--on'], TABLE))).toMatch(
      /--on is given twice/,
    );
  });

  it('have at most one of the options that exclude each other', () => {
    expect(oneOf({}, ['on', 'off'])).toBeUndefined();
    expect(oneOf({ off: true, on: undefined }, ['on', 'off'])).toBe('off');
    expect(refusal(() => oneOf({ off: true, on: true }, ['on', 'off']))).toBe(
      '--on and --off exclude each other; give one of them',
    );
  });

  it('have no empty values', () => {
    expect(text({}, 'name')).toBeUndefined();
    expect(refusal(() => text({ name: '' }, 'name'))).toMatch(/--name is empty/);
  });
});

describe('numbers', () => {
  it('are decimal and within bounds', () => {
    fc.assert(
      fc.property(fc.nat(1000), (n) => {
        const values = { n: String(n) };
        if (n >= 10 && n <= 500) expect(wholeNumber(values, 'n', 10, 500)).toBe(n);
        else expect(refusal(() => wholeNumber(values, 'n', 10, 500))).toMatch(/from 10 to 500/);
      }),
    );
    for (const wrong of ['-1', '1e2', '0x10', ' 7', '7 ', '1.5', 'NaN', '９', '1234567890123456'])
      expect(refusal(() => wholeNumber({ n: wrong }, 'n', 0, 2 ** 53))).toContain(`--n ${wrong}`);
  });

  it('with a unit are sizes', () => {
    for (const [written, bytes] of [
      ['4096', 4096],
      ['1k', 1024],
      ['512M', 512 * 2 ** 20],
      ['4G', 2 ** 32],
      ['2t', 2 ** 41],
    ] as const)
      expect(size({ s: written }, 's')).toBe(bytes);
    for (const wrong of ['0', '0G', '-1M', '1.5G', '1GB', 'G', '9007199254740993', '999999999999999T', '1 G'])
      expect(refusal(() => size({ s: wrong }, 's'))).toMatch(/a size such as 512M or 4G is needed/);
  });

  it('of CPUs are lists of numbers and ranges', () => {
    expect(cpuList({ cpu: '0,2-4,7' }, 'cpu')).toEqual([0, 2, 3, 4, 7]);
    for (const wrong of ['a', '1-', '-1', '3-1', '1,,2', '1,', '12345', '0-1-2'])
      expect(refusal(() => cpuList({ cpu: wrong }, 'cpu'))).toMatch(/CPU numbers such as 0,2-3/);
  });

  it('of log levels are names', () => {
    expect(logLevel({})).toBe('info');
    expect(logLevel({ 'log-level': 'debug' })).toBe('debug');
    expect(refusal(() => logLevel({ 'log-level': 'loud' }))).toMatch(/one of fatal, error,/);
  });
});
