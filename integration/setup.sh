#!/bin/sh
# Installs what the tests with real servers need: Node's socket.io (from the
# lock file) and Debian's python-socketio. For a fresh machine, as root; does
# nothing the second time. Needs Node 18 or later and npm.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

if ! /usr/bin/python3 -c 'import socketio, aiohttp' 2>/dev/null; then
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-socketio python3-aiohttp
fi

node=$here/backends/node
if ! cmp -s "$node/package-lock.json" "$node/node_modules/.installed-from"; then
	npm ci --prefix "$node" --no-audit --no-fund --ignore-scripts
	cp "$node/package-lock.json" "$node/node_modules/.installed-from"
fi
