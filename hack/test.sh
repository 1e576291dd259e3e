#!/usr/bin/env bash
# test.sh [PACKAGE...]: installs what the tests need, then checks and tests, the fast things first.
#
#   TESTFLAGS=   more flags for go test, as -run X
#   LINT=0       without the linters
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
packages=("$@")
((${#packages[@]})) || packages=(./...)
all=0
[[ ${packages[*]} != ./... ]] || all=1
# A module of its own that has tests of its own.
kata() { (cd hack/kata && "$@"); }
began=$SECONDS
# One build cache for the checks, the product's build and the end-to-end tests: the same flags everywhere but for the race
# detector.
export GOFLAGS="-buildvcs=false -trimpath"
say() { printf '\n==> %s (%ds)\n' "$*" $((SECONDS - began)); }

say "format and vet"
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[[ -z $unformatted ]] || { printf 'not formatted by gofmt:\n%s\n' "$unformatted"; exit 1; }
CGO_ENABLED=0 go vet "${packages[@]}"
((all == 0)) || CGO_ENABLED=0 kata go vet ./...

say "tools"
hack/tools.sh
export CUMULET_REQUIRE_TOOLS=1 PATH=$(hack/tools.sh --print-bin):$PATH

if [[ ${LINT:-1} == 1 && -e .golangci.yml ]]; then
	say "lint"
	CGO_ENABLED=0 golangci-lint run "${packages[@]}"
	((all == 0)) || CGO_ENABLED=0 kata golangci-lint run --config ../../.golangci.yml ./...
fi

say "tests, with the race detector"
# Two packages at a time: the tests with real components want the machine for themselves.
CGO_ENABLED=0 go build -o bin/testsum ./hack/testsum
# shellcheck disable=SC2086
CGO_ENABLED=1 GOFLAGS=-buildvcs=false go test -json -race -count=1 -p 2 -timeout 30m ${TESTFLAGS:-} "${packages[@]}" 2>&1 | bin/testsum
if ((all)); then
	CGO_ENABLED=1 GOFLAGS=-buildvcs=false kata go test -json -race -count=1 ./... 2>&1 | bin/testsum
fi
say "done"
