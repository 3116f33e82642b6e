#!/usr/bin/env bash
# Shows run, diff and rollback on a directory that it makes: demo.sh DEPLOYX
set -euo pipefail
deployx=$(realpath "$1")
[ "$(id -u)" = 0 ] || { echo "the demo mounts a directory: run it as root (sudo make demo)" >&2; exit 1; }
dir=$(mktemp -d /var/tmp/deployx-demo.XXXXXX)
export DEPLOYX_STATE=$dir/state
tree=$dir/srv/app
cleanup() {
	"$deployx" --tree "$tree" --quiet rollback --all --drift drop >/dev/null 2>&1 || true
	rm -rf --one-file-system "$dir"
}
trap cleanup EXIT

mkdir -p "$tree/config"
echo 'port = 8080' >"$tree/config/app.conf"
for i in $(seq 1000); do echo "page $i" >"$tree/page$i.html"; done

show() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
d() { # the last argument of run is shell text: show it quoted
	if [ "$1" = run ]; then show deployx run -- "'${*: -1}'"; else show deployx "$@"; fi
	"$deployx" --tree "$tree" "$@"
}

echo "A tree of 1,000 pages and a configuration in $tree"
show ls "$tree" '| wc -l'; ls "$tree" | wc -l

d run -- 'sed -i s/8080/9090/ config/app.conf && echo release=2 > VERSION'
show cat config/app.conf; cat "$tree/config/app.conf"
d run -- 'cd config && export STAGE=prod && rm ../page*.html && echo "oops: $(ls .. | wc -l) files left"'
d run -- 'echo "the next command is still in $PWD, and STAGE is $STAGE"'
d log
d diff --stat
d rollback --last 2
show ls "$tree" '| wc -l'; ls "$tree" | wc -l
d redo
show ls "$tree" '| wc -l'; ls "$tree" | wc -l
d rollback --all
show cat config/app.conf; cat "$tree/config/app.conf"
show grep "$tree" /proc/self/mounts; grep "$tree" /proc/self/mounts || echo "(a plain directory again: nothing is mounted)"
