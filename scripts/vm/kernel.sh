#!/usr/bin/env bash
# Gets one of Debian's cloud kernels into the cache, unless it is there, and prints
# its directory: vmlinuz, initrd (which mounts /dev/vda and starts /vm/init in it)
# and modules/. kernel.sh 5.10|6.1|6.12
set -euo pipefail
cache=${DEPLOYX_TEST_CACHE:-/var/cache/deployx-test}
declare -A suites=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie)
version=$1
suite=${suites[$version]:?the kernels are ${!suites[*]}}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$("$(dirname "$0")/../mirror.sh")

mkdir -p "$cache"
exec 9>"$cache/kernel.lock"
flock 9
dir=$cache/kernel-$version-$(sha256sum "$0" | cut -c1-12)
if [ ! -e "$dir" ]; then
	rm -rf "$cache/kernel-$version"-*
	work=$(mktemp -d "$cache/making.XXXXXX")
	trap 'rm -rf --one-file-system "$work"' EXIT
	mkdir -p "$work"/apt/{lists/partial,archives/partial} "$work/deb" "$work/out" "$work/initrd"/{bin,dev,proc,root,modules}

	# An apt of its own, which knows that suite alone.
	echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$work/apt/sources.list"
	: >"$work/apt/status"
	apt=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/apt/lists"
		-o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt" -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
	apt-get "${apt[@]}" -qq update
	package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p')
	case $package in linux-image-"$version".*) ;; *) echo "$suite has $package, and not $version" >&2; exit 1 ;; esac
	(cd "$work/apt" && apt-get "${apt[@]}" -qq download "$package" busybox-static >/dev/null)
	dpkg-deb -x "$work"/apt/linux-image-*.deb "$work/deb"
	dpkg-deb -x "$work"/apt/busybox-static_*.deb "$work/busybox"

	cp "$work"/deb/boot/vmlinuz-* "$work/out/vmlinuz"
	mods=$work/deb/lib/modules
	[ -d "$mods" ] || mods=$work/deb/usr/lib/modules
	release=$(ls "$mods")
	mkdir -p "$work/base/lib"
	mv "$mods" "$work/base/lib/modules"
	depmod -b "$work/base" "$release"
	cp -r "$work/base/lib/modules" "$work/out/modules"

	cp "$work/busybox/bin/busybox" "$work/initrd/bin/busybox" 2>/dev/null || cp "$work/busybox/usr/bin/busybox" "$work/initrd/bin/busybox"
	n=0
	for m in virtio_pci virtio_blk ext4; do
		modprobe -S "$release" -d "$work/base" --show-depends "$m" | awk '$1 == "insmod" {print $2}'
	done | awk '!seen[$0]++' | while read -r file; do
		n=$((n + 1))
		name=$(printf '%02d' $n)-$(basename "$file")
		case $file in
		*.xz) xz -dc "$file" >"$work/initrd/modules/${name%.xz}" ;;
		*) cp "$file" "$work/initrd/modules/$name" ;;
		esac
	done
	cat >"$work/initrd/init" <<-'INIT'
		#!/bin/busybox sh
		bb=/bin/busybox
		$bb mount -t devtmpfs dev /dev
		$bb mount -t proc proc /proc
		for m in /modules/*; do $bb insmod $m || echo "insmod $m"; done
		until [ -b /dev/vda ]; do $bb usleep 20000; done
		$bb mount -t ext4 /dev/vda /root || exec $bb sh
		$bb umount /proc
		$bb mount --move /dev /root/dev
		exec $bb switch_root /root /vm/init
	INIT
	chmod +x "$work/initrd/init"
	(cd "$work/initrd" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/out/initrd"
	mv "$work/out" "$dir"
fi
echo "$dir"
