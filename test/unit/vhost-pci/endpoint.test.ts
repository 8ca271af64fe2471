import { describe, expect, it } from 'vitest';
import type { PciHandle } from '../../../src/pci/handle.js';
import { VhostPciError } from '../../../src/util/errors.js';
import { Endpoint, type EndpointEvent } from '../../../src/vhost-pci/driver/endpoint.js';
import { SinkPort } from '../../../src/vhost-pci/driver/ports.js';
import { until } from './rig.js';

describe('a device that cannot be started', () => {
  it('is tried again and again, and told of once for each reason', async () => {
    const events: EndpointEvent[] = [];
    let why = 'first';
    let tries = 0;
    const open = async (): Promise<PciHandle> => {
      tries++;
      const refuse = async (): Promise<never> => {
        throw new VhostPciError('device', 'ENODEV', why);
      };
      // As much of a handle as is asked before the first answer.
      const handle: Partial<PciHandle> = {
        name: 'broken',
        gone: new Promise(() => {}),
        read: refuse,
        write: refuse,
        regionInfo: refuse,
        [Symbol.asyncDispose]: async () => {},
      };
      return handle as PciHandle;
    };
    await using endpoint = Endpoint.start({
      open,
      port: new SinkPort(),
      mode: 'interrupt',
      onEvent: (event) => events.push(event),
    });
    await until('it was tried', 30_000, () => tries >= 3);
    expect(events).toEqual([{ event: 'error', code: 'ENODEV', message: 'first' }]);
    why = 'second';
    const before = tries;
    await until('it was tried again', 30_000, () => tries >= before + 3);
    expect(events.slice(1)).toEqual([{ event: 'error', code: 'ENODEV', message: 'second' }]);
    expect(endpoint.connected).toBe(false);
  });
});
