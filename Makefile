# make demo, make test: the two commands of the README; each sets itself up on a fresh machine with python3.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEMO ?= runs/demo
SEED ?= 0
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
TEST_PROCESSES ?= $(shell nproc 2>/dev/null || echo 2)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-slow lint mutants clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/system_libraries.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@sh .ci/system_libraries.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[build,train,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m training.demo --out $(DEMO) --seed $(SEED) --workers $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile -q

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile -q

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py --processes $(TEST_PROCESSES)

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
