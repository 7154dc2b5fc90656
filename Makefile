# What a user of this repository runs. `make help` lists it; docs/building.md explains it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

# Networks have bad moments; cargo's own three tries are over within seconds.
export CARGO_NET_RETRY ?= 10

# Prerequisites are steps, and one cargo at a time is enough for a machine.
.NOTPARALLEL:
.PHONY: help setup setup-demo setup-tests setup-cluster setup-kernels build demo test test-unit test-e2e test-cluster test-kernels cluster-up cluster-down bench bench-scale lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and running needs (again: a second)
	@scripts/setup.sh

setup-demo: ## Install what the demo needs besides: tcpdump, and an OpenTelemetry collector where Go is there
	@scripts/setup.sh --demo

setup-tests: ## Install what the tests need besides
	@scripts/setup.sh --tests

setup-cluster: ## Install what the test cluster needs: builds Kubernetes from its Go modules (once: half an hour of a processor)
	@scripts/setup.sh --tests --cluster

setup-kernels: ## Install what tests on other kernels need: QEMU, and Debian's kernels into the cache
	@scripts/setup.sh --kernels

build: setup ## Build everything, optimised, into target/release
	@echo "build: compiling (the first time takes some minutes)"
	cargo build --release --bins
	@node-proxy/cni/build.sh $(TARGET)/release/weft-cni >/dev/null

demo: setup-demo build ## Bring up a mesh of two nodes and tell its story, with evidence
	$(TARGET)/release/weft demo

# The kernel's tests first: right after the labs' namespaces are torn down, `ebpf-redirect/tests/churn` has lost a peer
# name (docs/kernel.md, Open).
test: test-unit test-e2e ## Set up what is missing and run every test that needs no Kubernetes (test-cluster runs those), the kernel's included

test-unit: setup-tests ## Run the tests of all crates but e2e (some of them load programs into the kernel)
	cargo test --workspace --exclude weft-e2e

test-e2e: setup-tests ## Run the tests on a mesh in network namespaces
	cargo build --workspace --all-targets
	cargo test -p weft-e2e

cluster-up: setup-cluster build ## Bring up a Kubernetes cluster of two nodes on this machine, with Weft in it (NAME=weft)
	@$(TARGET)/release/weft-cluster up --name $(or $(NAME),weft)
	@$(TARGET)/release/weft-cluster install --name $(or $(NAME),weft)

cluster-down: ## Take that cluster down, whatever state it is in (NAME=weft)
	@$(firstword $(wildcard $(TARGET)/release/weft-cluster $(TARGET)/debug/weft-cluster)) down --name $(or $(NAME),weft)

test-cluster: setup-cluster ## Run the tests on a Kubernetes API server and on a whole cluster, which they bring up and take down
	@deploy/render.sh --check
	cargo build --workspace --bins
	@node-proxy/cni/build.sh $(TARGET)/debug/weft-cni >/dev/null
	cargo test -p weft-control --test kubernetes
	cargo test -p weft-e2e --test cluster

test-kernels: setup-kernels ## Run the kernel programs' tests on other kernels, in QEMU (KERNELS="6.1 6.12"; default all)
	@ebpf-redirect/tests/kernels/run.sh $(KERNELS)

bench: setup-tests ## Measure against no mesh, interleaved in one run
	cargo build --release --bins
	$(TARGET)/release/weft bench --json $(TARGET)/bench.json

bench-scale: setup-cluster ## Measure the control plane on a Kubernetes API server with 1,000 and 10,000 Services and 100 nodes
	cargo bench -p weft-control --bench scale -- --page docs/benchmarks.md

lint: setup-tests ## Formatting, clippy without warnings, licences and sources of dependencies, shell scripts
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p weft-e2e --test cluster -- -D warnings
	cargo clippy -p weft-control --test kubernetes -- -D warnings
	cargo deny --all-features check licenses bans sources
	shellcheck -x scripts/*.sh deploy/*.sh e2e/cluster/*.sh e2e/cluster/images/*.sh ebpf-redirect/tests/kernels/*.sh .ci/run

clean: ## Remove labs that were left, and everything built
	@! [ -x $(TARGET)/release/weft ] || $(TARGET)/release/weft lab down --all
	@! [ -x $(TARGET)/debug/weft ] || $(TARGET)/debug/weft lab down --all
	@! [ -x $(TARGET)/debug/weft-cluster ] || $(TARGET)/debug/weft-cluster down --all
	@! [ -x $(TARGET)/release/weft-cluster ] || $(TARGET)/release/weft-cluster down --all
	cargo clean
