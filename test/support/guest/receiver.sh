#!/bin/bash
# Builds what the receiving guest adds to the image of build.sh, and prints three lines: the path of the kernel, of the
# initramfs (build.sh's, this package as it is built now with the packages that it needs, more modules, receiver-init and -start)
# and of the disk (this machine's node with its libraries, an ext4 file system). Both are built anew only when one of
# their inputs has changed. Exit status 3: it cannot be had on this machine; the last line on stderr says why.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
dist=${VHOST_PCI_DIST:-$root/dist}
addon=${VHOST_PCI_ADDON:-$root/native/build/Release/vhost_pci.node}

unavailable() {
  echo "$1" >&2
  exit 3
}
[ -e "$dist/cli/main.js" ] && [ -e "$addon" ] || unavailable 'the package is not built; run npm run build'
for tool in mke2fs ldd; do command -v "$tool" >/dev/null || unavailable "$tool is not installed"; done
node=$(readlink -f "$(command -v node)")

base=$("$here/build.sh")
kernel=$(sed -n 1p <<<"$base")
base=$(sed -n 2p <<<"$base")
cache=$(dirname "$base")
kernel_set=$("$here/../fetch-debian.sh" kernel)
busybox=$("$here/../fetch-debian.sh" busybox)/usr/bin/busybox

# -- the disk ---------------------------------------------------------------------------------------------------
# What the programs load: the loader and the libraries, by the paths under which they ask for them.
libraries=$(for file in "$node" "$addon" "$root"/node_modules/@koromix/koffi-linux-x64/linux_x64/*.node; do
  [ -e "$file" ] && ldd "$file"
done | grep -o '/lib[^ ]*' | sort -u)
disk=$cache/receiver-$({ cat "$0"; "$node" --version; echo "$node"; echo "$libraries"; sha256sum $libraries; } | sha256sum | cut -c1-16).ext4
work=$(mktemp -d "$cache/.receiver.XXXXXX")
trap 'rm -rf "$work" "$work".*' EXIT
if [ ! -e "$disk" ]; then
  mkdir -p "$work/disk/bin"
  cp "$node" "$work/disk/bin/node"
  for library in $libraries; do install -D "$library" "$work/disk$library"; done
  kib=$(du -sk "$work/disk" | cut -f1)
  truncate -s $((kib + kib / 10 + 4096))k "$work.ext4"
  mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$work/disk" "$work.ext4"
  mv "$work.ext4" "$disk"
fi

# -- the initramfs ----------------------------------------------------------------------------------------------
# The packages that package.json names as needed at run time, and theirs.
packages=$("$node" -e '
  const { existsSync, readFileSync } = require("fs");
  const seen = new Set();
  const take = (name) => {
    const folder = `${process.argv[1]}/node_modules/${name}`;
    if (seen.has(name) || !existsSync(folder)) return;
    seen.add(name);
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(`${folder}/package.json`));
    for (const next of Object.keys({ ...dependencies, ...optionalDependencies })) take(next);
  };
  Object.keys(JSON.parse(readFileSync(`${process.argv[1]}/package.json`)).dependencies).forEach(take);
  console.log([...seen].join("\n"));
' "$root")

app=$work/root/opt/vhost-pci
mkdir -p "$app/native/build/Release" "$app/node_modules" "$work/root/modules" "$work/root/usr/bin"
(cd "$dist" && find . -name '*.js') | tar -C "$dist" -c -T - | tar -x -C "$work/root/opt/vhost-pci" --one-top-level=dist
cp "$root/package.json" "$app/"
cp "$addon" "$app/native/build/Release/"
for package in $packages; do
  mkdir -p "$app/node_modules/$(dirname "$package")"
  cp -r "$root/node_modules/$package" "$app/node_modules/$package"
done
printf '#!/bin/sh\nexec node /opt/vhost-pci/dist/cli/main.js "$@"\n' >"$work/root/usr/bin/vhost-pci"
chmod 755 "$work/root/usr/bin/vhost-pci"
install -m 755 "$here/receiver-init" "$work/root/receiver-init"
install -m 755 "$here/receiver-start" "$work/root/start"

# As build.sh does it: dependencies come before what needs them.
closure() {
  local name=${1//-/_} file dep
  file=$(find "$kernel_set/lib/modules" -name "${name//_/[-_]}.ko*" | head -1)
  [ -n "$file" ] || return 0 # built in
  local plain=$work/root/modules/$name.ko
  case $file in
    *.xz) "$busybox" unxz -c "$file" >"$plain" ;;
    *) cp "$file" "$plain" ;;
  esac
  for dep in $(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | tr , ' '); do closure "$dep"; done
  echo "$name.ko"
}
closure ext4 | awk '!seen[$0]++' >"$work/root/modules/ext4.list"

find "$work/root" -exec touch -h -d @0 {} +
(cd "$work/root" && find . -mindepth 1 | sort | "$busybox" cpio -o -H newc >"$work.cpio" 2>/dev/null)
# The kernel unpacks archives that follow each other.
image=$cache/receiver-$(cat "$base" "$work.cpio" | sha256sum | cut -c1-16).cpio
if [ ! -e "$image" ]; then
  find "$cache" -maxdepth 1 -name 'receiver-*.cpio' -mmin +600 -delete
  cat "$base" "$work.cpio" >"$work.whole"
  mv "$work.whole" "$image"
fi
echo "$kernel"
echo "$image"
echo "$disk"
