# Everything runs in .venv; the system's Python is only asked to make it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOORS := .venv-floors
# Each of two processes takes half of the tests in their order, and then half of what the other has
# left: what the tests of a module share is made once, and not in both.
PYTEST := pytest -n 2 --dist worksteal
LAYOUT := pyproject.toml setup.py tools/install_torch.sh $(wildcard kernels/*/__init__.py)

.PHONY: demo test test-long lint docs floors dist gpu gpu-steps gpu-checks gpu-rehearsal bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed           ## the whole pipeline on the embedded pair, about 4 minutes on 2 cores
	$(BIN)/pad-fast demo

test: $(VENV)/installed-test      ## the tests, two at a time
	$(BIN)/$(PYTEST)

test-long: $(VENV)/installed-test ## the tests that take minutes: kills of ranks and of served runs, sixty kills of a run
	$(BIN)/$(PYTEST) -m long
	$(BIN)/python -m tests.kill

lint: $(VENV)/installed-dev       ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs      ## the site, in build/docs: warnings are errors, links are followed, formulas and search need no network
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html -d build/doctrees docs build/docs
	$(BIN)/python tools/check_site.py build/docs

floors:                           ## the fast tests with the oldest releases that pyproject.toml allows, in an environment of their own
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python tools/floors.py > $(FLOORS)/constraints.txt
	-sh tools/install_torch.sh $(FLOORS)/bin/python "$$($(FLOORS)/bin/python tools/floors.py torch)"
	$(FLOORS)/bin/python -m pip install --quiet --constraint $(FLOORS)/constraints.txt --editable '.[test]'
	$(FLOORS)/bin/$(PYTEST) -m 'not slow and not long'

dist: $(VENV)/installed-test      ## sdist and wheel in dist/, checked as PyPI does
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	! grep -n OWNER pyproject.toml README.md

bench: $(VENV)/installed-test     ## benchmarks of this CPU against plain PyTorch
	$(BIN)/python -m benchmarks --suite cpu

# On a card: with the given python3, no environment, no installation, no network. In the order of
# worth, each within ten minutes; tools/gpu_wheels.sh fetches other projects' wheels beforehand.
gpu:                              ## the table of single operations, 8 minutes
	$(PYTHON) -m benchmarks --suite gpu

gpu-steps:                        ## whole training steps, 8 minutes
	$(PYTHON) -m benchmarks --suite gpu-steps

gpu-checks:                       ## FlexAttention's backward against separate sequences, the longest response, peaks, the kernels' tests; all run, and the end says each result
	sh tools/gpu_checks.sh $(PYTHON)

gpu-rehearsal: $(VENV)/installed-test  ## all of that on a CPU, in small, with a made-up card: what would fail there
	$(BIN)/python -m benchmarks.rehearsal
	$(BIN)/pytest tests/test_package.py tests/models/test_flex_attention.py -k "gpu or card"
	PAD_FAST_REHEARSAL=1 $(BIN)/pytest -m gpu tests/kernels tests/footprint

$(VENV)/installed: $(LAYOUT)
	$(PYTHON) -c 'import re, sys; least = int(re.search(r"requires-python = .>=3.(\d+)", open("pyproject.toml").read())[1]); sys.exit(f"pad-fast needs Python 3.{least} or newer, not {sys.version.split()[0]}: make PYTHON=python3.{least} ..." if sys.version_info[:2] < (3, least) else None)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh tools/install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(FLOORS) build dist *.egg-info
