# Each target sets up what it needs in .venv; all that must be there is Python 3.11 or newer, with venv, and make.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# Tests start hundreds of processes: they keep bytecode, even where the environment says that Python should write none.
unexport PYTHONDONTWRITEBYTECODE
# Set-up is done again when what it depends on changes.
USER_SETUP := .venv/.installed
DEV_SETUP := .venv/.installed-dev
DOCS_SETUP := .venv/.installed-docs
SETUP_FILES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow coverage lint format docs clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(USER_SETUP) ## the whole main job in minutes: data, training, evaluation, report; writes demo/
	$(BIN)/equicat demo --out demo --overwrite true

test: lint ## what CI runs: the linters, then the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

coverage: $(DEV_SETUP) ## the tests again, with what they cover; takes 1.7 times as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov

test-slow: $(DEV_SETUP) ## the tests that train, and those that need real data or peers
	$(BIN)/python -m pytest -m "slow or benchmark"

lint: $(DEV_SETUP) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_SETUP) ## put code into the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_SETUP) ## the pages of docs/ as a site that needs no network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove caches and the environment; data, runs and demo/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov build dist site *.egg-info
	find equicat tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(USER_SETUP): .venv/pyvenv.cfg $(SETUP_FILES)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV_SETUP): .venv/pyvenv.cfg $(SETUP_FILES)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS_SETUP): .venv/pyvenv.cfg $(SETUP_FILES)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "equicat needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu install python3-venv"; exit 1; }
