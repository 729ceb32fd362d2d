# The one gate for people and for CI; `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PRESET ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CHOICE := $(if $(PRESET),--preset $(PRESET))

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0

.DEFAULT_GOAL := help
.PHONY: help setup run compare bench attacks deploy-demo test check clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
	    printf '  make %-11s %s\n' "$$name" "$$text"; done

setup: $(INSTALLED)  ## make the virtual environment VENV (default .venv) with PYTHON (default python3) and install

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]}: must be 3.11 or newer; name another by PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV); PyTorch alone is 0.2 to 3 GB'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

run: setup  ## the main job: digits over 10 nodes in simulation, or PRESET=name (ARGS='--set seed=1' sets keys)
	$(BIN)/python -m sims.run $(CHOICE) $(ARGS)

compare: setup  ## all methods over seeds, one table: mean and standard deviation (PRESET=name, ARGS=...)
	$(BIN)/python -m sims.compare $(CHOICE) $(ARGS)

bench: setup  ## one measurement: ARGS=modules, evaluations, pool, wire, switches, memorization, synthesis, batched, curve, scale, growth or soak, with options
	$(BIN)/python -m sims.benchmark $(ARGS)

attacks: setup  ## the table of attacks and poisonings: caught or not, by which rule
	PYTHONPATH=.:tests $(BIN)/python tests/attacks/table.py

deploy-demo: setup  ## three sites with real images on a SuperLink with TLS and authentication, on this machine (ARGS=--compare)
	$(BIN)/python -m sims.deploy_demo $(ARGS)

test: setup  ## run the tests in WORKERS processes (default 2); ARGS="-m 'not slow'" leaves out those that start Flower
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder $(ARGS)

check: setup  ## ruff, mypy and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

clean:  ## remove the virtual environment and all caches; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
