/** `vhost-pci net`: the driver, between a device and a port. */
import { usageError } from '../util/errors.js';
import { createLog } from '../util/log.js';
import { pciAddress } from '../vfio/address.js';
import { Bridge } from '../vhost-pci/driver/bridge.js';
import { openDevice } from '../vhost-pci/driver/device-name.js';
import { Endpoint, type EndpointOptions } from '../vhost-pci/driver/endpoint.js';
import { EchoPort, type Port, SinkPort, SourcePort } from '../vhost-pci/driver/ports.js';
import { TapPort } from '../vhost-pci/driver/tap-port.js';
import { WorkerPool, type WorkerPoolOptions } from '../vhost-pci/driver/workers.js';
import { cidr, cpuList, logLevel, oneOf, type Parsed, parseOptions, text, wholeNumber } from './options.js';
import { Reporter } from './report.js';
import { untilSignal } from './signals.js';

const HELP = `Usage: vhost-pci net DEVICE [PORT] [OPTIONS]

The driver of a vhost-pci-net device: serves the peer's virtio-net rings and joins them to a port.
It ends on SIGTERM or SIGINT, after the device has confirmed that the peer is disconnected.

  DEVICE              0000:01:00.0    a PCI device of this VM, bound to vfio-pci: see "vhost-pci bind"
                      vfio-user:PATH  the socket of a "vhost-pci device" on this host

Port (one of; default --sink):
  --tap NAME          a TAP interface, created when it does not exist; carrier follows the peer
    --address CIDR    its address, such as 10.0.0.1/24 or fd00::1/64
    --mtu N           its MTU, 68 to 65521; lower when the peer's is
  --sink              take and count what the peer sends
  --source BYTES      send frames of this length (14 to 65535) as fast as the peer takes them
  --echo              send every packet of the peer back to it
  --connect DEVICE    join the peer to that of a second device: packets go from memory to memory;
                      what a peer does not take is dropped, and counted, so that it cannot stall the other

Waiting for packets (one of; default --adaptive):
  --poll              never sleep: lowest latency, one CPU a worker
  --interrupt         sleep as soon as there is nothing to do
  --adaptive          spin a little, then sleep

  --workers N         threads that move packets (default 1); queue pairs are dealt out among them
  --cpu LIST          CPUs for the workers, such as 0,2-3
  --stats SECONDS     print rates and totals of each queue at this interval
  --json              print events and statistics as JSON, one object a line, on stdout
  --log-level LEVEL   fatal, error, warn, info, debug, trace or silent (default warn)
  --help              print this and end
`;

export async function netCommand(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseOptions('vhost-pci net --help', args, {
    tap: { type: 'string' },
    address: { type: 'string' },
    mtu: { type: 'string' },
    sink: { type: 'boolean' },
    source: { type: 'string' },
    echo: { type: 'boolean' },
    connect: { type: 'string' },
    poll: { type: 'boolean' },
    interrupt: { type: 'boolean' },
    adaptive: { type: 'boolean' },
    workers: { type: 'string' },
    cpu: { type: 'string' },
    stats: { type: 'string' },
    json: { type: 'boolean' },
    'log-level': { type: 'string' },
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const [name, extra] = positionals;
  if (name === undefined)
    throw usageError('DEVICE is missing: give a PCI address or vfio-user:PATH; see "vhost-pci net --help"');
  if (extra !== undefined)
    throw usageError(`"${extra}" is one argument too many; "vhost-pci net" takes one DEVICE`);
  const mode = oneOf(values, ['poll', 'interrupt', 'adaptive'] as const) ?? 'adaptive';
  const workers = wholeNumber(values, 'workers', 1, 128) ?? 1;
  const cpus = cpuList(values, 'cpu');
  const interval = wholeNumber(values, 'stats', 1, 86_400);
  const log = createLog('vhost-pci net', values['log-level'] === undefined ? 'warn' : logLevel(values));
  const kind = oneOf(values, ['tap', 'sink', 'source', 'echo', 'connect'] as const) ?? 'sink';
  const open = openDevice(name, log);
  const threads: WorkerPoolOptions = { mode, workers, ...(cpus && { cpus }) };
  const json = values.json === true;

  if (kind !== 'connect') {
    const running: Running = {
      options: { open, port: makePort(kind, values), ...threads, log },
      reporter: new Reporter(json),
    };
    await serve([running], interval);
    return 0;
  }
  const other = secondDevice(name, values);
  const openOther = openDevice(other, log);
  await using pool = new WorkerPool(threads);
  const bridge = new Bridge(pool, log);
  await serve(
    (
      [
        [name, open],
        [other, openOther],
      ] as const
    ).map(([device, open], i) => ({
      options: { open, port: bridge.ports[i] as Port, pool, log },
      reporter: new Reporter(json, device),
    })),
    interval,
  );
  return 0;
}

interface Running {
  readonly options: EndpointOptions;
  readonly reporter: Reporter;
}

/** Runs the endpoints until a signal, or until one of them cannot go on. */
async function serve(all: readonly Running[], interval: number | undefined): Promise<void> {
  const running = all.map(({ options, reporter }) => ({
    reporter,
    endpoint: Endpoint.start({ ...options, onEvent: (event) => reporter.event(event) }),
  }));
  const report = (): void => {
    for (const { endpoint, reporter } of running) reporter.stats(endpoint.stats());
  };
  const close = (): Promise<unknown> => Promise.all(running.map(({ endpoint }) => endpoint.close()));
  const timer = interval && setInterval(report, interval * 1000);
  try {
    await Promise.race([untilSignal(), ...running.map(({ endpoint }) => endpoint.ended)]);
    await close();
    report();
  } catch (error) {
    await close();
    // A mistake of the user's is told before anything was done.
    if ((error as { scope?: string }).scope !== 'usage') report();
    throw error;
  } finally {
    clearInterval(timer);
  }
}

/** DEVICE of --connect, which is another than the first. */
function secondDevice(name: string, values: Parsed['values']): string {
  refuseTapOptions(values);
  const other = text(values, 'connect') as string;
  const canonical = (device: string): string => pciAddress(device) ?? device;
  if (canonical(other) === canonical(name))
    throw usageError(
      `--connect ${other}: that is the first DEVICE; give another, or --echo to join it to itself`,
    );
  return other;
}

function refuseTapOptions(values: Parsed['values']): void {
  if (values.address !== undefined || values.mtu !== undefined)
    throw usageError('--address and --mtu belong to a TAP interface: give --tap NAME too');
}

function makePort(kind: 'tap' | 'sink' | 'source' | 'echo', values: Parsed['values']): Port {
  if (kind !== 'tap') refuseTapOptions(values);
  switch (kind) {
    case 'tap': {
      const address = cidr(values, 'address');
      const mtu = wholeNumber(values, 'mtu', 68, 65_521);
      return new TapPort(text(values, 'tap') as string, {
        ...(address && { address }),
        ...(mtu !== undefined && { mtu }),
      });
    }
    case 'sink':
      return new SinkPort();
    case 'source':
      return new SourcePort({ bytes: wholeNumber(values, 'source', 14, 65_535) as number });
    case 'echo':
      return new EchoPort();
  }
}
