#!/usr/bin/env bash
# Prints where Debian's packages come from: DEBIAN_MIRROR, or where this machine's
# apt gets them, or on another system the place that debootstrap knows.
set -euo pipefail
[ -z "${DEBIAN_MIRROR:-}" ] || { echo "$DEBIAN_MIRROR"; exit; }
mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk '$1 == "Debian" && $2 == "Debian" && $3 == "main" && !found { print $4; found = 1 }')
echo "${mirror:-$(sed -n 's/^DEF_MIRROR="\(.*\)"/\1/p' "$(command -v debootstrap)")}"
