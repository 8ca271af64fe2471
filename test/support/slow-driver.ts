/** Drivers that take their time to stop, or do not log: what the proofs about the dirty log need, and no user can ask for. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { checkout } from './process.js';
import type { Scope } from './scope.js';

/** The environment of such a driver: it stops `ms` later, and goes on writing until then. */
export function slowDriver(
  scope: Scope,
  { ms, logs }: { readonly ms: number; readonly logs: boolean },
): NodeJS.ProcessEnv {
  const file = join(scope.folder(), 'slow-driver.mjs');
  const attachment = pathToFileURL(join(checkout, 'dist/vhost-pci/driver/attachment.js'));
  const lines = [
    `import { Attachment } from '${attachment}';`,
    'const { detach } = Attachment.prototype;',
    'Attachment.prototype.detach = async function () {',
    `  await new Promise((resolve) => setTimeout(resolve, ${ms}));`,
    '  await detach.call(this);',
    '};',
    ...(logs ? [] : ['Attachment.prototype.setDirtyLog = async () => {};']),
  ];
  writeFileSync(file, lines.join('\n'));
  return { NODE_OPTIONS: `--import=${file}` };
}
