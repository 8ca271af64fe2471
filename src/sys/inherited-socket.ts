/**
 * What an inherited descriptor is, before anything is read from it: socket(7) options and getpeername(2) through
 * koffi. Knows no protocol, and leaves the socket as it is.
 */
import { fstatSync } from 'node:fs';
import koffi from 'koffi';

export const SOL_SOCKET = 1;
export const SO_TYPE = 3;
export const SO_ACCEPTCONN = 30;
export const SO_DOMAIN = 39;
export const AF_UNIX = 1;
export const SOCK_STREAM = 1;

const libc = koffi.load('libc.so.6');
const getsockopt = libc.func(
  'int getsockopt(int fd, int level, int name, _Out_ int *value, _Inout_ uint32_t *length)',
);
const getpeername = libc.func('int getpeername(int fd, _Out_ uint8_t *address, _Inout_ uint32_t *length)');

/** Room for the longest address, struct sockaddr_storage. */
const ADDRESS_BYTES = 128;

/** Why `fd` is no connected Unix stream socket, in words that follow "it is"; undefined when it is one. */
export function whyNoConnection(fd: number): string | undefined {
  try {
    if (!fstatSync(fd).isSocket()) return 'not a socket';
  } catch {
    return 'not open';
  }
  // Descriptors come with the messages, which only this family carries (unix(7), SCM_RIGHTS).
  if (option(fd, SO_DOMAIN) !== AF_UNIX) return 'no Unix socket';
  if (option(fd, SO_TYPE) !== SOCK_STREAM) return 'a datagram or packet socket, no stream socket';
  if (option(fd, SO_ACCEPTCONN) !== 0) return 'a listening socket, no connection';
  if (getpeername(fd, Buffer.alloc(ADDRESS_BYTES), [ADDRESS_BYTES]) !== 0)
    return 'a socket without a connection';
  return undefined;
}

function option(fd: number, name: number): number {
  const value = [0];
  return getsockopt(fd, SOL_SOCKET, name, value, [4]) === 0 ? (value[0] as number) : -1;
}
