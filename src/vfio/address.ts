/** PCI addresses as sysfs writes them: domain, bus, device, function. */

/** The full form of an address such as `01:00.0` or `0000:01:00.0`; undefined when it is none. */
export function pciAddress(text: string): string | undefined {
  const match = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i.exec(text);
  if (!match) return undefined;
  const [, domain = '0000', bus, device, fn] = match;
  return `${domain}:${bus}:${device}.${fn}`.toLowerCase();
}
