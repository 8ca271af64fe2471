/** Compares our struct declarations and numbers with the Linux headers, through a C program that prints them. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import * as capabilities from '../../src/pci/capabilities.js';
import { COMMAND, ConfigHeader } from '../../src/pci/config-space.js';
import { IRQ, REGION } from '../../src/pci/handle.js';
import * as vfioAbi from '../../src/pci/vfio-abi.js';
import type { Fields, Struct } from '../../src/util/struct.js';
import * as vfio from '../../src/vfio/abi.js';
import { FEATURE } from '../../src/virtio/features.js';
import * as layout from '../../src/virtio/pci-layout.js';
import { STATUS } from '../../src/virtio/status.js';
import { NET_STATUS, VirtioNetConfig } from '../../src/virtio-net/config.js';
import { NET_FEATURE } from '../../src/virtio-net/features.js';
import { GSO, HEADER_FLAG, VirtioNetHeader } from '../../src/virtio-net/header.js';

const HEADERS = ['pci_regs.h', 'vfio.h', 'virtio_config.h', 'virtio_net.h', 'virtio_pci.h'];

interface Row {
  readonly ours: string;
  readonly value: number;
  /** A C expression; rows of a macro that these headers may not know yet are left out of the comparison. */
  readonly c: string;
  readonly macro?: string;
}

/** Size and field offsets; `names` gives the C name of fields that are called otherwise there, or null for none. */
function structRows<F extends Fields>(
  s: Struct<F>,
  c: string,
  names: { readonly [K in keyof F]?: string | null } = {},
  size = true,
): Row[] {
  const rows: Row[] = size ? [{ ours: `${s.name} size`, value: s.size, c: `sizeof(struct ${c})` }] : [];
  for (const [field, value] of Object.entries(s.offsets) as [keyof F & string, number][]) {
    const name = names[field] === undefined ? field : names[field];
    if (name !== null) rows.push({ ours: `${s.name}.${field}`, value, c: `offsetof(struct ${c}, ${name})` });
  }
  return rows;
}

/** Numbers of which the C name is a prefix and ours, but for those in `renamed`. */
function numberRows(
  set: { readonly [name: string]: number },
  prefix: string,
  renamed: { readonly [name: string]: string | null } = {},
): Row[] {
  return Object.entries(set).flatMap(([name, value]) => {
    const macro = renamed[name] === undefined ? `${prefix}${name}` : renamed[name];
    return macro === null ? [] : [{ ours: name, value, c: macro, macro }];
  });
}

const IN_CAP = Object.fromEntries(
  ['cap_vndr', 'cap_next', 'cap_len', 'cfg_type', 'bar', 'id', 'padding', 'offset', 'length'].map((f) => [
    f,
    `cap.${f}`,
  ]),
);

const pciOffset = (ours: string, value: number, macro: string): Row => ({ ours, value, c: macro, macro });
const { offsets: header } = ConfigHeader;
const { offsets: msix } = capabilities.MsixCap;
const { offsets: msi } = capabilities.MsiCap;
const { offsets: express } = capabilities.ExpressCap;
const { offsets: entry } = capabilities.MsixEntry;

