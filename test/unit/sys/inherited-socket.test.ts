import { closeSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { whyNoConnection } from '../../../src/sys/inherited-socket.js';
import { datagramSocket } from '../../../src/sys/ioctl.js';
import { native } from '../../../src/sys/native.js';
import { shortTmp } from '../../support/scope.js';
import { openFds } from './helpers.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(shortTmp(), 'vp-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('an inherited descriptor', () => {
  it('is taken when it is one end of a Unix stream connection, and nothing else', () => {
    const before = openFds();
    const path = join(folder, 's');
    const [pair, other] = native.unixPair();
    const listener = native.unixListen(path, 4);
    const client = native.unixConnect(path);
    const server = native.unixAccept(listener)!;
    const file = native.memfdCreate('file', 4096);
    const internet = datagramSocket('inet');
    for (const fd of [pair, client, server]) expect(whyNoConnection(fd)).toBeUndefined();
    // Its other end has gone already: a connection that ends at once.
    closeSync(other);
    expect(whyNoConnection(pair)).toBeUndefined();
    expect(whyNoConnection(listener)).toBe('a listening socket, no connection');
    expect(whyNoConnection(file)).toBe('not a socket');
    expect(whyNoConnection(internet)).toBe('no Unix socket');
    for (const fd of [pair, client, server, listener, file, internet]) closeSync(fd);
    expect(whyNoConnection(65_000)).toBe('not open');
    expect(openFds()).toBe(before);
  });
});
