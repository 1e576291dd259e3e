#!/usr/bin/env bash
# fuzz.sh TIME: runs every fuzz target, those of the modules in hack included, for TIME each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
time=${1:-10s}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | awk '{print $2}' | sort -u | while read -r target; do
		echo "fuzz $dir $target"
		(cd "$dir" && go test . -run '^$' -fuzz "^$target\$" -fuzztime "$time") >/tmp/fuzz.$$ 2>&1 || { cat /tmp/fuzz.$$; exit 1; }
	done
done
rm -f /tmp/fuzz.$$
