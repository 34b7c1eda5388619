# Needs python3 (3.11, 3.12 or 3.13), pip and make; everything else goes into .venv, which each target makes if it is
# missing and brings up to date when pyproject.toml or constraints.txt changed.
#
#   make quickstart   train, evaluate and render the whole benchmark in its quick form
#   make reproduce    the same with ablations and three seeds: the full benchmark of the miniature
#   make results      render results/ and README's table again from the records
#   make test         the default test suite;  make test-slow  the rest;  make test-vbench  those with the real VBench
#   make lint         ruff and mypy;           make format     let ruff mend what it can
#   make wheel        build dist/*.whl;        make build-mini train the miniature backbone again
#   make clean        remove build leftovers (not .venv, not runs/)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Compiling while installing saves the first run the better part of a minute.
UV     := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt

# OpenMP's spinning makes two threads slower than one on a small machine; it is read when torch loads.
export OMP_WAIT_POLICY ?= PASSIVE
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup quickstart reproduce results test test-slow test-vbench lint format wheel build-mini clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,10p'

setup: $(VENV)/.test

# The stamps are touched last, so that an interrupted installation is done again.
$(VENV)/.test: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "w2svd-bench needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@test -x $(BIN)/uv || { echo "installing uv"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; }
	@echo "installing w2svd-bench and what it needs (about 5 GB on Linux the first time: torch brings its CUDA libraries)"
	@$(UV) -e '.[test]'
	@touch $@
	@echo "w2svd-bench is in $(BIN); to have it on the path: . $(BIN)/activate"

$(VENV)/.dev: $(VENV)/.test
	@$(UV) -e '.[test,dev]'
	@touch $@

quickstart: $(VENV)/.test
	@$(BIN)/w2svd-bench reproduce --quick

# Interrupted, it goes on where it was. PROFILE=hard is the hard setting, PROFILE=stress what is meant to break training.
PROFILE ?= full

reproduce: $(VENV)/.test
	@$(BIN)/w2svd-bench reproduce --profile $(PROFILE)

# README shows the methods alone; their ablations are in results/mini/leaderboard.md.
FLOORS  := real (noise floor),real, through the codec,teacher, 28 steps (noise floor)
METHODS := euler,lcm,dmd,w2svd

results: $(VENV)/.test
	@set -e; for folder in results/*/; do $(BIN)/w2svd-bench leaderboard $$folder > /dev/null; echo "$$folder"; done
	@$(BIN)/w2svd-bench leaderboard results/mini --filter "label=$(FLOORS),$(METHODS)" --into README.md > /dev/null
	@$(BIN)/w2svd-bench claims results/mini results/mini-stress --write > /dev/null
	@set -e; for name in mini-hard mini-second-round; do $(BIN)/w2svd-bench claims results/$$name --write > /dev/null; done
	@set -e; for name in mini mini-hard mini-stress; do $(BIN)/w2svd-bench report results/$$name; done

# Two processes of one thread each use two cores best. pytest's own closing line is the last one printed.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.test
	@$(PYTEST)

test-slow: $(VENV)/.test
	@$(PYTEST) -m "slow and not vbench"

# uv builds VBench an environment of its own (about 6 GB the first time) and keeps it.
test-vbench: $(VENV)/.test
	@PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m vbench

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# setuptools copies into build/ and never removes from there, so a file that is gone would stay in the wheel.
wheel: $(VENV)/.test
	@rm -rf build
	@$(BIN)/uv build --quiet --wheel --out-dir dist .
	@ls dist/*.whl

build-mini: $(VENV)/.test
	@$(BIN)/w2svd-bench build-mini

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
