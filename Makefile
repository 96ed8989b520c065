# Everything runs in .venv; the system's Python is only asked to make it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAYOUT := pyproject.toml setup.py tools/install_torch.sh $(wildcard kernels/*/__init__.py)

.PHONY: demo test test-long lint gpu bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed           ## the whole pipeline on the embedded pair, about 4 minutes on 2 cores
	$(BIN)/pad-fast demo

test: $(VENV)/installed-test      ## the tests, two at a time
	$(BIN)/pytest -n 2

test-long: $(VENV)/installed-test ## the tests that take minutes: kills of ranks and of served runs, sixty kills of a run
	$(BIN)/pytest -n 2 -m long
	$(BIN)/python -m tests.kill

lint: $(VENV)/installed-dev       ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-test     ## benchmarks of this CPU against plain PyTorch
	$(BIN)/python -m benchmarks --suite cpu

gpu:                              ## GPU tests and benchmarks with the given python3: no environment, no installation, no network
	$(PYTHON) -m pytest tests/kernels -m gpu -W default -p no:cacheprovider
	$(PYTHON) -m benchmarks --suite gpu

$(VENV)/installed: $(LAYOUT)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"pad-fast needs Python 3.10 to 3.12, not {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh tools/install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
