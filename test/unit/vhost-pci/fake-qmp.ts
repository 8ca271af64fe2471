/** A stand-in for the QMP socket of a receiving VM's QEMU: one client at a time, devices on buses that it has. */
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { Client } from '../../../src/vfio-user/client.js';

interface Command {
  readonly execute: string;
  readonly arguments: Record<string, unknown>;
  readonly id: number;
}

export class FakeQmp {
  readonly path: string;
  /** Commands but qmp_capabilities, and what was deleted. */
  readonly log: string[] = [];
  /** Arguments of the devices that are there, by id. */
  readonly devices = new Map<string, Record<string, unknown>>();
  readonly buses = new Set(['port0']);
  /** The guest lets go of its devices when asked. */
  lettingGo = true;
  /** Connects to the device's socket as QEMU does. */
  connecting = false;
  /** What the server says instead of a greeting. */
  greeting = '{"QMP": {"version": {}, "capabilities": []}}\r\n';
  readonly #server: Server;
  readonly #sockets: Socket[] = [];
  readonly #clients = new Map<string, Client>();
  readonly #unplugging = new Set<string>();

  private constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#sockets.push(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        this.#sockets.splice(this.#sockets.indexOf(socket), 1);
        this.#greet();
      });
      if (this.#sockets.length === 1) this.#greet();
      let rest = '';
      socket.setEncoding('utf8');
      socket.on('data', (text: string) => {
        const lines = (rest + text).split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) void this.#run(socket, JSON.parse(line));
      });
    });
  }

  static async listen(path: string): Promise<FakeQmp> {
    rmSync(path, { force: true });
    const qmp = new FakeQmp(path);
    await new Promise<void>((done) => qmp.#server.listen(path, done));
    return qmp;
  }

  /** QEMU ends, its devices with it. */
  async end(): Promise<void> {
    for (const socket of this.#sockets.splice(0)) socket.destroy();
    await new Promise<void>((done) => this.#server.close(() => done()));
    for (const client of this.#clients.values()) await client[Symbol.asyncDispose]();
    this.devices.clear();
  }

  /** The guest lets go of what it was asked for. */
  async letGo(id: string): Promise<void> {
    await this.#clients.get(id)?.[Symbol.asyncDispose]();
    this.#clients.delete(id);
    this.devices.delete(id);
    this.#unplugging.delete(id);
    this.log.push(`deleted ${id}`);
    const path = `/machine/peripheral/${id}`;
    for (const data of [{ path: `${path}/child` }, { device: 'other' }, { device: id, path }])
      this.#say({ event: 'DEVICE_DELETED', data, timestamp: {} });
  }

  #greet(): void {
    this.#sockets[0]?.write(this.greeting);
  }

  #say(message: object): void {
    this.#sockets[0]?.write(`${JSON.stringify(message)}\r\n`);
  }

  async #run(socket: Socket, { execute, arguments: args, id }: Command): Promise<void> {
    if (execute !== 'qmp_capabilities') this.log.push(execute);
    const answer = (value: object): void => void socket.write(`${JSON.stringify({ ...value, id })}\r\n`);
    const refuse = (desc: string, name = 'GenericError'): void => answer({ error: { class: name, desc } });
    const device = String(args.id);
    switch (execute) {
      case 'qmp_capabilities':
        return answer({ return: {} });
      case 'qom-get':
        return answer({ return: this.devices.get(String(args.path).split('/').at(-1)!)?.driver });
      case 'device_add':
        if (this.devices.has(device)) return refuse(`Duplicate device ID '${device}'`);
        if (!this.buses.has(String(args.bus))) return refuse(`Bus '${args.bus}' not found`);
        this.devices.set(device, args);
        if (this.connecting)
          this.#clients.set(device, await Client.connect((args.socket as { path: string }).path));
        return answer({ return: {} });
      case 'device_del':
        if (!this.devices.has(device)) return refuse(`Device '${device}' not found`, 'DeviceNotFound');
        if (this.#unplugging.has(device))
          return refuse(`Device ${device} is already in the process of unplug`);
        this.#unplugging.add(device);
        answer({ return: {} });
        if (this.lettingGo) await this.letGo(device);
        return;
      default:
        return refuse(`The command ${execute} has not been found`, 'CommandNotFound');
    }
  }
}
