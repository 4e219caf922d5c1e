# SPDX-License-Identifier: GPL-2.0
#
# Entry points of the project; "make help" lists them. The module itself is
# described in Kbuild and src/Kbuild.

# A kernel of the project's own: plain, debug, uml or uml-debug.
FLAVOUR ?= plain
# A kernel's build directory or installed headers instead, for instance
# /lib/modules/$(uname -r)/build.
KDIR ?=
# What "make bench" measures: how, and parts of metrics' names.
TIER ?= t1 t2 t4 t5
SUITE ?=
# How long "make fuzz" takes.
FUZZ_SECONDS ?= 3600
# What "make soak" compares with stock vhost_net.
SOAK_SEEDS ?= 0..10000

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The same tools everywhere: LLVM, Rust, bindgen and libclang.
environment := source scripts/environment.sh

rust_sources = $(shell find src -name '*.rs')

.PHONY: help
help:
	@echo 'Usage: make TARGET [FLAVOUR=plain|debug|uml|uml-debug] [KDIR=DIRECTORY]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16 | sed 's/^/  /'

.PHONY: setup
setup: ## install what building, testing and the demo need
	@scripts/setup

.PHONY: kernel
kernel: setup ## build the kernel FLAVOUR, unless that was done before
	@scripts/kernel build $(FLAVOUR)

# $(call kbuild,DIRECTORY,GOAL): builds in build/DIRECTORY. A real host's module
# needs the compiler family that its kernel was built with. Warnings are errors with the project's
# own compilers, but not on a host, which may have newer ones.
define kbuild
@$(environment); \
options=(); \
if [[ -n '$(KDIR)' ]]; then \
	kernel='$(KDIR)'; \
	if grep -qs '^CONFIG_CC_IS_CLANG=y' "$$kernel/.config"; then options+=("LLVM=-$$llvm_version"); fi; \
else \
	kernel=$$(scripts/kernel path $(FLAVOUR)); \
	export VHOST_IOCM_WERROR=y; \
	options+=("LLVM=-$$llvm_version"); \
	if [[ $(FLAVOUR) == uml* ]]; then options+=(ARCH=um); fi; \
fi; \
mkdir -p build/$(1); \
$(MAKE) --no-print-directory -C "$$kernel" M='$(CURDIR)' MO='$(CURDIR)/build/$(1)' "$${options[@]}" $(2)
endef
kernel = $(if $(KDIR),setup,kernel)
output = $(if $(KDIR),host,$(FLAVOUR))

.PHONY: modules
modules: $(kernel) ## build vhost_iocm.ko in build/FLAVOUR/src (in build/host/src with KDIR)
	$(call kbuild,$(output),modules)

# A directory of its own, since the linter stands in for the compiler.
.PHONY: clippy
clippy: $(kernel) ## lint the module and the crates, warnings are errors
	$(call kbuild,$(output)-clippy,CLIPPY=1 modules)
	@$(environment); cargo clippy --workspace --all-targets -- -D warnings

.PHONY: fmt-check
fmt-check: setup ## check the format of all Rust sources
	@$(environment); rustfmt --check --edition 2021 $(rust_sources)
	@$(environment); cargo fmt --all --check

.PHONY: check-layers
check-layers: setup
	@scripts/check-layers --self-test
	@scripts/check-layers

.PHONY: check-shell
check-shell: setup
	@shellcheck --external-sources $$(grep -rlE '^#!.*\b(bash|sh)$$' scripts tests .ci) tests/guests/suites/*

.PHONY: check-known-bugs
check-known-bugs: setup
	@scripts/check-known-bugs

.PHONY: check
check: check-layers check-known-bugs check-shell fmt-check clippy ## all static checks

.PHONY: test test-host test-vm test-guests
test: setup ## all tests: those of test-host, then those of test-vm
	@scripts/test host vm
test-host: setup ## static checks and tests that run on this machine itself
	@scripts/test host
test-vm: setup ## tests that run in kernels of the project's own
	@scripts/test vm
test-guests: setup ## guests' suites in User Mode Linux, whose kernel is built for it; make test runs them if it is there and time is left
	@scripts/test guests

.PHONY: measure
measure: setup ## run the tests that compare times and shares; the machine does nothing else
	@$(MAKE) --no-print-directory modules FLAVOUR=plain
	@$(environment); cargo build --release --workspace
	@scripts/vm --timeout 1800 -- env VHOST_IOCM_MEASURE=1 tests/selftests/run isolation malice fairness accounting limits

.PHONY: bench bench-check
bench: setup ## measure the module beside the kernel's vhost_net: TIER="t1 t2 t4 t5", SUITE for parts of metrics' names
	@$(MAKE) --no-print-directory modules FLAVOUR=plain
	@[[ '$(TIER)' != *t[45]* ]] || $(MAKE) --no-print-directory modules FLAVOUR=uml
	@$(environment); cargo build --release -p vhost-iocm-bench -p vhost-iocm-selftests
	@[[ '$(TIER)' != *t1* || ( -n '$(SUITE)' && '$(SUITE)' != *testpmd* ) ]] || tests/clients/build
	@[[ '$(TIER)' != *t4* ]] || { $(environment); tests/guests/image && tests/bench/services; }
	@mkdir -p build/bench
	@rm -f build/bench/*.svg build/bench/functions.txt
	@tests/bench/tiers '$(TIER)' $(SUITE) | tee build/bench/log | target/release/bench collect build/bench/results.json
	@target/release/bench plot build/bench/results.json build/bench
bench-check: override TIER = t1
bench-check: override SUITE = insns_per
bench-check: bench ## fail if instructions of a packet are more than 1 % above tests/bench/baseline.json
	@target/release/bench check build/bench/results.json tests/bench/baseline.json

.PHONY: fuzz
fuzz: setup ## fuzz the ring engine for FUZZ_SECONDS
	@tests/fuzz/run $(FUZZ_SECONDS)

.PHONY: soak
soak: setup ## compare rings of SOAK_SEEDS with stock vhost_net, migrate a guest, and run the long volumes of the selftests
	@$(MAKE) --no-print-directory modules FLAVOUR=plain
	@$(environment); cargo build --release --workspace
	@scripts/vm --timeout 14400 -- tests/conformance/run fuzz '$(SOAK_SEEDS)'
	@$(MAKE) --no-print-directory modules FLAVOUR=uml-debug
	@tests/guests/image
	@scripts/vm --flavour uml-debug --timeout 3600 -- tests/conformance/run
	@scripts/vm --flavour uml-debug --timeout 3600 -- tests/conformance/run fuzz 0..1000
	@scripts/vm --flavour uml-debug --timeout 3600 -- env VHOST_IOCM_MIGRATIONS=20 tests/guests/run migration
	@scripts/vm --timeout 7200 -- env VHOST_IOCM_MALICE=400000 VHOST_IOCM_STALL=60 tests/selftests/run malice isolation placement
	@$(MAKE) --no-print-directory modules FLAVOUR=debug
	@scripts/vm --flavour debug --timeout 7200 -- env VHOST_IOCM_MALICE=10000 VHOST_IOCM_CHAOS=10000 tests/selftests/run malice placement

.PHONY: demo
demo: setup ## watch guests being served by shared workers, and a device moving
	@scripts/demo

.PHONY: clean
clean: ## remove what was built in the checkout; kernels stay in the cache
	rm -rf build target
