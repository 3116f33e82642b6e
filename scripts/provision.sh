#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine ready for `make test`: Go from the
# distribution, which fetches the toolchain that go.mod names, and what
# scripts/setup.sh installs.
set -euo pipefail
cd /vagrant
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends make >/dev/null
command -v go >/dev/null || apt-get install -y -qq --no-install-recommends golang-go >/dev/null
scripts/setup.sh
