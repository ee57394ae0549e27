# Every target works on a bare machine with Python 3.11 or newer, pip and make:
# what it needs is installed once, into .venv, at the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# A process per core; the tests of a file stay together, since they share what is costly to make.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

# pip's isolated build of the package takes its constraints from the environment, under the one
# name or the other (before and after pip 25.3). The path is relative: one with spaces breaks it.
PIP_ENV := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	PIP_DISABLE_PIP_VERSION_CHECK=1

.DEFAULT_GOAL := help
.PHONY: help demo study test lint docs bench check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## complete a simulated cohort end to end; writes the report demo/report.html
	$(BIN)/attcl demo -o demo

study: $(READY)  ## run the papers' study on simulated patients; writes study-phantom/study.html
	$(BIN)/snakemake -s examples/study/Snakefile --configfile examples/study/phantom.yaml --cores all

test: $(READY)  ## run all tests except the slow ones
	$(PYTEST) -m "not slow"

lint: $(READY)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into site/; a dead link is an error
	$(BIN)/properdocs build --strict -f mkdocs.yml

bench: $(READY)  ## compare the speed of completion with the published algorithm, in one run
	$(BIN)/python benchmarks/complete.py

check: lint docs  ## run what continuous integration runs: lint, docs and all tests
	$(PYTEST)

clean:  ## remove .venv, demo/, study-phantom/, site/, build products and caches (never data/, out/ or runs/)
	rm -rf $(VENV) demo study-phantom site dist build .pytest_cache .ruff_cache .mypy_cache
	find attcl_cli tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    "error: $(PYTHON) is Python %d.%d, 3.11 or newer is needed\nhint: make PYTHON=python3.11" % v[:2])'
	@echo "installing attcl and the tools of its tests into $(VENV): about 2.5 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP_ENV) $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,docs]"
	@touch $@