const ROWS: Row[] = [
  ...structRows(layout.VirtioPciCap, 'virtio_pci_cap'),
  ...structRows(layout.VirtioPciCap64, 'virtio_pci_cap64', IN_CAP),
  ...structRows(layout.VirtioPciNotifyCap, 'virtio_pci_notify_cap', IN_CAP),
  ...structRows(layout.VirtioPciCfgCap, 'virtio_pci_cfg_cap', IN_CAP),
  ...structRows(
    layout.CommonCfg,
    'virtio_pci_common_cfg',
    {
      driver_feature_select: 'guest_feature_select',
      driver_feature: 'guest_feature',
      config_msix_vector: 'msix_config',
      queue_desc: 'queue_desc_lo',
      queue_driver: 'queue_avail_lo',
      queue_device: 'queue_used_lo',
      queue_notif_config_data: null,
      queue_reset: null,
      admin_queue_index: null,
      admin_queue_num: null,
    },
    false,
  ),
  pciOffset(
    'notif_config_data',
    layout.CommonCfg.offsets.queue_notif_config_data,
    'VIRTIO_PCI_COMMON_Q_NDATA',
  ),
  pciOffset('queue_reset', layout.CommonCfg.offsets.queue_reset, 'VIRTIO_PCI_COMMON_Q_RESET'),
  pciOffset('admin_queue_index', layout.CommonCfg.offsets.admin_queue_index, 'VIRTIO_PCI_COMMON_ADM_Q_IDX'),
  pciOffset('admin_queue_num', layout.CommonCfg.offsets.admin_queue_num, 'VIRTIO_PCI_COMMON_ADM_Q_NUM'),
  ...numberRows(layout.CFG_TYPE, 'VIRTIO_PCI_CAP_', {
    COMMON: 'VIRTIO_PCI_CAP_COMMON_CFG',
    NOTIFY: 'VIRTIO_PCI_CAP_NOTIFY_CFG',
    ISR: 'VIRTIO_PCI_CAP_ISR_CFG',
    DEVICE: 'VIRTIO_PCI_CAP_DEVICE_CFG',
    PCI: 'VIRTIO_PCI_CAP_PCI_CFG',
    SHARED_MEMORY: 'VIRTIO_PCI_CAP_SHARED_MEMORY_CFG',
    VENDOR: 'VIRTIO_PCI_CAP_VENDOR_CFG',
  }),
  pciOffset('NO_VECTOR', layout.NO_VECTOR, 'VIRTIO_MSI_NO_VECTOR'),
  pciOffset('ISR.CONFIG', layout.ISR.CONFIG, 'VIRTIO_PCI_ISR_CONFIG'),

  ...structRows(VirtioNetHeader, 'virtio_net_hdr_v1'),
  ...structRows(VirtioNetConfig, 'virtio_net_config', {}, false),
  ...numberRows(NET_FEATURE, 'VIRTIO_NET_F_', { PEER_CONNECTION: null, LOG_ALL: 'VHOST_F_LOG_ALL' }),
  ...numberRows(NET_STATUS, 'VIRTIO_NET_S_', { PEER_CONNECTION: null }),
  ...numberRows(HEADER_FLAG, 'VIRTIO_NET_HDR_F_'),
  ...numberRows(GSO, 'VIRTIO_NET_HDR_GSO_'),
  ...numberRows(FEATURE, 'VIRTIO_F_', {
    INDIRECT_DESC: 'VIRTIO_RING_F_INDIRECT_DESC',
    EVENT_IDX: 'VIRTIO_RING_F_EVENT_IDX',
    PACKED: 'VIRTIO_F_RING_PACKED',
  }),
  ...numberRows(STATUS, 'VIRTIO_CONFIG_S_'),

  pciOffset('header', ConfigHeader.size, 'PCI_STD_HEADER_SIZEOF'),
  pciOffset('vendor_id', header.vendor_id, 'PCI_VENDOR_ID'),
  pciOffset('device_id', header.device_id, 'PCI_DEVICE_ID'),
  pciOffset('command', header.command, 'PCI_COMMAND'),
  pciOffset('status', header.status, 'PCI_STATUS'),
  pciOffset('revision_id', header.revision_id, 'PCI_REVISION_ID'),
  pciOffset('class_prog', header.class_prog, 'PCI_CLASS_PROG'),
  pciOffset('class_device', header.class_device, 'PCI_CLASS_DEVICE'),
  pciOffset('cache_line_size', header.cache_line_size, 'PCI_CACHE_LINE_SIZE'),
  pciOffset('header_type', header.header_type, 'PCI_HEADER_TYPE'),
  pciOffset('bars', header.bars, 'PCI_BASE_ADDRESS_0'),
  pciOffset('cardbus_cis', header.cardbus_cis, 'PCI_CARDBUS_CIS'),
  pciOffset('subsystem_vendor_id', header.subsystem_vendor_id, 'PCI_SUBSYSTEM_VENDOR_ID'),
  pciOffset('subsystem_id', header.subsystem_id, 'PCI_SUBSYSTEM_ID'),
  pciOffset('rom_address', header.rom_address, 'PCI_ROM_ADDRESS'),
  pciOffset('capability_list', header.capability_list, 'PCI_CAPABILITY_LIST'),
  pciOffset('interrupt_line', header.interrupt_line, 'PCI_INTERRUPT_LINE'),
  pciOffset('interrupt_pin', header.interrupt_pin, 'PCI_INTERRUPT_PIN'),
  ...numberRows(COMMAND, 'PCI_COMMAND_'),
  ...numberRows(capabilities.CAP_ID, 'PCI_CAP_ID_', { VENDOR: 'PCI_CAP_ID_VNDR', EXPRESS: 'PCI_CAP_ID_EXP' }),
  pciOffset('msix', capabilities.MsixCap.size, 'PCI_CAP_MSIX_SIZEOF'),
  pciOffset('msix.control', msix.control, 'PCI_MSIX_FLAGS'),
  pciOffset('msix.table', msix.table, 'PCI_MSIX_TABLE'),
  pciOffset('msix.pba', msix.pba, 'PCI_MSIX_PBA'),
  pciOffset('msix enable', capabilities.MSIX_CONTROL.ENABLE, 'PCI_MSIX_FLAGS_ENABLE'),
  pciOffset('msix mask all', capabilities.MSIX_CONTROL.MASK_ALL, 'PCI_MSIX_FLAGS_MASKALL'),
  pciOffset('msix entry', capabilities.MsixEntry.size, 'PCI_MSIX_ENTRY_SIZE'),
  pciOffset('msix entry data', entry.data, 'PCI_MSIX_ENTRY_DATA'),
  pciOffset('msix entry control', entry.control, 'PCI_MSIX_ENTRY_VECTOR_CTRL'),
  pciOffset('msi.control', msi.control, 'PCI_MSI_FLAGS'),
  pciOffset('msi.address', msi.address, 'PCI_MSI_ADDRESS_LO'),
  pciOffset('msi.data', msi.data, 'PCI_MSI_DATA_64'),
  pciOffset('msi 64 bits', capabilities.MSI_CONTROL.BITS_64, 'PCI_MSI_FLAGS_64BIT'),
  pciOffset('msi enabled', capabilities.MSI_CONTROL.ENABLED, 'PCI_MSI_FLAGS_QSIZE'),
  pciOffset('express', capabilities.ExpressCap.size, 'PCI_CAP_EXP_ENDPOINT_SIZEOF_V1'),
  pciOffset('express.flags', express.flags, 'PCI_EXP_FLAGS'),
  pciOffset('express.device_cap', express.device_cap, 'PCI_EXP_DEVCAP'),
  pciOffset('express.device_control', express.device_control, 'PCI_EXP_DEVCTL'),
  pciOffset('express.device_status', express.device_status, 'PCI_EXP_DEVSTA'),
  pciOffset('express.link_cap', express.link_cap, 'PCI_EXP_LNKCAP'),
  pciOffset('express.link_control', express.link_control, 'PCI_EXP_LNKCTL'),
  pciOffset('express.link_status', express.link_status, 'PCI_EXP_LNKSTA'),
  pciOffset('FLR capable', capabilities.DEVCAP_FLR, 'PCI_EXP_DEVCAP_FLR'),
  pciOffset('FLR', capabilities.DEVCTL_FLR, 'PCI_EXP_DEVCTL_BCR_FLR'),

  ...Object.entries(REGION).map(([name, value]) => ({
    ours: `REGION.${name}`,
    value,
    c: `VFIO_PCI_${name}_REGION_INDEX`,
  })),
  ...Object.entries(IRQ).map(([name, value]) => ({
    ours: `IRQ.${name}`,
    value,
    c: `VFIO_PCI_${name}_IRQ_INDEX`,
  })),

  ...structRows(vfio.GroupStatus, 'vfio_group_status'),
  ...structRows(vfio.DmaMap, 'vfio_iommu_type1_dma_map'),
  ...structRows(vfio.DmaUnmap, 'vfio_iommu_type1_dma_unmap'),
  // The struct has grown; we know its first part.
  ...structRows(vfioAbi.DeviceInfo, 'vfio_device_info', {}, false),
  ...structRows(vfioAbi.RegionInfoHeader, 'vfio_region_info'),
  ...structRows(vfioAbi.CapHeader, 'vfio_info_cap_header'),
  ...structRows(vfioAbi.SparseCap, 'vfio_region_info_cap_sparse_mmap', {
    id: 'header.id',
    version: 'header.version',
    next: 'header.next',
  }),
  ...structRows(vfioAbi.SparseArea, 'vfio_region_sparse_mmap_area'),
  ...structRows(vfioAbi.IrqInfo, 'vfio_irq_info'),
  ...structRows(vfioAbi.IrqSet, 'vfio_irq_set'),
  ...numberRows(vfio.VFIO, 'VFIO_'),
  ...numberRows(vfio.GROUP_FLAG, 'VFIO_GROUP_FLAGS_'),
  ...numberRows(vfio.DMA_MAP_FLAG, 'VFIO_DMA_MAP_FLAG_'),
  ...numberRows(vfioAbi.DEVICE_FLAG, 'VFIO_DEVICE_FLAGS_'),
  ...numberRows(vfioAbi.REGION_FLAG, 'VFIO_REGION_INFO_FLAG_'),
  pciOffset('sparse mmap', vfioAbi.REGION_CAP_SPARSE_MMAP, 'VFIO_REGION_INFO_CAP_SPARSE_MMAP'),
  ...numberRows(vfioAbi.IRQ_INFO_FLAG, 'VFIO_IRQ_INFO_'),
  ...numberRows(vfioAbi.IRQ_SET, 'VFIO_IRQ_SET_', {
    DATA_MASK: 'VFIO_IRQ_SET_DATA_TYPE_MASK',
    MASK: 'VFIO_IRQ_SET_ACTION_MASK',
    UNMASK: 'VFIO_IRQ_SET_ACTION_UNMASK',
    TRIGGER: 'VFIO_IRQ_SET_ACTION_TRIGGER',
    ACTION_MASK: 'VFIO_IRQ_SET_ACTION_TYPE_MASK',
  }),
  { ours: 'NUM_REGIONS', value: vfioAbi.NUM_REGIONS, c: 'VFIO_PCI_NUM_REGIONS' },
  { ours: 'NUM_IRQS', value: vfioAbi.NUM_IRQS, c: 'VFIO_PCI_NUM_IRQS' },
];

