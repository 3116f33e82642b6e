#!/usr/bin/env bash
# Installs what make vm-test and make vagrant-check use, on Debian or Ubuntu. A
# second run does nothing.
set -euo pipefail
missing=()
for p in cpio debian-archive-keyring debootstrap e2fsprogs kmod qemu-system-x86 vagrant vagrant-libvirt xz-utils; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || { echo "run me as root: I have to install ${missing[*]}" >&2; exit 1; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
