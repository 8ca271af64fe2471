/** The threads that move packets: made together, told about by many, ended together. Knows no peer and no port. */
import {
  native,
  type Worker,
  type WorkerEvent,
  type WorkerMode,
  type WorkerStats,
} from '../../sys/native.js';
import { errorText, usageError } from '../../util/errors.js';

export interface WorkerPoolOptions {
  readonly mode?: WorkerMode;
  readonly workers?: number;
  /** CPUs for the workers, in turn. */
  readonly cpus?: readonly number[];
}

export class WorkerPool implements AsyncDisposable {
  readonly workers: readonly Worker[];
  readonly mode: WorkerMode;
  readonly #listeners = new Set<(event: WorkerEvent) => void>();

  /** Throws a usage error for a CPU that there is not. */
  constructor(options: WorkerPoolOptions = {}) {
    this.mode = options.mode ?? 'adaptive';
    this.workers = makeWorkers({ ...options, mode: this.mode });
    for (const worker of this.workers)
      worker.onEvent((event) => {
        for (const listener of this.#listeners) listener(event);
      });
  }

  /** Calls back with the events of every worker. Returns what ends that. */
  listen(listener: (event: WorkerEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stats(): WorkerStats[] {
    return this.workers.map((worker) => worker.stats());
  }

  /** Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const worker of this.workers) await worker.stop();
  }
}

function makeWorkers({ workers = 1, mode, cpus }: WorkerPoolOptions & { mode: WorkerMode }): Worker[] {
  const made: Worker[] = [];
  for (let i = 0; i < workers; i++) {
    const cpu = cpus?.[i % cpus.length];
    try {
      made.push(new native.Worker({ mode, name: `vhost-pci-${i}`, ...(cpu !== undefined && { cpu }) }));
    } catch (cause) {
      for (const worker of made) void worker.stop();
      if (cpu === undefined) throw cause;
      throw usageError(
        `CPU ${cpu} cannot run a worker (${errorText(cause)}); name CPUs that this process may use`,
        { cause },
      );
    }
  }
  return made;
}
