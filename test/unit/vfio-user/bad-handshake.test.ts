/** What a client must not send first. */
import { describe, it } from 'vitest';
import { DeviceInfo } from '../../../src/pci/vfio-abi.js';
import { COMMANDS, Header, Version } from '../../../src/vfio-user/protocol.js';
import { type Case, check, json } from './bad-input.js';

const cases: Case[] = [
  {
    title: 'a command before VERSION',
    send: (raw) => raw.send(COMMANDS.DEVICE_GET_INFO.command, DeviceInfo.encode({ argsz: 16 })),
    errno: 'EPROTO',
    closes: true,
  },
  {
    title: 'an unknown command before VERSION',
    send: (raw) => raw.send(999),
    errno: 'EPROTO',
    closes: true,
  },
  {
    title: 'a header that tells less than its own size',
    send: (raw) => raw.bytes(Header.encode({ command: 1, size: 15 })),
    closes: true,
  },
  {
    title: 'a header of size 0',
    send: (raw) => raw.bytes(Header.encode({ command: 1, size: 0 })),
    closes: true,
  },
  {
    title: 'a message of 4 GiB',
    send: (raw) => raw.bytes(Header.encode({ command: 1, size: 0xffffffff })),
    closes: true,
  },
  {
    title: 'an unknown message type',
    send: (raw) => raw.bytes(Header.encode({ command: 1, size: 16, flags: 7 })),
    closes: true,
  },
  {
    title: 'half a header, and the end',
    send: (raw) => {
      raw.bytes(Buffer.alloc(7));
      raw[Symbol.dispose]();
    },
    closes: true,
  },
  { title: 'VERSION without a payload', send: (raw) => raw.send(1), errno: 'EINVAL', closes: true },
  {
    title: 'VERSION with a file descriptor',
    send: (raw, { memfd }) => raw.send(1, json('{}\0'), [memfd]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'a major version that we do not speak',
    send: (raw) => raw.send(1, Version.encode({ major: 1 })),
    errno: 'ENOTSUP',
    closes: true,
  },
  ...(
    [
      ['unterminated JSON', '{"capabilities":{}}'],
      ['cut JSON', '{"capabilities":{\0'],
      ['JSON that is no object', '[]\0'],
      ['JSON that is null', 'null\0'],
      ['a NUL alone', '\0'],
      ['capabilities that are a list', '{"capabilities":[]}\0'],
      ['capabilities that are null', '{"capabilities":null}\0'],
      ['max_msg_fds of the wrong type', '{"capabilities":{"max_msg_fds":"8"}}\0'],
      ['max_msg_fds below 0', '{"capabilities":{"max_msg_fds":-1}}\0'],
      ['max_msg_fds that is no integer', '{"capabilities":{"max_msg_fds":1.5}}\0'],
      ['max_msg_fds beyond every number', '{"capabilities":{"max_msg_fds":1e400}}\0'],
      ['max_data_xfer_size of 0', '{"capabilities":{"max_data_xfer_size":0}}\0'],
      ['pgsizes that lacks 4096', '{"capabilities":{"pgsizes":65536}}\0'],
      ['write_multiple of the wrong type', '{"capabilities":{"write_multiple":1}}\0'],
      ['twin_socket of the wrong type', '{"capabilities":{"twin_socket":true}}\0'],
      ['migration of the wrong type', '{"capabilities":{"migration":7}}\0'],
      ['deep JSON', `${'['.repeat(5000)}${']'.repeat(5000)}\0`],
      ['deep JSON that is cut', `${'{"a":'.repeat(2000)}\0`],
    ] as const
  ).map(
    ([title, text]): Case => ({
      title: `VERSION with ${title}`,
      send: (raw) => raw.send(1, json(text)),
      errno: 'EINVAL',
      closes: true,
    }),
  ),
  {
    title: 'VERSION with JSON that is not UTF-8',
    send: (raw) => raw.send(1, Buffer.concat([Version.encode({}), Buffer.from([0x22, 0xff, 0x22, 0])])),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'VERSION with more JSON than anybody needs',
    send: (raw) => raw.send(1, json(`{"x":"${'y'.repeat(20000)}"}\0`)),
    errno: 'EINVAL',
    closes: true,
  },
];

describe('before or as VERSION, a server refuses', () => {
  for (const c of cases) it(c.title, () => check(c, false));
});
