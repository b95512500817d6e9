# The one way to do each thing. `make serve` and `make test` work from a clean clone; a second call takes seconds.

PYTHON ?= python3
PORT ?= 3000
MODEL_ID ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
CLIENTS_VENV := .venv-clients
BENCH_WORK := .bench
PIP := $(BIN)/python -m pip --disable-pip-version-check
CARGO := cargo --locked
PYTHON_CODE := server integration-tests tools docs

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find kernels launcher programs router -name '*.rs' -o -name 'Cargo.toml')
PACKAGING := pyproject.toml $(wildcard tools/*.py) $(shell find programs/text_gen.data -type f) proto/shard.proto

.PHONY: help serve install test test-rust test-python test-integration test-clients gpu-check bench bench-peers lint fmt proto clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

serve: install ## serve MODEL_ID (default: the demo model) on PORT
	$(BIN)/text-gen-launcher $(if $(MODEL_ID),--model-id $(MODEL_ID)) --port $(PORT) $(ARGS)

install: $(VENV)/.installed ## leave text-gen-launcher, -router and -server in .venv/bin

test: lint test-rust test-python test-integration ## lint, then every test

test-rust: ## the Rust tests, in the profile that ships
	$(CARGO) test --release --workspace

test-python: $(VENV)/.installed $(VENV)/.dev ## the tests of the shard
	$(BIN)/python -m pytest server/tests

test-integration: $(VENV)/.installed $(VENV)/.dev ## real processes, real HTTP
	$(BIN)/python -m pytest integration-tests --ignore integration-tests/more_clients

test-clients: $(VENV)/.installed $(CLIENTS_VENV)/.installed ## litellm and langchain, in an environment of their own
	LITELLM_LOCAL_MODEL_COST_MAP=True $(CLIENTS_VENV)/bin/python -m pytest integration-tests/more_clients --confcutdir integration-tests/more_clients

gpu-check: $(VENV)/.dev ## check the GPU path on the GPU at hand, then measure it (docs/gpu.md)
	PYTHONPATH=server:tools $(BIN)/python -m gpu_check $(ARGS)

lint: $(VENV)/.installed $(VENV)/.dev ## formatting, lints, types, import rules
	cargo fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev ## format everything
	cargo fmt --all
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/ruff check --fix $(PYTHON_CODE)

proto: $(VENV)/.runtime ## generate the gRPC modules of the shard (install does it too)
	$(BIN)/python tools/generate_proto.py

bench: $(VENV)/.installed $(VENV)/.dev ## measure ours beside the installed peers (ARGS: see docs/performance.md)
	PYTHONPATH=tools $(BIN)/python -m bench --work $(BENCH_WORK) $(ARGS)

bench-peers: $(VENV)/.dev ## install llama.cpp and vLLM from PyPI, for bench (minutes; ARGS="--only llama --jobs 1")
	PYTHONPATH=tools $(BIN)/python -m bench.peers $(BENCH_WORK)/peers $(ARGS)

clean: ## forget what was built; keeps the model caches
	rm -rf $(VENV) $(CLIENTS_VENV) target server/text_gen_server/pb server/text_gen_server/native/*.so

# Dependencies change rarely and take minutes, so that they have stamps of their own.
$(VENV)/.runtime: pyproject.toml tools/dependencies.py
	@command -v cargo >/dev/null || { echo "text-gen needs Rust: install it from https://rustup.rs and run make again" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "text-gen needs Python 3.11 or newer: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) tools/dependencies.py build runtime | xargs $(PIP) install --quiet
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PYTHON) tools/dependencies.py dev | xargs $(PIP) install --quiet
	$(PIP) install --quiet --no-deps text-generation==0.7.0 # it asks for huggingface_hub below 1, and works with newer ones
	touch $@

$(CLIENTS_VENV)/.installed:
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet pytest litellm mcp langchain-huggingface
	touch $@

# Editable: changes in server/ need no new install.
$(VENV)/.installed: $(VENV)/.runtime $(RUST_SOURCES) $(PACKAGING)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@
