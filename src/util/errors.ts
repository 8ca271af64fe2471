/**
 * Errors of the whole tree. Every error says what happened, to whom, and what to do; `scope` says what the
 * code that catches it has to do next. Nothing here knows a protocol.
 */

/**
 * - `message`: answer with an error, go on.
 * - `connection`: close the connection that it came from.
 * - `queue`, `device`: mark it broken; others go on.
 * - `usage`: the user can mend it: one line on stderr, exit status 2.
 * - `bug`: our own mistake: crash with a stack trace.
 */
export type ErrorScope = 'message' | 'connection' | 'queue' | 'device' | 'usage' | 'bug';

export class VhostPciError extends Error {
  /** A stable upper-case word for programs, such as `EBADSIZE`. */
  readonly code: string;
  readonly scope: ErrorScope;

  constructor(scope: ErrorScope, code: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'VhostPciError';
    this.scope = scope;
    this.code = code;
  }
}

/** A mistake of the user: `message` is one line that says what to change. */
export function usageError(message: string, options?: { cause?: unknown }): VhostPciError {
  return new VhostPciError('usage', 'EUSAGE', message, options);
}

/** The text of any thrown value, without a stack. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
