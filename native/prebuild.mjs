/** Copies the built addon to where node-gyp-build looks in an installed package. Run by `npm run prepack`. */
import { copyFileSync, existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const built = join(here, 'build', 'Release', 'vhost_pci.node');
if (!existsSync(built)) {
  console.error(`${built} is missing: run "npm run build" first`);
  process.exit(1);
}
const folder = join(here, 'prebuilds', `linux-${process.arch}`);
mkdirSync(folder, { recursive: true });
copyFileSync(built, join(folder, 'vhost-pci.node'));
