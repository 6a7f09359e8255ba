# SPDX-License-Identifier: Apache-2.0
# Everything from a clean clone with python3 (3.11 to 3.13), python3-venv and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# `make run DEMO="--dir /tmp/demo --https 127.0.0.1:9443"`, `make test ARGS="-k smtp"`, `make bench ARGS=memory`
DEMO ?=
ARGS ?=
# `make simulate SEED=123 RUNS=1 VERBOSE=1`
SEED ?= 0
RUNS ?= 1000
VERBOSE ?=

.PHONY: help run test test-clients screenshots lint format bench simulate docs lock clean

help:
	@echo "make run            a demo service on unprivileged ports; Ctrl-C ends it"
	@echo "make test           every test whose peers are there (ARGS=-k ...)"
	@echo "make test-clients   install what some tests use from npm: mail clients, axe-core"
	@echo "make screenshots    every page of the dashboard, into build/screenshots"
	@echo "make lint           ruff and mypy --strict"
	@echo "make format         let ruff format everything"
	@echo "make bench          benchmarks beside Postfix (see bench/README.md)"
	@echo "make simulate       the delivery engine under misfortune (SEED=, RUNS=, VERBOSE=1; see docs/simulation.md)"
	@echo "make docs           the generated pages of docs/"
	@echo "make lock           pin the newest allowed dependencies with their hashes"
	@echo "make clean          remove what make made, the demo's mail and database too"

run: $(VENV)/.installed
	@exec $(BIN)/hepmaild demo $(DEMO)

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest $(ARGS)

test-clients:
	cd tests/clients && npm ci --no-audit --no-fund

screenshots: $(VENV)/.installed-test
	@$(BIN)/python -m tests.browser.screenshots build/screenshots

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test
	@$(BIN)/python -m bench $(ARGS)

simulate: $(VENV)/.installed-test
	@$(BIN)/python -m tests.simulation --seed $(SEED) --runs $(RUNS) $(if $(VERBOSE),--verbose)

docs: $(VENV)/.installed-test
	$(BIN)/python -m hepmaild.config_docs > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python -m hepmaild.metrics_docs < docs/metrics.md > docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md
	$(BIN)/python -m tools.state_picture > docs/smtp-states.svg.new
	mv docs/smtp-states.svg.new docs/smtp-states.svg
	$(BIN)/python -m tools.rfc_coverage > docs/rfc-coverage.md.new
	mv docs/rfc-coverage.md.new docs/rfc-coverage.md
	$(BIN)/python -m tools.decisions_index > docs/decisions.new
	mv docs/decisions.new docs/decisions/README.md

LOCK := $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-emit-options --extra build --extra postgresql

# Compiled with the oldest Python we support; valid for the newer ones too (no package here needs another one there).
lock: $(VENV)/.installed-test
	$(PIP) install --quiet 'pip-tools>=7.5'
	CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) -o requirements.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --extra test -c requirements.lock -o requirements-test.lock pyproject.toml

clean:
	rm -rf $(VENV) var build .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/clients/node_modules tests/clients/exim
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Built without an environment of its own: what builds it is pinned like everything else.
$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: requirements-test.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements-test.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
