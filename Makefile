# make quickstart   everything on this machine, with the demo; make down stops and removes it
# make test         all tests, installing what they need
# make help         the rest

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.Version=$(VERSION)
PKGS    ?= ./...
export GOFLAGS := -buildvcs=false -trimpath

.PHONY: help
help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: ## Install, build, start everything and run the demo (SANDBOX=gvisor|runc|kata)
	@hack/quickstart.sh up

.PHONY: down
down: ## Stop what quickstart started and remove all of it
	@hack/quickstart.sh down

.PHONY: build
build: ## Build the product into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/cis ./cmd/cisd ./cmd/pause

.PHONY: tools
tools: ## Build and install what quickstart and the tests need beside the product
	@hack/tools.sh

.PHONY: test
test: ## All tests, real components included (PKGS, TESTFLAGS)
	@hack/test.sh $(PKGS)

.PHONY: crash
crash: ## kill -9 of every process at random moments (CRASH_SEED, CRASH_KILLS, CRASH_RUNS)
	@hack/tools.sh >/dev/null && CRASH_KILLS=$(or $(CRASH_KILLS),25) CUMULET_REQUIRE_TOOLS=1 PATH="$$(hack/tools.sh --print-bin):$$PATH" go test ./hack/e2e -run TestCrashes -v -count=$(or $(CRASH_RUNS),5) -timeout 2h

.PHONY: churn
churn: ## A thousand instances that come and go: their ends, their output, their bill, what they leave (CHURN_INSTANCES, CHURN_SEED)
	@hack/tools.sh >/dev/null && CHURN_INSTANCES=$(or $(CHURN_INSTANCES),1000) CUMULET_REQUIRE_TOOLS=1 PATH="$$(hack/tools.sh --print-bin):$$PATH" go test ./hack/e2e -run TestChurn -v -count=1 -timeout 60m

.PHONY: test-kata
test-kata: ## Class kata in full, with virtual machines by emulation: all of the engine's suite, 100 MB of logs, pods from kubectl
	@hack/tools.sh >/dev/null && CUMULET_KATA_ALL=1 CUMULET_REQUIRE_TOOLS=1 PATH="$$(hack/tools.sh --print-bin):$$PATH" go test ./internal/testenv ./cis/engine/cri ./hack/e2e -run Kata -v -count=1 -p 1 -timeout 60m

.PHONY: kata-kills
kata-kills: ## kill -9 of virtual machines and all that is about them, and what is left then (CUMULET_TEST_SEED, CUMULET_KATA_KILLS)
	@hack/tools.sh >/dev/null && CUMULET_KATA_KILLS=$(or $(CUMULET_KATA_KILLS),100) CUMULET_REQUIRE_TOOLS=1 PATH="$$(hack/tools.sh --print-bin):$$PATH" go test ./cis/engine/cri -run TestKataKills -v -count=1 -timeout 90m

.PHONY: test-kata-host
test-kata-host: ## Kata with QEMU and KVM, as in production, in a host that is emulated (KATAHOST="-run NAME -v")
	@hack/tools.sh debian-runtime containerd cni images debian-kata kata-shim kata-host
	@PATH="$$(hack/tools.sh --print-bin):$$PATH" go run ./hack/katahost $(KATAHOST)

.PHONY: bench
bench: ## Benchmarks, each a ratio to a peer or to the bare mechanism in the same run
	@hack/bench.sh

.PHONY: lint
lint: ## golangci-lint, as .golangci.yml has it
	@hack/tools.sh lint >/dev/null && "$$(hack/tools.sh --print-bin)/golangci-lint" run $(PKGS)

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZTIME (default 10s)
	@hack/fuzz.sh $(or $(FUZZTIME),10s)
