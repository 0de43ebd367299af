# Two commands: `make demo` and `make test`. Each first makes .venv, from the hash-pinned constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?=
# One process more than cores: most tests wait. Whoever is done takes over what others have before them.
PYTEST = $(BIN)/pytest -n 3 --dist worksteal

.PHONY: help setup demo test coverage check bench chaos docs lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## only make .venv

demo: $(READY)  ## real work through real parts, in a minute
	@$(BIN)/jobq demo

test: $(READY)  ## all checks, then all tests
	@$(SHELL) tests/support/get-redis.sh $(VENV)/redis & redis=$$!; $(MAKE) check; wait $$redis
	@echo "test: pytest in 3 processes"
	@$(PYTEST)

coverage: $(READY)  ## all tests, and which lines and branches of jobq they reach
	@$(PYTEST) --cov --cov-report=term

check: $(READY)  ## format, lint, types, layers, documentation
	@echo "check: ruff format"
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@echo "check: ruff lint"
	@$(BIN)/ruff check --quiet .
	@echo "check: mypy --strict"
	@$(BIN)/mypy
	@echo "check: import layers"
	@$(BIN)/lint-imports
	@$(MAKE) docs

docs: $(READY)  ## the documentation, warnings are errors
	@echo "docs: docs/_build/html"
	@$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(READY)  ## measure against ten other queues; ARGS="--growth", "--full", "--quick"
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(READY)  ## break workers and Redis and see what is lost, then the long model check; ONLY="FI-01 FI-02", EFFORT=0.25
	@$(BIN)/python -m tests.chaos $(ONLY) --effort $(or $(EFFORT),1)
ifeq ($(ONLY),)
	@$(BIN)/pytest -m chaos --timeout 7200
endif

lock: $(READY)  ## pin the newest versions in constraints.txt
	@echo "# Made by 'make lock': every extra and dev, for Python 3.11 to 3.13." > $(VENV)/constraints.txt
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet >> $(VENV)/constraints.txt
	@if grep -nE '://|file:|(^|[^-])@' $(VENV)/constraints.txt; then echo "lock: a host or a path got in"; exit 1; fi
	@mv $(VENV)/constraints.txt constraints.txt
	@echo "lock: constraints.txt pins $$(grep -c == constraints.txt) packages"

clean:  ## remove .venv, caches and what was built
	@rm -rf $(VENV) build dist docs/_build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@rm -rf .import_linter_cache && find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done"

# A python3.12 on PATH may be a shim of a version that is not there: only one that runs counts.
# -c beside -r: a requirement with extras (coverage[toml]) is held to its pin too, however new the release on the index.
$(READY): constraints.txt pyproject.toml
	@SECONDS=0; \
	good='import ensurepip, pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	if ! $(BIN)/python -c "$$good" 2>/dev/null; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11 ""; do \
			if [ -z "$$python" ]; then echo "setup: needs Python 3.11, 3.12 or 3.13 with venv and pip" >&2; exit 1; fi; \
			if "$$python" -c "$$good" 2>/dev/null; then break; fi; \
		done; \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	$(BIN)/python -m pip install --quiet --require-hashes -r constraints.txt -c constraints.txt; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .; \
	touch $@; \
	echo "setup: $(VENV) with $$($(BIN)/python --version), $$(grep -c == constraints.txt) pinned packages and jobq, in $$SECONDS s"
