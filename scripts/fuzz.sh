#!/usr/bin/env bash
# Runs every fuzz test of the module for a while: fuzz.sh GO TIME
set -euo pipefail
go=$1 time=$2
grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
	dir=$(dirname "$file")
	grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/^func //' | while read -r name; do
		echo "fuzz $dir $name"
		"$go" test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$dir" </dev/null
	done
done
