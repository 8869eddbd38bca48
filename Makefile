# Every target makes its own environment in .venv when it is missing and
# reuses it afterwards; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint native bench notebooks clean

help:
	@echo "make demo   synthesize speech, train, quantize, recognize: a table and a picture"
	@echo "make test   every test"
	@echo "make lint   ruff and mypy, a built wheel installs and imports"
	@echo "make native the integer product in machine code (C++ compiler, AVX-512 VNNI)"
	@echo "make bench  every benchmark, side by side with its peers"
	@echo "make notebooks  runs them and keeps what they print"
	@echo "make clean  remove .venv and caches"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is missing or older than Python 3.11; name another: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "creating $(VENV) (once; about two minutes)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

# One stamp per set of extras: an environment that already holds them is reused.
$(VENV)/.base: $(PY) setup.cfg pyproject.toml constraints.txt
	@echo "installing s8bqat_jax"
	@$(PIP) -e '.[demo,subword]'
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "installing the test extra, and what exported files run on"
	@$(PIP) -e '.[demo,subword,export,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.base
	@$(PIP) -e '.[demo,subword,lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	@echo "installing the bench extra (PyTorch among it)"
	@$(PIP) -e '.[demo,subword,export,bench]'
	@touch $@

demo: $(VENV)/.base
	@$(PY) -m experiments.demo

test: $(VENV)/.test
	@$(PY) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.lint
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) tests/wheel_check.py

native: $(VENV)/.base
	@$(PY) -m s8bqat_jax.integer.native

bench: $(VENV)/.bench
	-@$(PY) -m s8bqat_jax.integer.native
	@for script in $$(grep -l __main__ benchmarks/*.py); do \
	  name=$$(basename $$script .py); \
	  echo "== $$name"; $(PY) -m benchmarks.$$name || exit 1; done

notebooks: $(VENV)/.test
	@$(PY) -m experiments.notebooks colabs/*.ipynb

clean:
	rm -rf $(VENV) build dist *.egg-info s8bqat_jax/integer/native/_*-* .pytest_cache .mypy_cache .ruff_cache
