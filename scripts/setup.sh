#!/usr/bin/env bash
# Installs what the tests use, on Debian or Ubuntu. A second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# What the tests run; --prebuilt installs no more, for machines that get them as
# programs.
packages=(
	acl attr bash busybox btrfs-progs dash e2fsprogs git kmod patch procps python3 rsync
	sqlite3 strace tmux util-linux xfsprogs
)
[ "${1:-}" = --prebuilt ] || packages+=(
	build-essential ca-certificates debian-archive-keyring debootstrap nodejs npm
	python3-aiohttp python3-socketio sudo systemd-container
)
missing=()
for p in "${packages[@]}"; do
	case $p in
	nodejs | npm) command -v "${p/nodejs/node}" >/dev/null && continue ;; # from wherever it came
	esac
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || { echo "run me as root: I have to install ${missing[*]}" >&2; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "${1:-}" != --prebuilt ] || exit 0
scripts/services.sh >/dev/null
integration/setup.sh
