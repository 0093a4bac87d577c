# Freshet: every command that a person or CI needs. `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup demo up down kafka-up kafka-down flink-up flink-down submit servers lock test soak chaos check format bench bench-flink bench-peers clean

help: ## print this
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*?## /\t/' | expand -t 12

setup: $(VENV)/.installed ## make the virtual environment in .venv

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: Python 3.11 is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@# One that was left half made, or is another Python's, is made anew.
	$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $@

demo: setup ## learn online from a simulated world, serve, let a guest in; DATA=FOLDER: from KuaiRand-Pure or MovieLens (ROWS=N of it)
	@$(BIN)/python -m bench.demo $(if $(DATA),--path "$(DATA)") $(if $(ROWS),--rows "$(ROWS)")

up: setup ## start Kafka, Flink with what Beam needs, and the model server; ARGS="--task_managers 2": options of python -m deploy.up
	@$(BIN)/python -m deploy.up $(ARGS)

down: setup ## stop them
	@$(BIN)/python -m deploy.down $(ARGS)

kafka-up: setup ## start a Kafka broker; ARGS as above
	@$(BIN)/python -m deploy.up --only kafka $(ARGS)

kafka-down: setup ## stop it
	@$(BIN)/python -m deploy.down --only kafka $(ARGS)

flink-up: setup ## start a Flink cluster, Beam's job server and worker pool; ARGS as above
	@$(BIN)/python -m deploy.up --only flink $(ARGS)

flink-down: setup ## stop them
	@$(BIN)/python -m deploy.down --only flink $(ARGS)

submit: setup ## train on them; ARGS="--config FILE --state_dir STATE": options of python -m pipelines.train
	@$(BIN)/python -m deploy.submit $(ARGS)

servers: setup ## fetch what Kafka and Flink are made of, ahead of the first start
	$(BIN)/python -m deploy.install

lock: setup ## resolve requirements.in into requirements.txt
	$(BIN)/python -m uv pip compile --quiet --python-version 3.11 --no-header requirements.in -o requirements.txt

test: setup ## run the tests, in two processes
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

soak: setup ## ten million mixed operations on the embedding table, against plain NumPy; half an hour of the job on Flink: does memory grow?
	$(BIN)/python -m tests.model.soak_table
	$(BIN)/python -m tests.e2e.soak_job $(ARGS)

chaos: setup ## the training job on Flink and Kafka while twenty things die under it; ARGS="--faults 40": options of it
	$(BIN)/python -m tests.e2e.chaos $(ARGS)

check: setup ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: setup ## run every benchmark; KUAIRAND_DIR=FOLDER: where KuaiRand-Pure was unpacked
	$(BIN)/python -m bench.rank
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.join
	$(BIN)/python -m bench.pipeline
	$(BIN)/python -m bench.kuairand
	$(BIN)/python -m bench.collisions
	$(BIN)/python -m bench.table

bench-flink: setup ## the whole job on Flink, fed by Kafka, and a textbook's join beside it; ten minutes
	$(BIN)/python -m bench.pipeline --runner flink

bench-peers: setup .venv-peers/.installed ## the table beside TFRA and TensorFlow's tables, in an environment of their own
	$(BIN)/python -m bench.table

.venv-peers/.installed: requirements-peers.txt | setup
	.venv-peers/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv-peers
	$(BIN)/python -m uv pip install --quiet --python .venv-peers/bin/python -r requirements-peers.txt
	touch $@

clean: ## stop the servers; remove them, the virtual environment, caches and out/
	if [ -d out/servers ]; then $(BIN)/python -m deploy.down; fi
	rm -rf $(VENV) .venv-peers .servers out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
