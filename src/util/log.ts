/** The log: pino on stderr. Stdout belongs to the commands' own output. */
import { destination, type Logger, pino } from 'pino';

export type Log = Logger;

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Lines are written synchronously, so that the last words of a process that exits are not lost. */
export function createLog(name: string, level: LogLevel): Log {
  return pino({ name, level, base: { pid: process.pid, name } }, destination({ dest: 2, sync: true }));
}

/** For library use without a log of the caller's. */
export const silentLog: Log = pino({ level: 'silent' });
