import { defineConfig } from 'vitest/config';

// biome-ignore lint/style/noDefaultExport: vitest reads the default export.
export default defineConfig({
  test: {
    root: new URL('../..', import.meta.url).pathname,
    include: ['test/vm/**/*.test.ts'],
    pool: 'forks',
    // A guest without KVM takes a whole CPU while it has something to do; most of the time the tests wait.
    maxWorkers: 2,
    // For a machine that is ten times slower than an idle one.
    testTimeout: 900_000,
    hookTimeout: 300_000,
  },
});
