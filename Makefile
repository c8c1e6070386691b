# The same tasks as in pixi.toml, for machines without pixi.
# `make demo` is enough on a fresh machine: it builds .venv once, from requirements.lock.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
INSTALLED := .venv/.installed

.PHONY: help demo test check compat lint format launch docs lock clean

help: ## list the tasks
	@sed -n 's/^\([a-z]*\):.*## /  make \1  /p' Makefile

demo: $(INSTALLED) ## the whole pipeline on embedded real images, then a report
	@$(BIN)/python -m pipeline.launch name=demo method=dyrep

test: $(INSTALLED) ## all tests
	@$(BIN)/python -m pytest -n 4

check: lint ## style, types, imports, and the tests that start no stage and no SLURM
	@$(BIN)/python -m pytest -n 2 -m 'not long'

compat: ## demo, doctor and tests on SLURM, on a Debian 13 beside this system; as root
	@.ci/compat

lint: $(INSTALLED) ## style, types and import directions
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports

format: $(INSTALLED) ## rewrite the code in the house style
	@$(BIN)/ruff check --fix && $(BIN)/ruff format

launch: $(INSTALLED) ## make launch ARGS="method=dbb seed=1"
	@$(BIN)/python -m pipeline.launch $(ARGS)

docs: $(INSTALLED) ## the API of dyrep, from its docstrings, into build/docs/
	@$(BIN)/python -m pdoc --docformat google --output-directory build/docs dyrep

lock: $(INSTALLED) ## rewrite requirements.lock from pyproject.toml
	@$(BIN)/python -m pip install --quiet --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--no-config --quiet --upgrade --output-file requirements.lock

clean: ## remove the environment and caches, not the outputs
	@rm -rf .venv build dyrep.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The mark is made last: an install that was cut off is begun again.
$(READY): requirements.lock
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		2>/dev/null || { echo "error: '$(PYTHON)' is not a Python 3.11 to 3.13 with venv;" \
		"install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "building .venv from requirements.lock (once; about 6 GB)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --quiet --require-hashes --requirement requirements.lock
	@touch $@

# From any directory: compat puts the checkout on Python's path, where a folder `slurm/` or `dyrep/`
# of the directory one is in does not hide it.
$(INSTALLED): pyproject.toml setup.py $(READY)
	@$(BIN)/python -m pip install --quiet --quiet --no-deps --no-index --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@touch $@
