/** ioctl(2) through koffi. Requests and their argument layouts belong to the callers. */
import koffi from 'koffi';
import { VhostPciError } from '../util/errors.js';

const libc = koffi.load('libc.so.6');
const ioctlPointer = libc.func('int ioctl(int fd, unsigned long request, _Inout_ uint8_t *argument)');
const ioctlValue = libc.func('int ioctl(int fd, unsigned long request, uintptr_t argument)');

const socketCall = libc.func('int socket(int domain, int type, int protocol)');

const errnoNames = new Map(Object.entries(koffi.os.errno).map(([name, n]) => [n as number, name]));

/** A failed ioctl: `code` is the errno's name. */
function failed(what: string): VhostPciError {
  const errno = koffi.errno();
  const code = errnoNames.get(errno) ?? `E${errno}`;
  return new VhostPciError('device', code, `${what}: ${code}`);
}

/**
 * Calls ioctl with a buffer that the kernel reads and writes. Returns its result; throws (scope `device`) with the
 * errno's name as code, and `what` in the message.
 */
export function ioctl(fd: number, request: number, argument: Uint8Array, what: string): number {
  const result = ioctlPointer(fd, request, argument) as number;
  if (result < 0) throw failed(what);
  return result;
}

/** Calls ioctl with a number as argument. */
export function ioctlNumber(fd: number, request: number, argument: number, what: string): number {
  const result = ioctlValue(fd, request, argument) as number;
  if (result < 0) throw failed(what);
  return result;
}

/** socket(2) with SOCK_DGRAM, for ioctls that only a socket of this family takes. The caller closes it. */
export function datagramSocket(family: 'inet' | 'inet6'): number {
  const SOCK_DGRAM_CLOEXEC = 0x80002;
  const fd = socketCall(family === 'inet' ? 2 : 10, SOCK_DGRAM_CLOEXEC, 0) as number;
  if (fd < 0) throw failed(`socket of family ${family}`);
  return fd;
}
