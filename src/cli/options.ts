/** Command lines: parsing on top of node:util, with errors that say what to change. Knows no command. */
import { isIP } from 'node:net';
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { usageError } from '../util/errors.js';
import { LOG_LEVELS, type LogLevel } from '../util/log.js';

export type OptionTable = NonNullable<ParseArgsConfig['options']>;

export interface Parsed {
  readonly values: { readonly [name: string]: string | boolean | undefined };
  readonly positionals: readonly string[];
}

/**
 * Parses `args`; throws a usage error of one line for what is unknown, repeated or lacks its value. `help` is the command
 * line that the error points to.
 */
export function parseOptions(help: string, args: readonly string[], options: OptionTable): Parsed {
  const hint = `see "${help}"`;
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({ args: [...args], options, allowPositionals: true, strict: true, tokens: true });
  } catch (error) {
    const [line = ''] = (error as Error).message.split('\n');
    // A value that begins with a dash, such as -3: node:util would have it written as --option=-3.
    const [, ambiguous] = /^Option '(\S+)' argument is ambiguous/.exec(line) ?? [];
    throw usageError(ambiguous ? `${ambiguous} lacks its value; ${hint}` : `${line.split('. ')[0]}; ${hint}`);
  }
  const seen = new Set<string>();
  for (const token of parsed.tokens ?? []) {
    if (token.kind !== 'option') continue;
    if (seen.has(token.name)) throw usageError(`--${token.name} is given twice; ${hint}`);
    seen.add(token.name);
  }
  return parsed as unknown as Parsed;
}

/** The one option of `names` that is set, or undefined. Throws when there are several. */
export function oneOf<N extends string>(values: Parsed['values'], names: readonly N[]): N | undefined {
  const given = names.filter((name) => values[name] !== undefined && values[name] !== false);
  if (given.length > 1)
    throw usageError(`${given.map((n) => `--${n}`).join(' and ')} exclude each other; give one of them`);
  return given[0];
}

/** An option's text, which has to be there and not empty. */
export function text(values: Parsed['values'], name: string): string | undefined {
  const value = values[name];
  if (value === undefined) return undefined;
  if (value === '') throw usageError(`--${name} is empty; give it a value`);
  return value as string;
}

/** A whole number in decimal notation within bounds. */
export function wholeNumber(
  values: Parsed['values'],
  name: string,
  min: number,
  max: number,
): number | undefined {
  const value = text(values, name);
  if (value === undefined) return undefined;
  const n = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
  if (!(n >= min && n <= max))
    throw usageError(`--${name} ${value}: a whole number from ${min} to ${max} is needed`);
  return n;
}

const UNIT: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** A size in bytes with an optional binary suffix, as QEMU writes them: 512M, 4G. */
export function size(values: Parsed['values'], name: string): number | undefined {
  const value = text(values, name);
  if (value === undefined) return undefined;
  const match = /^(\d{1,15})([KMGT]?)$/i.exec(value);
  const bytes = match ? Number(match[1]) * (UNIT[(match[2] as string).toUpperCase()] as number) : Number.NaN;
  if (!Number.isSafeInteger(bytes) || bytes === 0)
    throw usageError(`--${name} ${value}: a size such as 512M or 4G is needed`);
  return bytes;
}

/** CPU numbers in the notation of taskset and DPDK: 0,2-3. */
export function cpuList(values: Parsed['values'], name: string): number[] | undefined {
  const value = text(values, name);
  if (value === undefined) return undefined;
  const cpus: number[] = [];
  for (const part of value.split(',')) {
    const match = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part);
    const first = Number(match?.[1]);
    const last = Number(match?.[2] ?? match?.[1]);
    if (!match || last < first) throw usageError(`--${name} ${value}: CPU numbers such as 0,2-3 are needed`);
    for (let cpu = first; cpu <= last; cpu++) cpus.push(cpu);
  }
  return cpus;
}

export function logLevel(values: Parsed['values']): LogLevel {
  const value = text(values, 'log-level') ?? 'info';
  if (!(LOG_LEVELS as readonly string[]).includes(value))
    throw usageError(`--log-level ${value}: one of ${LOG_LEVELS.join(', ')} is needed`);
  return value as LogLevel;
}

/** `--pci-id VVVV:DDDD`, or undefined. */
export function pciId(values: Parsed['values']): { vendor: number; device: number } | undefined {
  const value = text(values, 'pci-id');
  if (value === undefined) return undefined;
  const match = /^([0-9a-f]{4}):([0-9a-f]{4})$/i.exec(value);
  if (!match) throw usageError(`--pci-id ${value}: VVVV:DDDD in hexadecimal is needed, such as 1af4:10f2`);
  return { vendor: Number.parseInt(match[1] as string, 16), device: Number.parseInt(match[2] as string, 16) };
}

export interface Cidr {
  readonly family: 4 | 6;
  readonly address: string;
  readonly prefix: number;
}

/** An address with the length of its network's prefix: 10.0.0.1/24, fd00::1/64. */
export function cidr(values: Parsed['values'], name: string): Cidr | undefined {
  const value = text(values, name);
  if (value === undefined) return undefined;
  const [address = '', length = '', extra] = value.split('/');
  const family = isIP(address) as 0 | 4 | 6;
  const prefix = /^\d{1,3}$/.test(length) ? Number(length) : Number.NaN;
  const fits = prefix <= (family === 4 ? 32 : 128);
  if (family === 0 || !fits || address.includes('%') || extra !== undefined)
    throw usageError(`--${name} ${value}: an address with a prefix length is needed, such as 10.0.0.1/24`);
  return { family, address, prefix };
}
