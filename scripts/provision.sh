#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine, with the sources in /vagrant, ready for
# `make test`: Go from the distribution, which fetches the toolchain that go.mod
# names, and what scripts/setup.sh installs. With --prebuilt the tests come as
# programs (scripts/vm-test.sh), and what builds them is left out.
set -euo pipefail
cd /vagrant
export DEBIAN_FRONTEND=noninteractive
if [ "${1:-}" != --prebuilt ]; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends make >/dev/null
	command -v go >/dev/null || apt-get install -y -qq --no-install-recommends golang-go >/dev/null
fi
scripts/setup.sh "$@"
