/** Results as rows, with the targets they have to meet; printed as a table, written as JSON and as Markdown. */
import { type Comparison, limits } from './samples.js';

export interface Row {
  readonly section: string;
  readonly name: string;
  readonly unit: string;
  readonly value: number;
  /** What it is compared with in the same run. */
  readonly reference?: { readonly name: string; readonly value: number };
  /** Median of the ratios of the pairs, their range, and how many pairs there were. */
  readonly ratio?: number;
  readonly range?: readonly [number, number];
  readonly pairs?: number;
  readonly dropped?: { readonly distance: number; readonly runDelay: number };
  readonly distance?: string;
  readonly target?: Target;
}

/** Bound of the ratio; of the value, where there is none. */
export interface Target {
  readonly atLeast?: number;
  readonly atMost?: number;
}

export interface Labels {
  readonly name: string;
  readonly unit: string;
  /** Name of what a comparison compares with. */
  readonly reference?: string;
  /** From what was measured to the unit. */
  readonly scale?: number;
  readonly target?: Target;
}

export function rowOf(section: string, labels: Labels, result: Comparison | number): Row {
  const { name, unit, reference = '', scale = 1, target } = labels;
  const row = { section, name, unit, ...(target && { target }) };
  if (typeof result === 'number') return { ...row, value: result * scale };
  const { a, b, ratio, range, pairs, dropped, distance } = result;
  const compared = { name: reference, value: b * scale };
  return { ...row, value: a * scale, reference: compared, ratio, range, pairs, dropped, distance };
}

export function verdict({
  target,
  ratio,
  value,
  pairs,
}: Row): 'met' | 'missed' | 'no figure' | 'too few' | '' {
  if (!target) return '';
  const figure = ratio ?? value;
  if (Number.isNaN(figure)) return 'no figure';
  if (pairs !== undefined && pairs < limits.pairs) return 'too few';
  const met = figure >= (target.atLeast ?? -Infinity) && figure <= (target.atMost ?? Infinity);
  return met ? 'met' : 'missed';
}

const number = (n: number): string => {
  if (Number.isNaN(n)) return '-';
  return n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2);
};

function bound(target: Target | undefined): string {
  if (target?.atLeast !== undefined) return `≥ ${target.atLeast}`;
  return target?.atMost !== undefined ? `≤ ${target.atMost}` : '';
}

const HEADER = ['what', 'figure', 'against', 'ratio', 'range', 'pairs (dropped)', 'CPUs apart', 'target', ''];

function cells(row: Row): string[] {
  const { value, unit, reference, ratio, range, pairs, dropped, distance } = row;
  return [
    row.name,
    `${number(value)} ${unit}`,
    reference ? `${number(reference.value)} ${reference.name}` : '',
    ratio === undefined ? '' : number(ratio),
    range && Number.isFinite(range[0]) ? `${number(range[0])}-${number(range[1])}` : '',
    pairs === undefined ? '' : `${pairs} (${(dropped?.distance ?? 0) + (dropped?.runDelay ?? 0)})`,
    distance ?? '',
    bound(row.target),
    verdict(row),
  ];
}

const WIDTHS = [32, 18, 22, 7, 13, 16, 12, 8, 10];

export function header(section: string): string {
  const titles = HEADER.map((title, i) => title.padEnd(WIDTHS[i]!)).join(' ');
  return `\n${section}\n${titles.trimEnd()}`;
}

export function line(row: Row): string {
  return cells(row)
    .map((cell, i) => cell.padEnd(WIDTHS[i]!))
    .join(' ')
    .trimEnd();
}

/** All sections as Markdown tables. */
export function markdown(rows: readonly Row[]): string {
  const parts: string[] = [];
  for (const section of new Set(rows.map((row) => row.section))) {
    parts.push(`### ${section}`, '', `| ${HEADER.join(' | ')} |`, `|${' --- |'.repeat(HEADER.length)}`);
    for (const row of rows) if (row.section === section) parts.push(`| ${cells(row).join(' | ')} |`);
    parts.push('');
  }
  return parts.join('\n');
}
