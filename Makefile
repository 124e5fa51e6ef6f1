# Everything a developer or CI needs, on a machine that has Python 3.11+ and make, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Tests and demo start hundreds of processes: each would compile all of our source anew.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null)
PYTHON ?= $(shell for v in python3.13 python3.12 python3.11 python3; do \
	command -v $$v >/dev/null 2>&1 && \
	$$v -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$v; break; }; done)

# The oldest Python devices have (JetPack 6), when this machine has it too.
DEVICE_PYTHON ?= $(firstword $(foreach v,python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10),\
	$(shell $v -c 'import sys; print(sys.executable)' 2>/dev/null)) $(PYTHON))

# Many tests wait for brokers, agents and time limits: one more than there are cores.
TEST_JOBS ?= $(shell expr $$(nproc) + 1)

.PHONY: help setup demo test check bench docs engine emulator format lock runtime-only clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# The lock file is what CI and users get alike; uv installs it in seconds, pip does it too.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found" >&2; \
		echo "hint: install it, or pass PYTHON=/path/to/python3.11" >&2; exit 5; }
ifneq ($(UV),)
	@uv venv --quiet --seed --allow-existing --python "$(PYTHON)" $(VENV)
	@uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	@uv pip install --quiet --python $(BIN)/python --no-deps -e .
else
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
endif
	@touch $@

setup: $(READY) ## make the virtual environment from the lock file

demo: $(READY) ## the main job end to end on real data (KEEP=1 leaves the dashboard up)
	@$(BIN)/edgekit demo --out demo-out --report demo-report.json $(if $(KEEP),--keep) $(DEMO_ARGS)

test: $(READY) ## all tests; EDGEKIT_TEST_SCALE=10 lets property tests look ten times longer
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

check: $(READY) ## format, lint, types (also for Python 3.10 where devices run it), import layers
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python tests/repo/tensorrt_types.py
	@$(BIN)/mypy
	@$(BIN)/mypy --python-version 3.10 -p edgekit.contracts -p edgekit.stats \
		-p edgekit.engine -p edgekit.preprocess -p edgekit_runtime
	@$(BIN)/lint-imports

bench: $(READY) ## run the benchmarks; results land in benchmarks/results
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file; done

docs: $(READY) ## check that documents agree with the code and their commands run
	@$(BIN)/python -m pytest -q tests/repo

engine: $(READY) ## images and container slots in a real Docker Engine (needs root and apt)
	@PYTHON="$(CURDIR)/$(BIN)/python" bash tests/repo/images_in_engine.sh engine-work

emulator: $(READY) ## what `build -t rpi5 --emulate` needs, in engine-work (needs root and apt)
	@bash tests/repo/arm_parts.sh engine-work
	@EDGEKIT_CACHE=engine-work/cache EDGEKIT_EMULATOR_ROOT=engine-work/emulator \
		PATH="$(CURDIR)/engine-work/qemu/usr/bin:$$PATH" \
		$(BIN)/edgekit targets emulator rpi5 --base-rootfs engine-work/arm64.tar

format: $(READY) ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## resolve requirements.lock anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header \
		--no-annotate --generate-hashes -o requirements.lock pyproject.toml

runtime-only: ## test the device's part in an environment with [runtime] alone (DEVICE_PYTHON=...)
	@PYTHON="$(DEVICE_PYTHON)" bash tests/repo/runtime_only.sh

clean: ## remove what the targets made
	@rm -rf $(VENV) engine-work demo-out demo-report.json build-out .mypy_cache .mypy_stubs \
		.ruff_cache .pytest_cache
