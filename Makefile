# Every chore of stfast, each by one word. `make` lists them; whichever comes first does the
# set-up, and what has not changed is not done again: $(VENV)/.packages stands for the
# environment, $(VENV)/.extension for the Rust sources built into it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python by name or path, and which versions of what it imports: newest, lowest or contract.
# Each pair has an environment of its own; .venv is the newest Python's with the newest packages.
PYTHON ?=
DEPS ?= newest
ifeq ($(MAKECMDGOALS),test-contract)
DEPS := contract
endif
CHOSEN := $(shell bash tools/python.sh "$(PYTHON)" "$(DEPS)")
# Stop here, or the chore would run with the default Python's environment instead.
ifneq ($(PYTHON),)
$(if $(CHOSEN),,$(error PYTHON: expected a Python 3.11 or newer, got $(PYTHON)))
endif
$(if $(filter newest lowest contract,$(DEPS)),,$(error DEPS: expected newest, lowest or contract, got $(DEPS)))
VENV := $(or $(firstword $(CHOSEN)),.venv)
# More words for demo, test, test-all and bench: make test ARGS="-k tiles"
ARGS ?=
# The words whose tests need no package but those of the group `core`.
CORE := readers bins h5 tiles hvg dataset loader
# Of each target of make fuzz.
SECONDS_EACH ?= 60

# The environment's tools come first, cmake among them; PyO3 and maturin ask its Python.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

PACKAGES := $(VENV)/.packages
EXTENSION := $(VENV)/.extension
RUST := Cargo.toml Cargo.lock \
    $(shell find rust/core rust/py -name '*.rs' -o -name '*.c' -o -name Cargo.toml)
# In CI the committed lock file must be right as it is.
LOCKED := $(if $(CI),--locked)

.PHONY: help demo paper test test-core test-contract test-all fuzz check fmt bench wheel docs dev clean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(EXTENSION)  ## Run the main job on a slide it makes (ARGS="--slide FOLDER": on yours)
	@stfast demo $(ARGS)

paper: $(EXTENSION)  ## Run the paper's experiments, on made tissue (ARGS="--dataset FOLDER": yours)
	@python tools/paper.py $(ARGS)

test: $(EXTENSION)  ## Run the fast tests: cargo's, then pytest's
	@cargo test --quiet $(LOCKED) -p stfast-core
	@pytest -m "not slow" $(ARGS)

test-core: $(EXTENSION)  ## Run the fast tests of counts, pictures and loading (DEPS=lowest)
	@pytest -m "not slow" $(ARGS) $(CORE:%=tests/test_%*.py)

test-contract: $(EXTENSION)  ## Run what the newest squidpy, spatialdata and annbatch judge
	@pytest $(ARGS) tests/test_contract.py

test-all: $(EXTENSION)  ## Run every test, the slow ones too
	@cargo test --quiet $(LOCKED) -p stfast-core
	@pytest $(ARGS)

fuzz: $(PACKAGES)  ## Fuzz each codec for a minute (needs cargo-fuzz; SECONDS_EACH=60)
	@export RUSTC_BOOTSTRAP=1; for target in $$(cargo fuzz list --fuzz-dir rust/fuzz); do \
	    echo "fuzzing $$target"; \
	    cargo fuzz run --fuzz-dir rust/fuzz --sanitizer none $$target -- \
	        -max_total_time=$(SECONDS_EACH) -rss_limit_mb=2048 -timeout=20 $(ARGS); \
	done

check: $(EXTENSION)  ## Check format, lints, types, stub and Rust docs; change nothing
	cargo fmt --all --check
	ruff format --check .
	ruff check .
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	zizmor --offline --quiet .github
	@if command -v actionlint >/dev/null; then actionlint; \
	    else echo "actionlint: not on PATH, so the workflows' expressions are not checked"; fi
	mypy
	python -m mypy.stubtest --mypy-config-file tools/stubtest.ini stfast._core
	cargo clippy --quiet $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet $(LOCKED) --no-deps -p stfast-core

fmt: $(PACKAGES)  ## Format all sources and mend what ruff can mend
	cargo fmt --all
	ruff check --fix --exit-zero --quiet .
	ruff format .

bench: $(EXTENSION)  ## Measure each word beside its peer
	@python -m benches $(ARGS)

wheel: $(EXTENSION)  ## Build the manylinux wheel into dist/ and try it where no compiler is
	python tools/notices.py THIRD_PARTY_NOTICES
	rm -rf dist
	bash tools/wheel.sh
	python tools/smoke.py dist/*.whl

docs: $(EXTENSION)  ## Write the reference of the Python and Rust names under target/
	pdoc --docformat numpy --output-directory target/docs stfast
	cargo doc --quiet --no-deps -p stfast-core
	@echo "target/docs/index.html target/doc/stfast_core/index.html"

dev: $(EXTENSION)  ## Make the environment, build the extension, install the commit hooks
	@if git rev-parse --git-dir >/dev/null 2>&1; then pre-commit install; fi
	@echo "ready: source $(BIN)/activate"

clean:  ## Delete all that was made here, environments and target too
	rm -rf .venv .venv-* target dist demo paper stfast-demo THIRD_PARTY_NOTICES \
	    $(wildcard python/stfast/_core.*so python/stfast/_core.*pyd) \
	    .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find python tests benches tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(PACKAGES): pyproject.toml tools/setup.sh
	@bash tools/setup.sh "$(wordlist 2,99,$(CHOSEN))" $(VENV) $(DEPS)
	@touch $@

$(EXTENSION): $(PACKAGES) $(RUST)
	maturin develop --release $(LOCKED) $$(command -v uv >/dev/null && echo --uv || true)
	@touch $@
