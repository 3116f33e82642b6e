#!/usr/bin/env bash
# Unpacks nginx, redis and PostgreSQL, with the libraries that this machine lacks,
# in the cache, unless they are there, and prints the directory. Nothing is
# installed: no daemon starts, no cluster is made, no user is added. Root, on
# Debian or Ubuntu: the packages are those that this machine's apt would install.
#
# DEPLOYX_TEST_CACHE names another cache.
set -euo pipefail
cache=${DEPLOYX_TEST_CACHE:-/var/cache/deployx-test}
# shellcheck source=/dev/null
dir=$cache/services-$({ . /etc/os-release; echo "1 $ID ${VERSION_ID:-sid}"; } | sha256sum | cut -c1-12)

[ ! -d "$dir" ] || { echo "$dir"; exit; }
mkdir -p "$cache"
exec 9>"$cache/services.lock"
flock 9
[ ! -d "$dir" ] || { echo "$dir"; exit; }
work=$(mktemp -d "$cache/services.XXXXXX")
trap 'rm -rf "$work"' EXIT

versioned() { apt-cache depends postgresql | sed -n 's/.*Depends: \(postgresql-[0-9]*\)$/\1/p'; }

# --reinstall: what this machine has installed is wanted here all the same.
download() {
	mkdir -p "$work/debs/partial"
	apt-get install -qq -y --download-only --reinstall --no-install-recommends \
		-o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root -o DPkg::Lock::Timeout=300 \
		nginx redis-server redis-tools "$pg" "${pg/postgresql-/postgresql-client-}" >"$work/log" 2>&1
}
pg=$(versioned)
if [ -z "$pg" ] || ! download; then # lists that are too old, or none
	apt-get update -qq
	pg=$(versioned)
	download || { cat "$work/log" >&2; echo "apt-get did not bring the servers that the tests need" >&2; exit 1; }
fi
mkdir "$work/root"
for deb in "$work"/debs/*.deb; do
	dpkg-deb -x "$deb" "$work/root"
done
rm -rf "$work"/root/usr/share/{doc,man,locale,postgresql/*/man} "$work"/root/usr/include
chmod 755 "$work/root"
rm -rf "$cache"/services-*/ # of another release
mv "$work/root" "$dir"
echo "$dir"
