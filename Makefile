# Lodestone: `make help` lists the targets. Every target sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?= .
QUERY ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SETUP_STAMP := $(VENV)/.setup
GEN_STAMP := build/gen/.stamp
CORPORA := build/corpora
PROTOS := $(shell find protos -name '*.proto' 2>/dev/null)
SOURCES := $(shell find services -name '*.py' 2>/dev/null)

.PHONY: help
help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(SETUP_STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Lodestone needs Python 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -y -q python3-venv; \
	  else echo "Python's venv module is missing. Install it first, e.g.: sudo apt-get install python3-venv" >&2; exit 2; fi; }
	@mkdir -p build && exec 9>build/.setup.lock && flock 9; \
	if [ $@ -nt requirements.lock ] && [ $@ -nt pyproject.toml ]; then exit 0; fi; \
	echo "Setting up $(VENV): a few minutes the first time ..."; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet torch==2.13.0; \
	$(BIN)/python -m pip install --quiet -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	touch $@

$(GEN_STAMP): $(SETUP_STAMP) protos/generate.py $(PROTOS)
	@$(BIN)/python protos/generate.py build/gen
	@$(BIN)/python -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_paths()["purelib"], "lodestone_gen.pth").write_text(str(pathlib.Path("build/gen").resolve()) + "\n")'
	@touch $@

build/.compiled: $(GEN_STAMP) $(SOURCES)
	@$(BIN)/python -m compileall -q services build/gen
	@touch $@

.PHONY: setup gen
setup: build/.compiled ## Makes .venv with all that is needed; seconds when it is there.
gen: $(GEN_STAMP) ## Generates code from protos/.

.PHONY: index
index: setup ## Indexes SOURCE=path (default: this folder) and shows a first search.
	@$(BIN)/lodestone index "$(SOURCE)" --first-search $(if $(QUERY),--query "$(QUERY)")

$(CORPORA)/.stamp: tests/corpora.txt $(SETUP_STAMP)
	@$(BIN)/python tests/support/corpora.py $(CORPORA)
	@touch $@

.PHONY: corpora
corpora: $(CORPORA)/.stamp ## Fetches the source trees that tests and benchmarks read.

# Tests hurt writes by strace, and try alerts on promtool; where these cannot be had they skip and say so.
build/.tools:
	@mkdir -p build
	@{ command -v strace && command -v promtool; } >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && { apt-get update -q && apt-get install -y -q --no-install-recommends strace prometheus || true; }; } || true
	@touch $@

# Most tests wait for services more than they work: two processes take half the time of one, and a
# third saves a fifth more on two cores, but tests that time something then wait for each other. The
# tests of a file stay together, as they share a server, a cluster or a converted model. Files are
# taken as they are found: the many short ones of `unit` come last, so that all processes end
# together.
TEST_WORKERS ?= 2
SHARED_OUT := --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test test-fast
test: setup corpora build/.tools ## Runs every test, with a real PostgreSQL and the real model.
	@$(BIN)/python -m pytest $(SHARED_OUT)

test-fast: setup ## Runs the tests that take no time: under two minutes.
	@$(BIN)/python -m pytest $(SHARED_OUT) -m "not slow and not gpu"

.PHONY: test-nightly
test-nightly: setup ## Runs fault tests and the walks of the queue's state machine, 200 seeds each, and all manifests: an hour or two.
	@LODESTONE_TEST_SEEDS=200 LODESTONE_TEST_SOAK_SECONDS=600 $(BIN)/python -m pytest tests/faults \
	  tests/integration/test_index_queue_machine.py
	@LODESTONE_TEST_COMBINATIONS=all $(BIN)/python -m pytest tests/deploy/test_deploy_k8s.py \
	  tests/deploy/test_deploy_k8s_storage.py tests/deploy/test_deploy_flows.py

.PHONY: lint format
lint: setup ## Runs ruff, mypy, import-linter and buf.
	@$(BIN)/ruff format --check services tests protos deploy
	@$(BIN)/ruff check services tests protos deploy
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/buf lint build/gen/lodestone.binpb --config protos/buf.yaml

format: setup ## Formats code and contracts.
	@$(BIN)/ruff format services tests protos deploy
	@$(BIN)/ruff check --fix --quiet services tests protos deploy || true
	@$(BIN)/buf format --write protos

.PHONY: bench bench-embed
bench: setup corpora ## Measures against the plain library; the last line is JSON.
	@$(BIN)/python -m tests.bench.main

# A reference of the benchmark, not of the services: it stays out of their environment.
build/onnx: tests/bench/onnx_runtime.txt $(SETUP_STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ -r tests/bench/onnx_runtime.txt
	@touch $@

bench-embed: setup corpora build/onnx ## Measures the embed service; the last line is JSON.
	@$(BIN)/python -m tests.bench.suite embed

.PHONY: bench-io
bench-io: setup corpora ## Measures the io service against find, git and one core; the last line is JSON.
	@$(BIN)/python -m tests.bench.suite io

.PHONY: bench-gpu gpu-kit
bench-gpu: setup corpora ## Measures torch on a GPU against the plain library, and runs its tests; says so where there is none. PARTS="rates graphs" runs some.
	@$(BIN)/python -m tests.bench.gpu $(PARTS) || test $$? = 77

GPU_PYTHON ?= 3.12
gpu-kit: setup corpora ## Packs build/gpu-kit, by which a machine with torch and no network runs bench-gpu; GPU_PYTHON is its release of Python.
	@$(BIN)/python -m tests.bench.gpu_kit pack build/gpu-kit --python $(GPU_PYTHON)

.PHONY: bench-indexer
bench-indexer: setup ## Measures the indexer on generated trees; the last line is JSON.
	@$(BIN)/python -m tests.bench.suite indexer

.PHONY: reranker
reranker: setup corpora ## Trains a cross-encoder on pinned packages into build/reranker: an hour at most, once its questions are made.
	@$(BIN)/python -m tests.eval.train_reranker

.PHONY: eval eval-labelled
eval: setup corpora ## Measures search by tasks made of pinned packages; WRITE=1 renews the page; RERANKER=folder adds a cross-encoder, TRY=1 with shares of its order; SHAPES=1 asks by code and paths.
	@$(BIN)/python -m $(if $(SHAPES),tests.eval.shapes $(if $(TRY),--try),tests.eval.$(if $(and $(RERANKER),$(TRY)),shares,offline) $(if $(WRITE),--write) $(if $(RERANKER),--reranker "$(RERANKER)"))

QUESTIONS ?= ../shared/retrieval/dev
SET ?= dev
eval-labelled: setup ## Measures search by labelled questions over repositories in build/retrieval.
	@$(BIN)/python -m tests.eval.labelled --set $(SET) --questions $(QUESTIONS) $(if $(ABLATE),--ablate) $(if $(RERANKER),--reranker "$(RERANKER)")

.PHONY: dashboards
dashboards: setup ## Writes the JSON of Grafana's dashboards, and alerts for the Prometheus operator.
	@$(BIN)/python -m deploy.monitoring.dashboards

.PHONY: docs
docs: setup ## Writes the page of all settings.
	@$(BIN)/python -m deploy.reference

.PHONY: bench-search
bench-search: setup corpora ## Measures search over large workspaces; the last line is JSON.
	@$(BIN)/python -m tests.bench.suite search

.PHONY: clean
clean: ## Removes .venv and everything built; indexes stay.
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
