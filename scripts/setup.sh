#!/usr/bin/env bash
# Installs what the tests use, on Debian or Ubuntu. A second run does nothing.
set -euo pipefail
packages=(
	acl attr bash build-essential busybox btrfs-progs ca-certificates dash e2fsprogs git
	nodejs npm patch procps python3 python3-aiohttp python3-socketio rsync sqlite3
	strace sudo tmux util-linux xfsprogs
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
[ ! -x integration/setup.sh ] || integration/setup.sh
