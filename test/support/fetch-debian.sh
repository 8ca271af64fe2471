#!/bin/bash
# Unpacks Debian packages into a cache folder and prints where. Installs nothing, changes nothing on the host.
#
#   fetch-debian.sh qemu | kernel | busybox | dpdk | iperf3
#
# Each set is a folder NAME of $VHOST_PCI_CACHE (default: .cache at the top of the checkout). apt runs with a
# configuration of its own: private state and cache, an empty status file, and trixie + trixie-backports at the
# mirror that this machine's apt is configured for. Signatures are checked against the Debian archive keyring.
# A set appears whole or not at all (unpacked beside its place, then renamed); a second run finds it there.
# Exit status 3: it cannot be had on this machine; the last line on stderr says why.
set -euo pipefail

readonly release=trixie
readonly set_name=${1:?usage: fetch-debian.sh qemu|kernel|busybox|dpdk|iperf3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VHOST_PCI_CACHE:-$here/../../.cache}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

unavailable() {
  echo "$1" >&2
  exit 3
}

# The packages of a set, and whether their dependencies are wanted too. An empty status file means that the
# whole dependency tree, libc included, comes from one release and owes nothing to the host.
case $set_name in
  qemu) packages='qemu-system-x86' with_dependencies=1 suite=$release-backports ;;
  kernel) packages='linux-image-cloud-amd64' with_dependencies=0 suite=$release ;;
  busybox) packages='busybox-static' with_dependencies=0 suite=$release ;;
  dpdk) packages='dpdk-dev' with_dependencies=1 suite=$release ;;
  iperf3) packages='iperf3' with_dependencies=1 suite=$release ;;
  *) unavailable "no package set named $set_name" ;;
esac

target=$cache/$set_name
if [ -e "$target/.complete" ]; then
  echo "$target"
  exit 0
fi

for tool in apt-get apt-cache apt-config dpkg dpkg-deb flock; do
  command -v "$tool" >/dev/null || unavailable "$tool is not installed; packages can be fetched on Debian hosts only"
done
[ "$(dpkg --print-architecture)" = amd64 ] || unavailable 'the guests of the tests are x86-64; this host is not'

# One fetch at a time: whoever waits finds the set complete.
exec 9>"$cache/.lock"
flock -w 900 9 || unavailable 'another fetch has held the cache for 15 minutes'
if [ -e "$target/.complete" ]; then
  echo "$target"
  exit 0
fi

mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 2>/dev/null |
  awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
[ -n "$mirror" ] || unavailable 'apt on this machine knows no Debian mirror (run apt-get update once)'

# The keyring package of bookworm and later carries the keys of trixie.
keyring=
for candidate in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
  [ -r "$candidate" ] && keyring=$candidate && break
done
[ -n "$keyring" ] || unavailable 'no Debian archive keyring here (package debian-archive-keyring)'

apt_root=$cache/apt
mkdir -p "$apt_root"/{state/lists/partial,cache/archives/partial,empty}
: >"$apt_root/status"
cat >"$apt_root/sources.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $release $release-backports
Components: main
Signed-By: $keyring
SOURCES
{
  # How this machine reaches its mirror (proxies, time-outs) is the host's; hooks and the rest are not taken over.
  apt-config dump | grep '^Acquire::' | grep -v -i -E '^Acquire::(IndexTargets|Changelogs|AllowInsecure|AllowWeak)' || true
  cat <<CONF
Dir::State "$apt_root/state";
Dir::State::status "$apt_root/status";
Dir::Cache "$apt_root/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt_root/sources.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$apt_root/empty";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$apt_root/empty";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "$apt_root/empty";
Dir::Log "$apt_root/state";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
} >"$apt_root/apt.conf"
mkdir -p "$apt_root/sources.d"
mv "$apt_root/sources.sources" "$apt_root/sources.d/debian.sources"

export APT_CONFIG=$apt_root/apt.conf DEBIAN_FRONTEND=noninteractive
log=$cache/$set_name.log
run() {
  "$@" >>"$log" 2>&1 </dev/null || {
    tail -5 "$log" >&2
    unavailable "$set_name: '$*' failed, see ${log##*/} in the cache folder"
  }
}
: >"$log"

# Package lists are taken anew for each set; a set that is complete never gets here. By itself apt-get is content with
# lists that it could not fetch.
apt-get update -o APT::Update::Error-Mode=any >>"$log" 2>&1 </dev/null || {
  grep -E '^(E|W|Err):?' "$log" | tail -3 >&2 || true
  unavailable "$set_name: the package lists of $mirror cannot be fetched; is there a network? (${log##*/} in the cache folder)"
}

# Meta packages are replaced by what they stand for.
if [ "$set_name" = kernel ]; then
  packages=$(apt-cache depends --no-recommends "$packages" | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
  [ -n "$packages" ] || unavailable "$release has no cloud kernel image"
fi

work=$(mktemp -d "$cache/.$set_name.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs/partial" "$work/tree"
if [ "$with_dependencies" = 1 ]; then
  # shellcheck disable=SC2086
  run apt-get install -y --download-only -t "$suite" -o "Dir::Cache::archives=$work/debs" $packages
else
  # shellcheck disable=SC2086
  (cd "$work/debs" && run apt-get download -t "$suite" $packages)
fi
# A merged /usr from the start: packages unpack through these links.
mkdir -p "$work/tree/usr/bin" "$work/tree/usr/sbin" "$work/tree/usr/lib" "$work/tree/usr/lib64"
ln -s usr/bin "$work/tree/bin"
ln -s usr/sbin "$work/tree/sbin"
ln -s usr/lib "$work/tree/lib"
ln -s usr/lib64 "$work/tree/lib64"
for deb in "$work"/debs/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/tree" --keep-directory-symlink --no-same-owner 2>>"$log" ||
    unavailable "$set_name: ${deb##*/} does not unpack"
done
for deb in "$work"/debs/*.deb; do dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"; done >"$work/tree/.packages"
rm -rf "$work/tree/usr/share/doc" "$work/tree/usr/share/man"
touch "$work/tree/.complete"
rm -rf "$target"
chmod 755 "$work/tree"
mv "$work/tree" "$target"
echo "$target"