/** Each row prints its number and value; a macro that is unknown prints nothing. */
function program(rows: readonly Row[]): string {
  const includes = [
    'stddef.h',
    'stdio.h',
    ...HEADERS.map((h) => `linux/${h}`),
    'linux/virtio_ring.h',
    'linux/vhost.h',
  ];
  const lines = rows.map(({ c, macro }, i) => {
    const print = `printf("${i} %llu\\n", (unsigned long long)(${c}));`;
    return macro ? `#ifdef ${macro}\n${print}\n#endif` : print;
  });
  return [...includes.map((h) => `#include <${h}>`), 'int main(void) {', ...lines, 'return 0; }', ''].join(
    '\n',
  );
}

function whyNot(): string | undefined {
  if (spawnSync('cc', ['--version']).status !== 0) return 'there is no C compiler';
  const missing = HEADERS.find((h) => !existsSync(`/usr/include/linux/${h}`));
  return missing && `there is no linux/${missing}`;
}

const reason = whyNot();

describe.skipIf(reason !== undefined)(
  `ABI of the Linux headers${reason ? ` (skipped: ${reason})` : ''}`,
  () => {
    let folder: string;
    let known: Map<number, number>;

    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), 'vhost-pci-abi-'));
      const source = join(folder, 'abi.c');
      writeFileSync(source, program(ROWS));
      execFileSync('cc', ['-o', join(folder, 'abi'), source]);
      const out = execFileSync(join(folder, 'abi'), { encoding: 'utf8' });
      known = new Map(
        out
          .trim()
          .split('\n')
          .map((line) => line.split(' ').map(Number) as [number, number]),
      );
    });

    afterAll(() => {
      if (folder) rmSync(folder, { recursive: true });
    });

    it('has the sizes, offsets and numbers that we declare', () => {
      const theirs = ROWS.map((row, i) => `${row.ours} = ${known.get(i) ?? row.value}`);
      expect(ROWS.map((row) => `${row.ours} = ${row.value}`)).toEqual(theirs);
    });

    it('knows nearly all of them', () => {
      // Macros newer than Debian 12's headers: a handful.
      const unknown = ROWS.filter((_, i) => !known.has(i)).map((row) => row.macro);
      expect(unknown.length).toBeLessThan(20);
      expect(known.size).toBeGreaterThan(130);
    });
  },
);
