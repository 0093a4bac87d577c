# Freshet: every command that a person or CI needs. `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup demo lock test check format bench clean

help: ## print this
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*?## /\t/' | expand -t 12

setup: $(VENV)/.installed ## make the virtual environment in .venv

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: Python 3.11 is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $@

demo: setup ## learn online from a simulated world, serve, let a guest in; DATA=FOLDER: from KuaiRand-Pure or MovieLens
	@$(BIN)/python -m bench.demo $(if $(DATA),--path "$(DATA)")

lock: setup ## resolve requirements.in into requirements.txt
	$(BIN)/python -m uv pip compile --quiet --python-version 3.11 --no-header requirements.in -o requirements.txt

test: setup ## run the tests
	$(BIN)/python -m pytest tests

check: setup ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: setup ## run every benchmark
	$(BIN)/python -m bench.rank
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.pipeline
	$(BIN)/python -m bench.kuairand

clean: ## remove the virtual environment, caches and out/
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
