/** The options that the demos share: what is taken, and what is refused in one line. */
import { describe, expect, it } from 'vitest';
import { parseDemoOptions } from '../../../examples/options.js';
import { VhostPciError } from '../../../src/util/errors.js';

describe('the options of a demo', () => {
  it('are taken apart', () => {
    const none = { help: false, json: false, seconds: undefined };
    expect(parseDemoOptions('demo', true, [])).toEqual(none);
    expect(parseDemoOptions('demo', true, ['--json', '--seconds', '3600'])).toEqual({
      ...none,
      json: true,
      seconds: 3600,
    });
    expect(parseDemoOptions('demo', false, ['-h'])).toEqual({ ...none, help: true });
  });

  it('are refused with one line that says what to change', () => {
    for (const [args, words] of [
      ...['0.5', '0', '3601', '1e2', '-1', 'NaN', '', ' 1'].map(
        (value) => [[`--seconds=${value}`], /^--seconds .*(a whole number from 1 to 3600|is empty)/] as const,
      ),
      [['--seconds', '-1'], /^--seconds lacks its value; see "npm run demo -- --help"$/],
      [['--seconds', '1', '--seconds', '2'], /^--seconds is given twice/],
      [['--loud'], /^Unknown option '--loud'; see "npm run demo -- --help"$/],
      [['5'], /^"5" is not an option; see "npm run demo -- --help"$/],
      [['--json', '--', '--seconds', '5'], /^"--seconds" is not an option/],
    ] as const) {
      const mistake = (() => {
        try {
          return parseDemoOptions('demo', true, args);
        } catch (error) {
          return error;
        }
      })();
      expect(mistake, args.join(' ')).toBeInstanceOf(VhostPciError);
      expect(mistake).toMatchObject({ scope: 'usage', message: expect.stringMatching(words) });
      expect((mistake as Error).message).not.toContain('\n');
    }
    expect(() => parseDemoOptions('demo:vms', false, ['--seconds', '1'])).toThrow(
      /^Unknown option '--seconds'/,
    );
  });
});
