/**
 * The capabilities that VERSION messages carry as JSON (vfio-user, "VFIO_USER_VERSION"): text to checked values and
 * back, for both sides. Decides nothing about a connection.
 */
import { connectionError, LIMIT } from './protocol.js';

export const MAJOR = 0;
export const MINOR = 0;

/** What the sender can take, with the specification's defaults filled in. */
export interface Capabilities {
  /** File descriptors that it takes in one message. */
  readonly maxMessageFds: number;
  /** Largest `count` of a read or write. */
  readonly maxDataTransfer: number;
  readonly maxDmaMaps: number;
  /** Page sizes for DMA mappings, or'ed together. */
  readonly pageSizes: number;
  readonly writeMultiple: boolean;
  /** The names that it used, so that a reply is a subset of the proposal. */
  readonly named: ReadonlySet<string>;
}

export const DEFAULTS: Capabilities = {
  maxMessageFds: 1,
  maxDataTransfer: 1 << 20,
  maxDmaMaps: 65535,
  pageSizes: LIMIT.PAGE_SIZE,
  writeMultiple: false,
  named: new Set(),
};

/** More than any sender nests; the parser is not asked about deeper text. */
const MAX_DEPTH = 16;

const bad = (why: string) => connectionError('EINVAL', `VERSION: ${why}`);

function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (inString) {
      if (c === '\\') i++;
      else if (c === '"') inString = false;
    } else if (c === '"') inString = true;
    else if (c === '{' || c === '[') {
      if (++depth > MAX_DEPTH) throw bad(`JSON nested more than ${MAX_DEPTH} levels deep`);
    } else if (c === '}' || c === ']') depth--;
  }
}

function asObject(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw bad(`${what} is not an object`);
  return value as Record<string, unknown>;
}

function count(value: unknown, name: string, least: number): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < least)
    throw bad(`${name} is not a number of at least ${least}`);
  return value;
}

function decodeText(data: Uint8Array): string {
  if (data.length > LIMIT.VERSION_JSON) throw bad(`${data.length} bytes of JSON`);
  if (data[data.length - 1] !== 0) throw bad('JSON without its terminating NUL');
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(data.subarray(0, -1));
  } catch (cause) {
    throw bad(`JSON that is not UTF-8 (${(cause as Error).message})`);
  }
}

/**
 * Reads the JSON that follows a version; empty data is allowed and means the defaults. Throws (scope `connection`)
 * what is malformed; names that we do not know are ignored.
 */
export function parseCapabilities(data: Uint8Array): Capabilities {
  if (data.length === 0) return DEFAULTS;
  const text = decodeText(data);
  checkDepth(text);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw bad(`malformed JSON (${(cause as Error).message})`);
  }
  const top = asObject(json, 'the JSON');
  if (!Object.hasOwn(top, 'capabilities')) return DEFAULTS;
  const caps = asObject(top.capabilities, 'capabilities');
  const has = (name: string) => Object.hasOwn(caps, name);
  if (has('twin_socket')) asObject(caps.twin_socket, 'twin_socket');
  if (has('migration')) asObject(caps.migration, 'migration');
  if (has('write_multiple') && typeof caps.write_multiple !== 'boolean')
    throw bad('write_multiple is no boolean');
  const number = (name: string, least: number, otherwise: number) =>
    has(name) ? count(caps[name], name, least) : otherwise;
  return {
    maxMessageFds: Math.min(number('max_msg_fds', 0, DEFAULTS.maxMessageFds), LIMIT.MESSAGE_FDS),
    maxDataTransfer: number('max_data_xfer_size', 1, DEFAULTS.maxDataTransfer),
    maxDmaMaps: number('max_dma_maps', 0, DEFAULTS.maxDmaMaps),
    pageSizes: number('pgsizes', 1, DEFAULTS.pageSizes),
    writeMultiple: caps.write_multiple === true,
    named: new Set(Object.keys(caps)),
  };
}

/** Our own capabilities as JSON with its NUL; with `asked`, only the names that the other side used. */
export function encodeCapabilities(asked?: Capabilities): Buffer {
  const all: Record<string, unknown> = {
    max_msg_fds: LIMIT.MESSAGE_FDS,
    max_data_xfer_size: LIMIT.DATA_XFER,
    max_dma_maps: LIMIT.DMA_MAPS,
    pgsizes: LIMIT.PAGE_SIZE,
    write_multiple: true,
  };
  // "The capability list must be a subset of those proposed"; QEMU also has no room for a reply longer than
  // its request.
  const names = Object.keys(all).filter((name) => !asked || asked.named.has(name));
  const capabilities = Object.fromEntries(names.map((name) => [name, all[name]]));
  return Buffer.from(`${JSON.stringify({ capabilities })}\0`);
}
