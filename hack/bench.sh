#!/usr/bin/env bash
# bench.sh [REGEXP]: runs the benchmarks, each a ratio in one run, and prints a table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
hack/tools.sh >/dev/null
hack/tools.sh distribution >/dev/null # the peer of the registry's
export CUMULET_REQUIRE_TOOLS=1 PATH=$(hack/tools.sh --print-bin):$PATH GOFLAGS=-buildvcs=false
go test ./bench -run '^$' -bench "${1:-.}" -benchtime 1x -timeout 40m
