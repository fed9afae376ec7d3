# make help

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
TAG ?= 0.1.0
# Which image builder makes `make images`: docker, podman or buildah (as `buildah build`).
BUILDER ?= $(firstword $(foreach b,docker podman buildah,$(if $(shell command -v $(b)),$(b))) docker)
# Base images: an empty one to end with, and one with Rust and a C compiler to build in.
BASE ?= scratch
RUST_IMAGE ?= rust:1-bookworm

# Released programs take random numbers from the operating system (and the processor), as most TLS libraries do. By default
# aws-lc first gathers its own from the jitter of the processor's clock: 20 ms of each process's start, half of the time of
# etcd-tls-init.
build bench: export AWS_LC_SYS_NO_JITTER_ENTROPY = 1

# Released programs are linked statically: they run on any Linux of the architecture, in an image that holds nothing else, and have
# no pages of a C library that they do not use. etcd-tls-probe runs in etcd's container, with any C library there, or none.
# A position-independent program relocates some 20,000 pointers when it starts. Packed (DT_RELR), their table is a few KiB instead of
# half a MiB of the sidecar's memory. The C library reads that form since 2.36.
STATIC = -C target-feature=+crt-static $(shell printf '2.36\n%s\n' "$$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)" | sort -CV && echo -C link-arg=-Wl,-z,pack-relative-relocs)

.PHONY: help demo test check deny scripts fuzz build bench images dist etcd clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: etcd ## a three-member etcd under load changes every certificate; no cluster needed
	@$(CARGO) build --locked --workspace --bins
	$(TARGET)/debug/demo

test: etcd ## everything that this machine can test, and one line for each thing that it cannot
	@mkdir -p $(TARGET)
	@$(CARGO) build --locked --workspace --bins
	@status=0; CARGO=$(CARGO) tests/run.sh $(TARGET)/test.log || status=$$?
	@echo
	@tests/summary.sh $(TARGET)/test.log || status=1
	@exit $$status

check: deny scripts ## formatting, lints, dependencies and scripts
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --locked -p etcd-tls-webhook --lib -- -D warnings # as it is shipped, without the feature traces

# Licences, sources, and duplicate or banned crates (deny.toml). Advisories and yanked crates too, if the advisory database can be fetched.
deny: ## the dependencies against deny.toml
	@if ! command -v cargo-deny >/dev/null; then echo "SKIPPED cargo deny: not installed; enable with: cargo install cargo-deny --locked"; exit 0; fi
	@$(CARGO) deny --offline --log-level error check licenses bans sources
	@if timeout 60 $(CARGO) deny --log-level off fetch db >/dev/null 2>&1; then $(CARGO) deny --log-level error check advisories
	else echo "SKIPPED cargo deny, advisories: their database cannot be fetched; enable with a network that reaches it"; fi

# Warnings and errors: what is only advice differs between versions of shellcheck. A test does the same with the workflows' scripts and
# the recipes here.
scripts: ## shell scripts, by shellcheck
	@if ! command -v shellcheck >/dev/null; then echo "SKIPPED shellcheck: not installed; enable with: apt-get install shellcheck"; exit 0; fi
	@git grep -lzE '^#!/usr/bin/env bash$$' | xargs -0 shellcheck --external-sources --source-path=SCRIPTDIR --severity=warning

# Seconds for each target; TARGETS="review csr" for some alone.
FUZZ_SECONDS ?= 60
fuzz: ## readers of others' bytes under libFuzzer; FUZZ_SECONDS=3600 FUZZ_PROFILE=release for a night
	@tests/fuzz/run.sh $(FUZZ_SECONDS) $(TARGETS)

build: ## the binaries, as they are released
	$(CARGO) rustc --locked --release -p etcd-tls-webhook --bin etcd-tls-webhook -- $(STATIC)
	$(CARGO) rustc --locked --profile sidecar -p etcd-tls-sidecar --bin etcd-tls-sidecar -- $(STATIC)
	$(CARGO) rustc --locked --profile sidecar -p etcd-tls-sidecar --bin etcd-tls-probe -- $(STATIC)

bench: etcd build ## the figures, ours and the reference interleaved; SECTIONS="admission sidecar" for some alone
	@$(CARGO) build --locked --release -p tests --bin bench
	@mkdir -p $(TARGET)/shipped
	@ln -f $(TARGET)/release/etcd-tls-webhook $(TARGET)/sidecar/etcd-tls-sidecar $(TARGET)/sidecar/etcd-tls-probe $(TARGET)/shipped/
	ETCD_TLS_BIN_DIR=$(abspath $(TARGET))/shipped $(TARGET)/release/bench $(SECTIONS)

images: ## both images, by $(BUILDER)
	$(BUILDER) build --build-arg RUST_IMAGE=$(RUST_IMAGE) --build-arg BASE=$(BASE) -f Dockerfile.webhook -t etcd-tls-webhook:$(TAG) .
	$(BUILDER) build --build-arg RUST_IMAGE=$(RUST_IMAGE) --build-arg BASE=$(BASE) -f Dockerfile.sidecar -t etcd-tls-sidecar:$(TAG) .

# REGISTRY=example.com/etcd-tls is where install.yaml and the chart look for the images. ARCH=arm64 or amd64: for that architecture,
# with a cross compiler and qemu where it is not this machine's. DIST=<folder> names another place. DIST_PROFILE=dev builds quickly, to
# try it.
DIST ?= $(TARGET)/dist
dist: ## pack a release into $(TARGET)/dist: programs, images, install.yaml, chart, SBOMs, checksums
	@bin=$$(mktemp -d); trap 'rm -rf "$$bin"' EXIT
	export ARCH="$(ARCH)" CARGO="$(CARGO)" BIN=$$bin
	STATIC="$(STATIC)" dist/build.sh "$$bin"
	dist/dist.sh $(DIST)
	echo "in $(DIST):"; ls $(DIST)

# An etcd, where there is none: the distribution's. ETCD=<path> names another. (Debian starts a server of its own on the
# well-known ports; ours are on others.)
etcd:
	@if [ -n "$${ETCD:-}" ] || command -v etcd >/dev/null; then exit 0; fi
	@command -v apt-get >/dev/null || { echo "no etcd in PATH, and no apt-get to install one with: install etcd 3.4 or later"; exit 1; }
	@sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi
	@echo "installing etcd-server and etcd-client"
	@export DEBIAN_FRONTEND=noninteractive
	@$$sudo apt-get install -qq -y --no-install-recommends etcd-server etcd-client >/dev/null 2>&1 \
	  || { $$sudo apt-get update -qq && $$sudo apt-get install -qq -y --no-install-recommends etcd-server etcd-client >/dev/null; }
	@command -v etcd >/dev/null

clean: ## delete the build
	$(CARGO) clean
