/**
 * Child program of the benchmarks: what comes out of one TAP interface goes into the other one, on one thread, by a read and a
 * write each. No ring and no peer. Usage: tap-loop-program.js TAP TAP
 */
import { native } from '#build/sys/native.js';
import { openTap } from './open-tap.js';

const [a, b] = process.argv.slice(2, 4).map((name) => new native.TapQueue({ fd: openTap(name).queueFd(0) }));
const worker = new native.Worker({ mode: 'interrupt', name: 'tap-loop' });
await worker.connect(a!, b!, 'hold');
await worker.connect(b!, a!, 'hold');
console.log(JSON.stringify({ event: 'ready' }));
