/** Run by teardown.test.ts: fills an environment with working native objects, then lets it end in the way it is told. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { isMainThread, Worker as Thread } from 'node:worker_threads';

const require = createRequire(import.meta.url);
const native = require('node-gyp-build')(fileURLToPath(new URL('../../../native', import.meta.url)));
const mac = Buffer.alloc(6);

function fill() {
  const keep = [];
  for (const mode of ['poll', 'interrupt', 'adaptive']) {
    const worker = new native.Worker({ mode });
    const app = new native.AppQueue({ slots: 64, slotBytes: 2048 });
    const later = new native.Worker({ mode });
    worker.connect(
      new native.SourceQueue({ bytes: 64, destination: mac, source: mac }),
      new native.SinkQueue(),
      'hold',
    );
    worker.onEvent(() => {});
    later.connect(
      new native.SourceQueue({ bytes: 64, destination: mac, source: mac, count: 1e6 }),
      app,
      'drop',
    );
    const pump = () => {
      while (app.receive() > 0);
      app.onReady(pump);
    };
    pump();
    keep.push(worker, later, app);
  }
  const relay = new native.Relay();
  const [from, to] = [native.eventfd(), native.eventfd()];
  relay.add(from, to);
  native.eventfdSignal(from);
  keep.push(
    relay,
    native.watch(to, () => native.eventfdTake(to)),
  );
  return keep;
}

/** Objects that nobody closes and nobody holds. */
async function collect() {
  for (let i = 0; i < 100; i++) {
    const fd = native.memfdCreate('garbage', 1 << 20);
    const mapping = new native.Mapping(fd, 0, 1 << 20, true);
    require('node:fs').closeSync(fd);
    new native.RegionTable([{ address: 0n, size: 4096, mapping, offset: 0 }]);
    new native.DriverQueue({
      mapping,
      offset: 0,
      address: 0n,
      size: 64,
      bufferBytes: 2048,
      features: 1n << 32n,
    });
    new native.ControlDriverQueue(mapping, 0, 0n, 8, 256);
    new native.AppQueue({ slots: 8, slotBytes: 2048 }).onReady(() => {});
    new native.Relay();
    if (i % 20 === 19) {
      globalThis.gc();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  for (let i = 0; i < 5; i++) {
    globalThis.gc();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

if (!isMainThread) {
  globalThis.keep = fill();
} else {
  const way = process.argv[2];
  if (way === 'collect') {
    await collect();
    console.log(native.mappingCount() <= 1 ? 'collected' : `${native.mappingCount()} mappings are left`);
  } else if (way === 'refused') {
    try {
      new native.Worker({ mode: 'poll', cpu: 1023 });
    } catch (error) {
      console.log(error.code);
    }
  } else if (way === 'thread') {
    for (let i = 0; i < 3; i++) {
      const thread = new Thread(new URL(import.meta.url));
      await new Promise((resolve, reject) => {
        thread.on('exit', resolve).on('error', reject);
        setTimeout(() => thread.terminate(), 30);
      });
    }
    console.log(`${native.mappingCount()} mappings are left`);
  } else {
    globalThis.keep = fill();
    if (way === 'at once') process.exit(0);
    setTimeout(() => {
      if (way === 'exit') process.exit(0);
      throw new Error('wanted');
    }, 30);
  }
}
