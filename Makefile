# Everything runs in .venv, made from pyproject.toml under constraints.txt. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# Small models gain nothing from a second thread, and lose much when the machine is busy.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test lint base-model clean
help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.ready  ## The whole pipeline on real conversations; results in runs/demo
	$(BIN)/rlhf-env demo

test: .venv/.ready  ## Lint, types, import rules, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

lint: .venv/.ready  ## Lint, types and import rules alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

base-model: .venv/.ready  ## Make the shipped models anew (up to 40 minutes on 2 cores)
	$(BIN)/rlhf-env pipeline base-model --threads 2

clean:  ## Remove the environment and what runs left
	rm -rf .venv runs dist build
