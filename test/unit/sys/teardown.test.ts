/** An environment may end at any time: threads stop, nothing crashes, and what nobody holds is given back. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const child = fileURLToPath(new URL('teardown-child.mjs', import.meta.url));

function run(way: string): { status: number | null; signal: string | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, ['--expose-gc', child, way], { encoding: 'utf8', timeout: 100_000 });
}

describe('the end of an environment', () => {
  it.each(['exit', 'at once'])('by process.exit (%s) while all threads work is orderly', (way) => {
    expect(run(way)).toMatchObject({ status: 0, signal: null, stderr: '' });
  });

  it('by an uncaught exception is a normal one', () => {
    const done = run('throw');
    expect(done).toMatchObject({ status: 1, signal: null });
    expect(done.stderr).toContain('Error: wanted');
  });

  it('comes by itself after a worker that could not be made', () => {
    expect(run('refused')).toMatchObject({ status: 0, stdout: 'EINVAL\n', stderr: '' });
  });

  it('by the end of a JavaScript thread leaves the process well', () => {
    expect(run('thread')).toMatchObject({ status: 0, stdout: '0 mappings are left\n' });
  });
});

describe('garbage collection', () => {
  it('takes objects that nobody closed', () => {
    expect(run('collect')).toMatchObject({ status: 0, signal: null, stdout: 'collected\n' });
  });
});
