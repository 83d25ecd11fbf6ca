# Needs Python 3.11 or newer (PYTHON=...) and make. Everything is installed into .venv; nothing is fetched but packages.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt
ARGS ?=
PORT ?= 5000

# The build of PyTorch: cpu, cu126 or cu130 (CUDA 12.6 or 13.0), or default, which is what pip chooses. The name of the first
# stamp keeps the choice for later calls.
TORCH ?= $(or $(patsubst .venv/.torch-%,%,$(wildcard .venv/.torch-*)),default)
BUILDS := default cpu cu126 cu130
ifeq ($(filter $(BUILDS),$(TORCH)),)
$(error TORCH=$(TORCH): no such build of PyTorch; choose one of: $(BUILDS))
endif
VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
INDEX := $(if $(filter default,$(TORCH)),,--extra-index-url https://download.pytorch.org/whl/$(TORCH))
PYTORCH := $(if $(INDEX),torch==$(VERSION)+$(TORCH) $(INDEX),torch)

.PHONY: help setup train test test-slow test-faults test-slurm test-ray test-smp lint docs ui sweep benchmark clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp is as new as the last install that ended well; editing pins or metadata installs again.
.venv/.torch-$(TORCH): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]} is too old; install Python 3.11 or newer and name it, for example: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing packages into .venv: some minutes, once; 2 GB, and several more with CUDA'
	$(PIP) $(PYTORCH)
	@rm -f .venv/.torch-*
	@touch $@

.venv/.installed: .venv/.torch-$(TORCH)
	$(PIP) --editable '.[all]'
	@touch $@

# The tools of developers.
.venv/.test .venv/.lint .venv/.docs: .venv/.%: .venv/.installed
	$(PIP) --editable '.[$*]'
	@touch $@

setup: .venv/.installed  ## Make .venv with the pinned packages (TORCH=cpu, cu126, cu130: build of PyTorch)

train: setup  ## Make the phantom cohort, train on it, print where the results are (ARGS='epochs=5')
	$(BIN)/python -m brainseg.train $(ARGS)

test: .venv/.test  ## Run the test suite, two files at a time (ARGS='-k split')
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/.test  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: .venv/.test  ## Crashes, full disks, damaged and hostile files, many times over (about an hour)
	$(BIN)/python -m pytest -m faults --timeout 1800 $(ARGS)

test-slurm: .venv/.test  ## Run sweeps on a SLURM cluster of one node, started for the tests (root, minutes)
	@command -v slurmctld slurmd sbatch >/dev/null && test "$$(id -u)" = 0 || { echo 'make test-slurm needs root and SLURM: apt-get install slurm-wlm' >&2; exit 1; }
	$(BIN)/python -m pytest -m slurm --timeout 1800 $(ARGS)

test-ray: .venv/.test  ## Run sweeps on a Ray cluster of two nodes, started for the tests (minutes)
	$(PIP) --quiet -e '.[ray]'
	$(BIN)/python -m pytest -m ray --timeout 1800 $(ARGS)

test-smp: .venv/.test  ## Train networks of segmentation_models_pytorch for two steps (a minute)
	$(PIP) --quiet -e '.[smp]' $(INDEX)
	$(BIN)/python -m pytest -m smp $(ARGS)

lint: .venv/.lint  ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.docs  ## Build the documentation into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

ui: setup  ## Open the MLflow page of the runs in this folder (PORT=5000)
	$(BIN)/python -m brainseg.ui port=$(PORT)

sweep: setup  ## Compare depths on the phantom, two seeds each
	$(BIN)/python -m brainseg.train -m model.depth=2,3,4 seed=0,1 epochs=8 $(ARGS)

benchmark: setup  ## Measure steps, epoch, inference, start-up, memory, growth (about half an hour)
	$(BIN)/python scripts/benchmark.py $(ARGS)

clean:  ## Remove the environment and caches; keeps data, runs and MLflow's files
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
