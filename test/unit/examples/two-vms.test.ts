/** What examples/two-vms ships beside its programs: rates from statistics, domains and units that fit each other. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { queueRates } from '../../../examples/two-vms/rates.js';

const read = (path: string): string =>
  readFileSync(fileURLToPath(new URL(`../../../${path}`, import.meta.url)), 'utf8');
const example = (name: string): string => read(`examples/two-vms/${name}`);

function stats(...queues: [packets: number, pps: number, bps: number][]): Record<string, unknown> {
  const direction = ([packets, pps, bps]: number[]) => ({
    packets,
    bytes: packets! * 100,
    pps,
    bps,
    drops: 0,
  });
  return {
    event: 'stats',
    queues: queues.map((q, queue) => ({ queue, receive: direction(q), send: direction([0, 0, 0]) })),
  };
}

describe('queueRates', () => {
  it('takes totals from the last report and rates from the best one, for each queue and direction', () => {
    const events = [
      { event: 'connection', state: 'on' },
      stats([10, 10, 8_000_000]),
      stats([60, 50, 40_126_000], [5, 5, 1_000_000]),
      stats([61, 1, 800], [9, 4, 900_000]),
    ];
    expect(queueRates(events).filter((q) => q.direction === 'receive')).toEqual([
      {
        queue: 0,
        direction: 'receive',
        packets: 61,
        bytes: 6100,
        drops: 0,
        peak_packets_per_s: 50,
        peak_mbit_per_s: 40.13,
      },
      {
        queue: 1,
        direction: 'receive',
        packets: 9,
        bytes: 900,
        drops: 0,
        peak_packets_per_s: 5,
        peak_mbit_per_s: 1,
      },
    ]);
  });

  it('has nothing to say before the first report', () => {
    expect(queueRates([{ event: 'connection', state: 'on' }])).toEqual([]);
  });
});

describe('the domains and units of examples/two-vms', () => {
  const device = example('vhost-pci-device@.service').replaceAll('%i', 'peer');
  const net = example('vhost-pci-net@.service');

  it('name the same sockets, the same memory file and the same size', () => {
    const peer = example('peer.xml');
    const socket = (option: string): string => new RegExp(`--${option} (\\S+)`).exec(device)![1]!;
    expect(peer).toContain(`path='${socket('socket-path')}'`);
    expect(example('receiver.xml')).toContain(`"path":"${socket('vfio-user')}"`);
    const size = /PEER_MEMORY=(\d+)M/.exec(device)![1];
    expect(peer).toContain(`<memory unit='MiB'>${size}</memory>`);
    expect(peer).toContain(`size=${size}M,mem-path=${socket('peer-memory')},share=on`);
  });

  it('give the commands options that they have', () => {
    for (const [unit, command] of [
      [device, 'device'],
      [net, 'net'],
    ] as const) {
      const line = /^ExecStart=(.*)$/m.exec(unit)![1]!;
      expect(line).toMatch(new RegExp(`^vhost-pci ${command} `));
      const options = line.match(/--[a-z-]+/g)!;
      expect(options.length).toBeGreaterThan(1);
      const help = read(`src/cli/${command}.ts`);
      for (const option of options) expect(help).toContain(`  ${option} `);
    }
  });
});
