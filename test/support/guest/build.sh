#!/bin/bash
# Builds the initramfs of the test guests (busybox, the kernel's own modules, init) and prints two lines: the path
# of the kernel and the path of the image. Both come from the sets that fetch-debian.sh unpacks; the image is built
# anew only when one of its inputs has changed.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernel_set=$("$here/../fetch-debian.sh" kernel)
busybox_set=$("$here/../fetch-debian.sh" busybox)
busybox=$busybox_set/usr/bin/busybox
cache=$(dirname "$kernel_set")

# What a peer and a receiving guest load; each brings its dependencies.
readonly modules='virtio_net pktgen tun vfio-pci vfio_iommu_type1 virtio-iommu virtio_blk'

kernel=$(echo "$kernel_set"/boot/vmlinuz-*)
key=$(cat "$here/init" "$here/build.sh" "$kernel_set/.packages" "$busybox_set/.packages" | sha256sum | cut -c1-16)
image=$cache/guest-$key.cpio
if [ ! -e "$image" ]; then
  work=$(mktemp -d "$cache/.guest.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work"/{bin,sbin,usr/bin,dev,proc,sys,tmp,run,root,etc,modules}
  cp "$busybox" "$work/bin/busybox"
  ln -s busybox "$work/bin/sh"
  install -m 755 "$here/init" "$work/init"
  # The package has no modules.dep (it is made at installation): follow the modules' own dependency records.
  closure() {
    local name=${1//-/_} file dep
    file=$(find "$kernel_set/lib/modules" -name "${name//_/[-_]}.ko*" | head -1)
    [ -n "$file" ] || return 0 # built in
    local plain=$work/modules/$name.ko
    case $file in
      *.xz) "$busybox" unxz -c "$file" >"$plain" ;;
      *) cp "$file" "$plain" ;;
    esac
    for dep in $(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | tr , ' '); do closure "$dep"; done
    echo "$name.ko"
  }
  for module in $modules; do closure "$module" | awk '!seen[$0]++' >"$work/modules/$module.list"; done
  (cd "$work" && find . -mindepth 1 | LC_ALL=C sort | "$busybox" cpio -o -H newc >"$work.cpio" 2>/dev/null)
  mv "$work.cpio" "$image"
fi
echo "$kernel"
echo "$image"
