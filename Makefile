# Works from a fresh clone with nothing but make and Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WRITERS := .venv-writers/.installed
LICENCES := "Apache;BSD;ISC;MIT;MPL;Mozilla Public License;PSF;Python Software Foundation"
# One process more than there are cores, since tests that start commands wait for them.
PROCESSES = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
SHARED = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-install test-writers check-gpu lint docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(STAMP)  ## set up .venv with the package and its tools

$(STAMP): EXTRAS := dev
$(WRITERS): EXTRAS := dev,mlflow,wandb
$(STAMP) $(WRITERS): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "drnas_jax needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
	    "name one that is, as in 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@$(PYTHON) -m venv $(@D) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package" \
	    "python3-venv" >&2; exit 1; }
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## a small search, retraining and report, into runs/digits
	$(BIN)/python -m drnas_jax.main --config=configs/digits.py --workdir=runs/digits

test: $(STAMP)  ## the tests, without the slow ones; a file at a time in each process
	$(BIN)/python -m pytest $(SHARED)

test-all: $(STAMP)  ## all tests, with new random examples
	$(BIN)/python -m pytest $(SHARED) --hypothesis-profile=random
	$(BIN)/python -m pytest -m 'slow or install'
	$(MAKE) test-writers

test-install: $(STAMP)  ## plugins beside an installed wheel
	$(BIN)/python -m pytest -m install tests/test_install.py

test-writers: $(WRITERS)  ## Weights & Biases and MLflow, in an environment of their own
	.venv-writers/bin/python -m pytest -m 'slow or not slow' tests/writers

check-gpu: $(STAMP)  ## values and times on one GPU, 10 minutes; options: ARGS=...
	$(BIN)/python benchmarks/check_gpu.py $(ARGS)

lint: $(STAMP)  ## style, format, types, and the licences of all that is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy drnas_jax
	$(BIN)/pip-licenses --from=mixed --order=license --partial-match --allow-only=$(LICENCES)

docs: $(STAMP)  ## the pages of docs/, as a site in build/docs
	$(BIN)/mkdocs build --strict

clean:  ## remove both environments, caches and build products; runs/ stays
	rm -rf .venv .venv-writers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
