#!/usr/bin/env bash
# Runs every fuzz test of the module for a while: fuzz.sh GO TIME
set -euo pipefail
go=$1 time=$2

# fuzz runs one. The engine sometimes takes its own time limit for a failure
#: that, and nothing else, is tried again.
fuzz() {
	local out
	for try in 1 2 3; do
		if out=$("$go" test -run '^$' -fuzz "^$2\$" -fuzztime "$time" "$1" </dev/null 2>&1); then
			echo "$out" | tail -1
			return
		fi
		grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input' <<<"$out" || break
	done
	echo "$out"
	return 1
}

grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
	grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/^func //' | while read -r name; do
		echo "fuzz $(dirname "$file") $name"
		fuzz "$(dirname "$file")" "$name"
	done
done
