# Needs Python 3.11 or newer (PYTHON=...) and make. Everything is installed into .venv; nothing is fetched but packages.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PORT ?= 5000

.PHONY: help setup train test test-slow test-faults lint docs ui sweep benchmark clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is as new as the last install that ended well; editing pins or metadata installs again.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]} is too old: make PYTHON=python3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing packages into .venv (2.5 GB with PyTorch): some minutes, once'
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]' -c constraints.txt
	@touch $@

setup: .venv/.installed  ## Make .venv with the pinned packages

train: setup  ## Make the phantom cohort, train on it, print where the results are (ARGS='epochs=5')
	$(BIN)/python -m brainseg.train $(ARGS)

test: setup  ## Run the test suite, two files at a time (ARGS='-k split')
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: setup  ## Crashes, full disks, damaged and hostile files, many times over (about an hour)
	$(BIN)/python -m pytest -m faults --timeout 1800 $(ARGS)

lint: setup  ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup  ## Build the documentation into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

ui: setup  ## Serve the MLflow page on this machine and print its link (PORT=5000)
	$(BIN)/python scripts/ui.py --port $(PORT)

sweep: setup  ## Compare depths on the phantom, two seeds each
	$(BIN)/python -m brainseg.train -m model.depth=2,3,4 seed=0,1 epochs=8 $(ARGS)

benchmark: setup  ## Measure steps, epoch, inference, start-up, memory, growth (about half an hour)
	$(BIN)/python scripts/benchmark.py $(ARGS)

clean:  ## Remove the environment and caches; keeps data, runs and MLflow's files
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
