# `make run` and `make test` are all a newcomer needs; both set up .venv by themselves and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: run test test-fast test-exhaustive check lint types contracts bench score screenshots gpu-check test-gguf lock clean help

help:
	@echo "make run          set up .venv and open the wizard with the demo model (headless demo without a terminal)"
	@echo "make test         set up, then the tests"
	@echo "make test-fast    the tests that need no training and no terminal, in seconds"
	@echo "make test-exhaustive  every family and growth, beyond what make test samples"
	@echo "make check        ruff, mypy --strict, import contracts"
	@echo "make bench        the benchmarks behind the README's figures"
	@echo "make score CSV=F  the formula against published measurements in F"
	@echo "make screenshots  assets/screenshots from recorded journals"
	@echo "make gpu-check    the checks that need an accelerator"
	@echo "make test-gguf    extended models in llama.cpp (installs llama-cpp-python, which may compile for minutes)"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Scaler Wizard needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV). On Debian or Ubuntu: apt install python3-venv"; exit 2; }
	@touch $@

$(VENV)/.run: $(VENV)/.python requirements.lock pyproject.toml
	@echo "Installing the locked dependencies into $(VENV) (once; a few minutes) ..."
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "Installing the test tools ..."
	@$(PIP) install -r requirements-dev.lock
	@touch $@

run: $(VENV)/.run
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/scaler-wizard --demo; else $(BIN)/scaler-wizard demo; fi

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu" tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not alone and not exhaustive and not gpu and not gguf" tests
	$(BIN)/python -m pytest -m "slow and alone and not gpu and not gguf" tests

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu" tests

test-exhaustive: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "exhaustive" tests

check: lint types contracts

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m bench

score: $(VENV)/.dev
	@test -n "$(CSV)" || { echo "Say which measurements: make score CSV=measured_memory.csv"; exit 2; }
	$(BIN)/python -m tests.score_estimates "$(CSV)" $(ARGS)

screenshots: $(VENV)/.dev
	$(BIN)/python assets/make_screenshots.py

gpu-check: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/python -m tests.gpu.measure_grid --append profiles/measured

# GGUF_PYTHON may be any Python that has llama-cpp-python and numpy.
GGUF_PYTHON ?= $(BIN)/python
test-gguf: $(VENV)/.dev
	@$(GGUF_PYTHON) -c "import llama_cpp" 2> /dev/null || $(GGUF_PYTHON) -m pip install -q "llama-cpp-python>=0.3.36"
	GGUF_PYTHON=$(GGUF_PYTHON) $(BIN)/python -m pytest -m gguf tests/gguf

# The locks are what a clean environment resolves to today; torch is pinned because the newest build may be many GB.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install -q torch==2.13.0 hatchling .
	$(VENV)-lock/bin/pip freeze --exclude scaler-wizard | sed 's/+cpu//' > requirements.lock
	$(VENV)-lock/bin/pip install -q -c requirements.lock '.[dev]'
	$(VENV)-lock/bin/pip freeze --exclude scaler-wizard | sed 's/+cpu//' > requirements-dev.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
