# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?=
CONFIG := $(if $(DATA),configs/lgg-cpu.yaml,configs/demo.yaml)

.DEFAULT_GOAL := help
.PHONY: help install demo test unit lint faults bench wheel

help:  ## show these lines
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	# torch by its own name first: a plain requirement could draw in the CUDA build.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/.installed  ## virtual environment with pinned packages

demo: install  ## the main job on a phantom data set, or on DATA=/path/to/kaggle_3m
ifeq ($(DATA),)
	test -d data/phantom || $(BIN)/bts synth --config $(CONFIG)
	$(BIN)/bts run --config $(CONFIG)
else
	$(BIN)/bts run --config $(CONFIG) --set data.source=$(DATA)
endif

# Two streams of about the same length: tests on Ray, which often wait for a fault to be noticed, beside the others and
# then those on hosts of their own.
test: install  ## every test
	@log=$$(mktemp); $(BIN)/python -m pytest -m "ray and not hosts" > $$log 2>&1 & ray=$$!; \
	$(BIN)/python -m pytest -m "not ray"; others=$$?; \
	$(BIN)/python -m pytest -m hosts tests/e2e; hosts=$$?; \
	wait $$ray; ray=$$?; cat $$log; rm $$log; exit $$(( others || hosts || ray ))

unit: install  ## the tests that need no Ray and no S3 server
	$(BIN)/python -m pytest -m "not ray and not s3 and not e2e"

lint: install  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: install  ## training killed at every point of the list, not only those of `make test`
	BTS_ALL_FAULTS=1 $(BIN)/python -m pytest tests/faults

wheel: install  ## dist/bts_dist-….whl, for the machines of a cluster
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench: install  ## the loader beside others, on phantoms or on DATA=/path/to/kaggle_3m; see benchmarks/README.md
	$(BIN)/python benchmarks/loader.py $(if $(DATA),--source $(DATA))
