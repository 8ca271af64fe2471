import { describe, expect, it } from 'vitest';
import { rowOf, verdict } from '../../bench/report.js';
import { compare, median, type Sample } from '../../bench/samples.js';

const good = (value: number, distance = 1): Sample => ({ value, distance });
const bad = (value: number, dropped: 'distance' | 'run-delay'): Sample => ({ value, distance: 1, dropped });

/** Gives the samples one after the other, and the last one for ever. */
function giving(...samples: Sample[]): () => Promise<Sample> {
  let i = 0;
  return async () => samples[Math.min(i++, samples.length - 1)]!;
}

describe('the comparison of two systems', () => {
  it('takes the median of the ratios pair by pair, not the ratio of the medians', async () => {
    const result = await compare(
      3,
      giving(good(10), good(40), good(30)),
      giving(good(10), good(20), good(10)),
    );
    expect(result).toMatchObject({ a: 30, b: 10, ratio: 2, pairs: 3, range: [1, 3] });
  });

  it('leaves out pairs of which one sample was dropped, and counts the causes', async () => {
    const a = giving(bad(1000, 'run-delay'), good(2));
    const b = giving(good(1), bad(1000, 'distance'), good(1));
    const result = await compare(2, a, b);
    expect(result).toMatchObject({ ratio: 2, pairs: 2, dropped: { distance: 1, runDelay: 1 } });
  });

  it('does not compare samples that were taken at different distances, and mixes no distances', async () => {
    const a = giving(good(9, 0), good(2, 1), good(8, 0), good(2, 1));
    const b = giving(good(1, 3), good(1, 1), good(1, 0), good(1, 1));
    const result = await compare(2, a, b);
    expect(result).toMatchObject({ a: 2, b: 1, ratio: 2, pairs: 2 });
    expect(result.dropped.distance).toBe(4); // the two samples of the first pair and of the third
  });

  it('gives up when nothing counts, and says that there is no figure', async () => {
    const result = await compare(2, giving(bad(1, 'distance')), giving(good(1)));
    expect(result.pairs).toBe(0);
    const labels = { name: 'x', unit: 'Mpps', target: { atLeast: 1 } };
    expect(verdict(rowOf('section', labels, result))).toBe('no figure');
  });

  it('holds the ratio against its target, and the value where there is no ratio', async () => {
    const half = await compare(5, giving(good(1)), giving(good(2)));
    expect(verdict(rowOf('s', { name: 'x', unit: '', target: { atLeast: 0.5 } }, half))).toBe('met');
    expect(verdict(rowOf('s', { name: 'x', unit: '', target: { atLeast: 0.6 } }, half))).toBe('missed');
    expect(verdict(rowOf('s', { name: 'x', unit: '', target: { atMost: 80 } }, 81))).toBe('missed');
    expect(verdict(rowOf('s', { name: 'x', unit: '' }, 81))).toBe('');
  });

  it('says of fewer than five pairs that they are too few', async () => {
    const four = await compare(4, giving(good(1)), giving(good(2)));
    expect(verdict(rowOf('s', { name: 'x', unit: '', target: { atLeast: 0.1 } }, four))).toBe('too few');
  });
});

describe('the median', () => {
  it('is the middle one, or between the two in the middle', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(median([])).toBeNaN();
  });
});
