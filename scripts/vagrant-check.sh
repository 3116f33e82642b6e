#!/usr/bin/env bash
# Checks the Vagrantfile, with libvirt's provider, as far as it goes without a box.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export VAGRANT_HOME=$tmp/home VAGRANT_DOTFILE_PATH=$tmp/dot VAGRANT_DEFAULT_PROVIDER=libvirt
vagrant plugin list | grep -q '^vagrant-libvirt ' || { echo "vagrant does not have vagrant-libvirt: run scripts/setup-vm.sh" >&2; exit 1; }
vagrant validate
DEPLOYX_QEMU=1 vagrant validate
