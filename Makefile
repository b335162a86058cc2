# make demo, make demo-quick, make test: each sets itself up on a fresh machine with python3.
# PYTHON=python3.12 names another Python; SYSTEM_SITE=1 uses the torch (2.6 or newer) that this Python already has.
PYTHON ?= python3
SYSTEM_SITE ?=
VENV := .venv
BIN := $(VENV)/bin
PROGRAMS := $(VENV)/.programs
STAMP := $(VENV)/.set-up
SEED ?= 0
DEMO ?= runs/demo$(if $(filter-out 0,$(SEED)),-$(SEED))
DEMO_QUICK ?= runs/demo-quick$(if $(filter-out 0,$(SEED)),-$(SEED))
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
TEST_PROCESSES ?= $(shell nproc 2>/dev/null || echo 2)
INSTALL = $(BIN)/python -m pip install $(if $(SYSTEM_SITE),,--constraint constraints.txt) --editable
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo demo-quick crosspoint-demo clip2point-demo pointcmt-demo wheel docs test test-slow lint mutants clean

setup: $(PROGRAMS)

$(PROGRAMS): pyproject.toml constraints.txt .ci/system_libraries.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv: 7 GB and 2 to 12 minutes (1 GB where torch is there: make SYSTEM_SITE=1)."
	@sh .ci/system_libraries.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)
	$(INSTALL) '.[build,train]'
	@touch $(PROGRAMS)
	@echo "Set up. Type this once in each shell:  . $(BIN)/activate"
	@echo "then, for example:                     python -m pipeline --help"

$(STAMP): $(PROGRAMS)
	$(INSTALL) '.[build,train,docs,dev]'
	@touch $(STAMP)

demo: $(PROGRAMS)
	$(BIN)/python -m training.demo --out $(DEMO) --seed $(SEED) --workers $(WORKERS)

demo-quick: $(PROGRAMS)
	$(BIN)/python -m training.demo --quick --out $(DEMO_QUICK) --seed $(SEED) --workers $(WORKERS)

crosspoint-demo clip2point-demo pointcmt-demo: $(PROGRAMS)
	$(BIN)/python -m training.paper_demo $(@:-demo=) --out runs/$@ --workers $(WORKERS)

wheel: $(PROGRAMS)
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .
	@echo "pip install 'dist/NAME.whl[build]' or '[train]', on any machine"

docs: $(STAMP)
	$(BIN)/mkdocs build --strict
	@echo "site/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile -q

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder -q

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py --processes $(TEST_PROCESSES)

clean:
	rm -rf $(VENV) runs build dist site *.egg-info .pytest_cache .ruff_cache
