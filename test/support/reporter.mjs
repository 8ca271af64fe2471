/**
 * Vitest reporter that writes what run.mjs counts: state, name, skip reason and error of every test, as one JSON
 * file at $VHOST_PCI_REPORT. It prints nothing.
 */
import { writeFileSync } from 'node:fs';

function errorText(error) {
  const where = error.stacks?.[0];
  const at = where ? `\n    at ${where.file}:${where.line}:${where.column}` : '';
  return `${error.name ?? 'Error'}: ${error.message ?? String(error)}${error.diff ? `\n${error.diff}` : ''}${at}`;
}

// biome-ignore lint/style/noDefaultExport: vitest loads a reporter by its default export.
export default class Report {
  onTestRunEnd(modules, unhandled) {
    const tests = [];
    const errors = unhandled.map(errorText);
    for (const module of modules) {
      for (const error of module.errors()) errors.push(`${module.relativeModuleId}: ${errorText(error)}`);
      for (const suite of module.children.allSuites())
        for (const error of suite.errors()) errors.push(`${suite.fullName}: ${errorText(error)}`);
      for (const test of module.children.allTests()) {
        const result = test.result();
        tests.push({
          file: module.relativeModuleId,
          name: test.fullName,
          state: result.state,
          note: result.note,
          again: test.diagnostic()?.flaky ?? false,
          errors: (result.errors ?? []).map(errorText),
        });
      }
    }
    writeFileSync(process.env.VHOST_PCI_REPORT, JSON.stringify({ tests, errors }));
  }
}
