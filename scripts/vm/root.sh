#!/usr/bin/env bash
# Makes the virtual machines' root, as a tar file in the cache, unless it is there,
# and prints its name: scripts/testroot.sh's, provisioned as Vagrant's machine is.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${DEPLOYX_TEST_CACHE:-/var/cache/deployx-test}
base=$(scripts/testroot.sh)
tar=$cache/vmroot-$( (echo "1 $base"; cat scripts/provision.sh scripts/setup.sh) | sha256sum | cut -c1-12).tar

make_root() {
	rm -f "$cache"/vmroot-*.tar
	mkdir "$1/root"
	tar -C "$1/root" --xattrs -xf "$base"
	mkdir -p "$1/root/vagrant"
	cp -r scripts "$1/root/vagrant/"
	cp /etc/resolv.conf "$1/root/etc/resolv.conf"
	# shellcheck disable=SC2016 # for the shell inside
	unshare --mount --pid --fork bash -ec 'mount -t proc proc "$1/proc"; exec chroot "$1" /vagrant/scripts/provision.sh --prebuilt' - "$1/root" >"$1/log" 2>&1 ||
		{ tail -20 "$1/log" >&2; echo "the root could not be provisioned" >&2; exit 1; }
	rm -rf "$1/root/vagrant" "$1"/root/var/cache/apt/archives/*.deb "$1"/root/var/lib/apt/lists/* "$1"/root/usr/share/{doc,man,locale}/*
}

[ ! -e "$tar" ] || { echo "$tar"; exit; }
# shellcheck source=scripts/aside.sh
. scripts/aside.sh
aside "$tar" make_root
