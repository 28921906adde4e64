# make demo   the whole job on a toy city, ending with a report
# make test   the tests          make lint   ruff, mypy, import-linter
# make bench  ours beside the plain formulation
# make docs   the site, in build/site
# make dist   the source archive and the wheel built from it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench docs dist

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[docs,test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/progeo demo

test: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.stage1
	$(BIN)/python -m benchmarks.stage2
	$(BIN)/python -m benchmarks.tuples
	$(BIN)/python -m benchmarks.aggregations
	$(BIN)/python -m benchmarks.places
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.localization
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.durability

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.installed
	$(BIN)/python -m build --outdir dist .
