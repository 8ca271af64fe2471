import { describe, expect, it } from 'vitest';
import { BACKEND_FILE_NAME, backendFile, printCapabilities } from '../../../src/vhost-user/program.js';

describe('the back-end program conventions', () => {
  it('print a JSON object with the type of the back-end', () => {
    expect(JSON.parse(printCapabilities())).toEqual({ type: 'net' });
  });

  it('make a file for share/qemu/vhost-user with what its schema asks for', () => {
    expect(BACKEND_FILE_NAME).toMatch(/^\d\d-.*\.json$/);
    const content = JSON.parse(backendFile('/usr/bin/vhost-pci-device'));
    expect(content).toEqual({
      description: expect.any(String),
      type: 'net',
      binary: '/usr/bin/vhost-pci-device',
    });
  });

  it('ask for an absolute path of the program', () => {
    expect(() => backendFile('vhost-pci')).toThrow(/absolute path/);
  });
});
