# `make` lists the targets. Everything is installed into .venv, in the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs format browser audit clean

help: ## show this list
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

demo: setup ## train on the built-in scenes and print the result
	$(BIN)/coterie run recipe=demo --update

test: ## run all checks: ruff, mypy, the site of the documents, pytest
	@$(MAKE) --no-print-directory --jobs lint docs browser
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup ## run ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: setup ## build the site of the documents into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

format: setup ## put the code in ruff's format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

browser: ## find a browser for the tests of pages, or install Debian's Chromium where we are root
	@for name in $(COTERIE_CHROMIUM) chromium chromium-browser google-chrome; do \
		command -v "$$name" > /dev/null 2>&1 && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then \
		echo "Installing Chromium for the tests of pages."; \
		{ apt-get -o Acquire::Retries=1 update && \
		  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; \
		} > /dev/null 2>&1 && exit 0; \
	fi; \
	echo "note: no Chromium or Chrome is here, so the tests of pages are skipped"

audit: ## look up known weaknesses of the pinned versions; skips where no advisories can be reached
	@$(PYTHON) -m venv build/audit
	@if build/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'; \
	then build/audit/bin/python -m benchmarks.audit; \
	else echo "note: skipped, since pip-audit cannot be installed"; fi

setup: $(INSTALLED) ## make .venv with pinned versions, where it is missing or out of date

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "Coterie needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)"; \
		echo "Name another: make setup PYTHON=python3.12"; exit 1; } >&2
	@echo "Setting up $(VENV) with pinned versions. The first time downloads several gigabytes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove .venv, caches and builds; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
