# The one list of commands: people, the git hooks and CI run these and nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    ?= $(BIN)/python -m pip
JOBS   ?= 2

SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint fast bench quality format clean redis python

# Whoever is done takes from what the others have still to do; handed out beforehand, the last share kept one alone.
PYTEST := $(BIN)/pytest -n $(JOBS) --dist worksteal

# $(call need,PACKAGE,COMMAND) - Debian's PACKAGE, unless COMMAND already succeeds. Root installs it; others
# are told how.
define need
@if ! { $(2); } >/dev/null 2>&1; then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "installing $(1)"; \
    apt-get update -qq </dev/null; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) </dev/null; \
  else \
    echo "$(1) is missing. Install it (Debian, Ubuntu: sudo apt-get install $(1)) and run this again." >&2; \
    exit 1; \
  fi; \
fi
endef

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## make .venv with lurm and everything it needs; again only when pyproject.toml changes

demo: setup ## set up, build a release, serve it and ask it questions: make demo [DATA=<folder>]
	$(BIN)/lurm demo $(DATA)

test: setup redis ## set up and run every test
	$(PYTEST)

check: setup lint fast ## lint, types, contracts and the fast tests: some three minutes

lint: setup ## style, format, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: setup ## the fast tests
	$(PYTEST) -m "not slow"

bench: setup ## measure against peers and limits, write BENCHMARKS.md: make bench [NAME=boi] [SCALE=full]
	$(BIN)/lurm bench $(or $(NAME),all) --scale $(or $(SCALE),small) --keep

quality: setup ## build and judge datasets, and write QUALITY.md: make quality DATA=<folder of datasets>
	$(BIN)/lurm quality $(or $(DATA),data)

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove caches and the demo's leftovers; .venv and artifacts stay
	rm -rf .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find lurm service training tests -name __pycache__ -prune -exec rm -rf {} +

redis:
	$(call need,redis-server,command -v redis-server)

python:
	$(call need,python3,command -v $(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lurm needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Name another: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	$(call need,python3-venv,$(PYTHON) -c 'import ensurepip')

$(VENV)/installed: pyproject.toml | python
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install -e '.[dev]'
	touch $@
