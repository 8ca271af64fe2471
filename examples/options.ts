/** The options of the demos. A mistake is one line on stderr and exit status 2, as with the commands. */
import { type OptionTable, parseOptions, wholeNumber } from '#build/cli/options.js';
import { errorText, usageError } from '#build/util/errors.js';

export interface DemoOptions {
  readonly help: boolean;
  readonly json: boolean;
  /** Undefined when it is not given. */
  readonly seconds: number | undefined;
}

const FLAGS = { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } as const;

/** The options after `npm run SCRIPT --`; throws a usage error. `seconds` says whether there is `--seconds`. */
export function parseDemoOptions(script: string, seconds: boolean, args: readonly string[]): DemoOptions {
  const help = `npm run ${script} -- --help`;
  const table: OptionTable = seconds ? { ...FLAGS, seconds: { type: 'string' } } : FLAGS;
  const { values, positionals } = parseOptions(help, args, table);
  if (positionals.length > 0) throw usageError(`"${positionals[0]}" is not an option; see "${help}"`);
  return {
    help: values.help === true,
    json: values.json === true,
    seconds: wholeNumber(values, 'seconds', 1, 3600),
  };
}

function usage(script: string, seconds: string | undefined): string {
  const row = seconds === undefined ? '' : `  --seconds N   ${seconds}\n`;
  return `Usage: npm run ${script} [-- OPTIONS]

${row}  --json        one object on stdout, the rest on stderr
  --help        print this and end
`;
}

/** The options of this process; ends it after `--help` or a mistake. `seconds` is the help on `--seconds`, if there is one. */
export function demoOptions(script: string, seconds?: string): DemoOptions {
  try {
    const options = parseDemoOptions(script, seconds !== undefined, process.argv.slice(2));
    if (!options.help) return options;
    process.stdout.write(usage(script, seconds));
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${script}: ${errorText(error)}\n`);
    process.exit(2);
  }
}
