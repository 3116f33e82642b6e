#!/usr/bin/env bash
# Runs the tests on other kernels, in virtual machines that need no KVM:
#
#   vm-test.sh [--smoke] [--cuts N] [KERNEL...]
#
# KERNEL is 5.10, 6.1 or 6.12 (default: all); each takes half an hour and more. --smoke
# does no more than run, diff, rollback, restore and one power cut: make vm-smoke.
# Everything that is reused lies in DEPLOYX_TEST_CACHE (/var/cache/deployx-test).
# As root; scripts/setup-vm.sh installs what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go} smoke='' cuts=8 kernels=()
[ "$(id -u)" = 0 ] || { echo 'run me as root: I make disks with devices in them' >&2; exit 1; }
while [ $# -gt 0 ]; do
	case $1 in
	--smoke) smoke=yes cuts=1 ;;
	--cuts) cuts=$2; shift ;;
	-*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	*) kernels+=("$1") ;;
	esac
	shift
done
[ ${#kernels[@]} -gt 0 ] || kernels=(5.10 6.1 6.12)

work=$(mktemp -d /var/tmp/deployx-vm.XXXXXX)
qemu=
clean() {
	[ -z "$qemu" ] || kill -9 "$qemu" 2>/dev/null || true
	rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 1' INT TERM

# programs builds what runs inside.
programs() {
	mkdir -p "$work/vm"
	CGO_ENABLED=0 "$go" build -trimpath -ldflags '-s -w' -o "$work/vm/deployx" ./cmd/deployx
	if [ -z "$smoke" ]; then
		for p in overlay fallback session; do CGO_ENABLED=0 "$go" test -c -ldflags '-s -w' -o "$work/vm/$p.test" "./$p"; done
	fi
	cp scripts/vm/{init,smoke,suite,ops,cut,check} "$work/vm/"
	mkdir -p "$work/vm/base/sub"
	echo base >"$work/vm/base/file"
	ln -s file "$work/vm/base/sub/link"
}

# disk KERNEL-DIR: a fresh disk for that kernel.
disk() {
	rm -rf "$work/root" "$work/disk"
	mkdir -p "$work/root"
	tar -C "$work/root" --xattrs -xf "$(scripts/vm/root.sh)"
	mkdir -p "$work/root/lib/modules"
	cp -r "$1/modules/." "$work/root/lib/modules/"
	cp -r "$work/vm" "$work/root/vm"
	ln -s /vm/deployx "$work/root/usr/local/bin/deployx"
	truncate -s 3G "$work/disk"
	mkfs.ext4 -q -d "$work/root" "$work/disk"
	rm -rf "$work/root"
}

# start DIR DISK LOG WORDS…: boot, with words for the job.
# Emulated, a string instruction (erms, fsrm) takes a step for each byte, and a guard
# against speculation guards nothing.
start() {
	local dir=$1 disk=$2 log=$3
	shift 3
	: >"$log"
	qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 1536 -display none -monitor none -no-reboot -nic none \
		-kernel "$dir/vmlinuz" -initrd "$dir/initrd" -append "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off $*" \
		-drive "file=$disk,if=virtio,format=raw,cache=unsafe" -serial "file:$log" </dev/null &
	qemu=$!
}

# hung LOG: the machine has said nothing for long. What it says comes in steps of
# seconds; how long all of it takes depends on what else this host has to do.
hung() { [ $(($(date +%s) - $(stat -c %Y "$1"))) -gt 900 ]; }

# finish LOG WORDS: wait for the machine to turn itself off; it must say that the job
# ended well.
finish() {
	while kill -0 "$qemu" 2>/dev/null; do
		! hung "$1" || { kill -9 "$qemu"; echo "it says nothing any more"; }
		sleep 0.2
	done
	wait "$qemu" || true
	qemu=
	tr -d '\r' <"$1" | grep -vE '^$|^=== ' | sed 's/^/    /'
	tr -d '\r' <"$1" | grep -q "^vm: $2 ended with 0$"
}

# cut DIR N: cut the power when N operations have been reported, and a bit later.
cut() {
	cp --sparse=always "$work/disk" "$work/cut"
	start "$1" "$work/cut" "$work/log" vm.job=cut
	local did
	until grep -q "^did $2" "$work/log"; do
		! hung "$work/log" && kill -0 "$qemu" || { cat "$work/log"; return 1; }
		sleep 0.05
	done
	sleep "0.$((RANDOM % 900 + 100))"
	kill -9 "$qemu"
	wait "$qemu" 2>/dev/null || true
	did=$(tr -d '\r' <"$work/log" | sed -n 's/^did \([0-9]*\)$/\1/p' | tail -1)
	start "$1" "$work/cut" "$work/log" vm.job=check "vm.did=$did"
	finish "$work/log" check
}

failed=()
programs
for k in "${kernels[@]}"; do
	began=$SECONDS
	dir=$(scripts/vm/kernel.sh "$k")
	disk "$dir"
	jobs=(smoke)
	[ -n "$smoke" ] || jobs+=(suite)
	for job in "${jobs[@]}"; do
		echo "== $k $job"
		cp --sparse=always "$work/disk" "$work/run"
		start "$dir" "$work/run" "$work/log" "vm.job=$job"
		job_began=$SECONDS
		finish "$work/log" "$job" || failed+=("$k $job")
		echo "== $k $job took $((SECONDS - job_began)) s"
	done
	for ((n = 1; n <= cuts; n++)); do
		echo "== $k power cut $n of $cuts"
		cut "$dir" $((RANDOM % 9 + 1)) || failed+=("$k power cut $n")
	done
	echo "== $k took $((SECONDS - began)) s"
done
[ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
echo "vm-test: ${kernels[*]}: passed"
