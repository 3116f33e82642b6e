#!/usr/bin/env bash
# Makes a small Debian with systemd, as a tar file in the cache, unless it is
# there, and prints the file's name. Root; needs debootstrap.
#
# DEPLOYX_TEST_CACHE names another cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm packages=systemd,systemd-sysv,dbus
cache=${DEPLOYX_TEST_CACHE:-/var/cache/deployx-test}
tar=$cache/root-$suite-$(echo "1 $packages" | sha256sum | cut -c1-12).tar

make_root() { # in memory, since dpkg syncs every file
	rm -f "$cache"/root-*.tar # with other packages
	debootstrap --variant=minbase --include="$packages" "$suite" "$1/root" "$("$here/mirror.sh")" >"$1/log" 2>&1 ||
		{ tail -20 "$1/log" >&2; echo "debootstrap did not make a root" >&2; exit 1; }
	rm -rf "$1"/root/var/cache/apt/archives/*.deb "$1"/root/var/lib/apt/lists/* "$1"/root/usr/share/{doc,man,locale}/*
	: >"$1/root/etc/machine-id" # each machine makes its own
}

[ ! -e "$tar" ] || { echo "$tar"; exit; }
# shellcheck source=scripts/aside.sh
. "$here/aside.sh"
aside "$tar" make_root
