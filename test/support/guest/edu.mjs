/**
 * Drives QEMU's `edu` device through src/vfio, inside a receiving guest: node edu.mjs ADDRESS. Prints one JSON object with
 * what it saw and judges nothing. `edu` has what a vhost-pci device has not: a pin (QEMU, docs/specs/edu.rst).
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { enableBusMaster } from '/opt/vhost-pci/dist/pci/function.js';
import { native } from '/opt/vhost-pci/dist/sys/native.js';
import { VfioDevice } from '/opt/vhost-pci/dist/vfio/device.js';

const BAR = 0;
const INTX = 0;
const MSI = 1;
const MSIX = 2;
const REGISTER = { ID: 0, STATUS: 0x24, RAISE: 0x60, ACKNOWLEDGE: 0x64 };
const DMA = { SOURCE: 0x80, TARGET: 0x88, COUNT: 0x90, COMMAND: 0x98 };
const START = 1;
const TO_MEMORY = 2;
/** The device's own memory, in its DMA addresses. */
const OWN_MEMORY = 0x40000;
const IOVA = 0x40_0000;
const DMA_BYTES = 2 << 20;
const BLOCK = 4096;
const RAISES = 5;
const LIMIT_MS = 20_000;

const device = VfioDevice.open(process.argv[2]);
const read = async (register) => (await device.read(BAR, register, 4)).readUInt32LE(0);
const write = (register, value) => {
  const data = Buffer.alloc(4);
  data.writeUInt32LE(value);
  return device.write(BAR, register, data);
};

async function until(done) {
  for (let left = LIMIT_MS; !(await done()); left -= 5) {
    if (left <= 0) throw new Error(`not within ${LIMIT_MS} ms: ${done}`);
    await sleep(5);
  }
}

/** Raises interrupts one after the other, each once the one before was acknowledged; counts the signals. */
async function interrupts(index) {
  const fd = native.eventfd();
  const served = [];
  let signals = 0;
  const watcher = native.watch(fd, async () => {
    signals += native.eventfdTake(fd);
    const status = await read(REGISTER.STATUS);
    if (status === 0) return;
    await write(REGISTER.ACKNOWLEDGE, status);
    served.push(status);
  });
  watcher.set({ readable: true });
  await device.setIrqs(index, [fd]);
  for (let i = 1; i <= RAISES; i++) {
    await write(REGISTER.RAISE, i);
    await until(() => served.length === i);
  }
  const whileOn = signals;
  await device.setIrqs(index, []);
  await write(REGISTER.RAISE, 1);
  for (let i = 0; i < 20; i++) await sleep(1);
  const whileOff = signals - whileOn;
  await write(REGISTER.ACKNOWLEDGE, 1);
  watcher.stop();
  closeSync(fd);
  return { count: await device.irqCount(index), served, whileOn, whileOff };
}

/** A block from memory into the device and back; again once the memory is not mapped any more. */
async function dma() {
  const fd = native.memfdCreate('edu', DMA_BYTES);
  const memory = new native.Mapping(fd, 0, DMA_BYTES, true);
  const move = async (source, target, command) => {
    await write(DMA.SOURCE, source);
    await write(DMA.TARGET, target);
    await write(DMA.COUNT, BLOCK);
    await write(DMA.COMMAND, command | START);
    await until(async () => ((await read(DMA.COMMAND)) & START) === 0);
  };
  await device.mapDma(fd, memory, 0, BigInt(IOVA), DMA_BYTES);
  const sent = Buffer.from(Array.from({ length: BLOCK }, (_, i) => (i * 7) & 0xff));
  memory.write(0, sent);
  await move(IOVA, OWN_MEMORY, 0);
  await move(OWN_MEMORY, IOVA + DMA_BYTES - BLOCK, TO_MEMORY);
  const back = memory.read(DMA_BYTES - BLOCK, BLOCK).equals(sent);
  await device.unmapDma(BigInt(IOVA), DMA_BYTES);
  const kept = Buffer.alloc(BLOCK, 0x5a);
  memory.write(DMA_BYTES - BLOCK, kept);
  await move(OWN_MEMORY, IOVA + DMA_BYTES - BLOCK, TO_MEMORY);
  const untouched = memory.read(DMA_BYTES - BLOCK, BLOCK).equals(kept);
  memory.close();
  closeSync(fd);
  return { back, untouched };
}

await enableBusMaster(device);
const { size, areas } = await device.regionInfo(BAR);
const seen = {
  region: { size, areas },
  id: (await read(REGISTER.ID)) & 0xff,
  msix: await device.irqCount(MSIX),
  intx: await interrupts(INTX),
  msi: await interrupts(MSI),
  // Whatever MSI left behind, the pin works again.
  intxAgain: await interrupts(INTX),
  dma: await dma(),
};
await device[Symbol.asyncDispose]();
process.stdout.write(`${JSON.stringify(seen)}\n`);
