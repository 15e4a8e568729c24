# Everything below sets itself up: a virtual environment in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# dvc.yaml calls `python`: let that be the environment's, whatever shell this runs in.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true

.PHONY: demo setup test test-slow bench lint format

demo: setup  ## run the pipeline of params.yaml on real data and print its table
	@git rev-parse --is-inside-work-tree >/dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	$(BIN)/kdci check
	$(BIN)/dvc repro
	$(BIN)/kdci sync
	$(BIN)/kdci show

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info < (3, 14), 'kdci needs Python 3.11 to 3.13'"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,sweep,cluster,export,timm]'
	touch $@

test: setup  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: setup  ## the tests that take minutes or need data
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 1800 --numprocesses 2 --dist worksteal --durations 25

bench: setup  ## how fast it is beside a plain baseline and the machine's limit; writes docs/performance.md
	$(BIN)/python -m benchmarks $(BENCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pylint --disable=all --enable=duplicate-code --min-similarity-lines=10 kdci/methods

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
