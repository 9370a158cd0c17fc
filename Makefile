# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Every target sets up what it needs first and may be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
CLANG ?= $(shell command -v clang-19 || command -v clang)
# Labs of the kernel and cluster tests share two cores with the rest: more workers than this only slow each other.
WORKERS ?= 2

.PHONY: help setup protos build demo lab lab-down test test-unit test-model test-service test-kernel test-crash test-runtimes test-cluster test-acceptance test-fuzz test-faults fuzz fuzz-manifests test-kernels lint format lock bench complexity settings clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: ## install what is missing: Debian packages (as root) and .venv
	@scripts/setup

protos: setup ## generate gen/ from protos/
	@scripts/protos

build/fimbria-cni: services/loader/cni/fimbria_cni.c services/loader/cni/json_text.h services/loader/cni/loader_exchange.h | setup
	@mkdir -p build
	$(CLANG) -O2 -static -Wall -Wextra -Werror -Wshadow -o $@.tmp $<
	@mv $@.tmp $@

build/objects/manifest.json: $(wildcard bpf/*.c bpf/lib/*.h) services/loader/bpf/compiler.py services/loader/bpf/features.py services/loader/bpf/prebuilt.py | protos
	@$(PY) -m services.loader.bpf.prebuilt bpf build/objects
	@touch $@

build: protos build/fimbria-cni build/objects/manifest.json ## build the CNI plugin and the datapath's objects

demo: build ## run the two-node lab with pods, a policy and its trace
	@$(PY) -m cli.demo

lab: build ## start the lab; `.venv/bin/fimbria lab …` talks to it
	@.venv/bin/fimbria lab up

lab-down: setup ## take the lab down
	@.venv/bin/fimbria lab down

test: lint test-unit test-model test-service test-kernel test-crash test-runtimes test-fuzz test-faults test-cluster test-acceptance ## run the whole suite
	@echo "all suites passed"

test-unit: build ## pure code, seconds
	$(PY) -m pytest -q -n $(WORKERS) tests/unit

test-model: build ## the policy engine against a model of the APIs; FIMBRIA_MODEL_EXAMPLES=N tries N random worlds
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal tests/policy_model

test-service: build ## real servers over real sockets, SQLite files and PostgreSQL
	$(PY) -m pytest -q -n $(WORKERS) tests/service

test-kernel: build ## programs run by the kernel, devices in namespaces
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/kernel

test-crash: build ## kill the loader at named places and 200 times at random, under traffic
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/crash

test-runtimes: build ## containers under Podman and containerd
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/runtimes

test-fuzz: build ## 100,000 random packets through the programs and a model of them
	$(PY) -m pytest -q -n $(WORKERS) tests/fuzz

test-faults: build ## kill replicas and databases under load, and check the histories; FIMBRIA_FAULT_SECONDS=N for longer
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/faults

test-cluster: build ## the lab, as a user runs it
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/cluster

test-acceptance: build ## published network policy cases, as traffic
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal tests/conformance

lint: build ## ruff, mypy, buf, clang -Werror
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy services cli tests
	.venv/bin/buf lint
	.venv/bin/buf format --diff --exit-code protos
	$(PY) -m services.loader.bpf.compiler --check bpf

format: setup ## format the code in place
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/buf format -w protos

lock: setup ## resolve requirements/*.in into the lock files (needs uv in .venv)
	cd requirements && ../.venv/bin/uv pip compile -q dev.in --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" -o dev.lock
	cd requirements && ../.venv/bin/uv pip compile -q runtime.in --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" -c dev.lock -o runtime.lock

bench: build ## measure, beside peers, and write docs/benchmarks.md
	$(PY) -m tests.bench

fuzz: build ## the same without end, until programs and model differ; FUZZ="--seed N" repeats
	$(PY) -m tests.fuzz --endless $(FUZZ)

fuzz-manifests: build ## mutated manifests through the parsers for ten minutes; FUZZ="--seed N" repeats
	$(PY) -m tests.fuzz.manifests --seconds 600 $(FUZZ)

test-kernels: build ## the kernel and lab tests under Debian's 6.1 and 6.12, in virtual machines (docs/kernels.md)
	@scripts/setup --kernels
	$(PY) -m pytest -q -n $(WORKERS) tests/kernels

complexity: build ## instructions that the verifier processes, per program, into docs/complexity.md
	@$(PY) -m services.loader.bpf.complexity > docs/complexity.md.tmp
	@mv docs/complexity.md.tmp docs/complexity.md
	@cat docs/complexity.md

settings: build ## write docs/settings.md from the settings' definitions
	$(PY) -m services.chassis.settings_doc > docs/settings.md.tmp
	@mv docs/settings.md.tmp docs/settings.md

clean: ## remove generated files and caches
	rm -rf build gen gen.new gen.old .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## and the virtual environment
	rm -rf .venv
