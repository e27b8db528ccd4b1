# Everything runs in .venv; versions are pinned in pyproject.toml and nowhere else.
#   make align IMAGES=folder CONFIG=gold_yolo_n SIZE=320        make test PYTEST_ARGS="-k backbone"

PYTHON ?= python3
CONFIG ?= gold_yolo_s
SIZE ?= 640
IMAGES ?=
PYTEST_ARGS ?=
# Processes that pytest spreads the suite over, each with up to 9 GB of memory, two together with 15; 0 is one, without pytest-xdist.
WORKERS ?= 2
LANGUAGE ?= en
WHEELS ?= build/wheels
GPU_PYTHON ?= 3.12
GPU_ARGS ?=
DRY ?=
SLICE :=

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# pip finds a full disk only after minutes, and leaves a broken environment.
ROOM := import shutil, sys; free = shutil.disk_usage(".").free / 1e9; \
	sys.exit(f"{free:.1f} GB are free here, and the packages take 7 GB: free some space" if free < 7 else 0)

.DEFAULT_GOAL := help
.PHONY: help setup align check test demo bench proof gpu gpu-wheels doctor clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  options: PYTHON=$(PYTHON) CONFIG=$(CONFIG) SIZE=$(SIZE) IMAGES=folder PYTEST_ARGS=\"-k name\" WORKERS=$(WORKERS)"

setup: $(INSTALLED) ## Make .venv, install everything, compile Jittor (minutes, once per machine)
	@$(RUN) -m jt_impl.runtime

align: setup ## Compare the two implementations layer by layer and write a report
	$(RUN) -m alignment_tests --config $(CONFIG) --image-size $(SIZE) $(if $(IMAGES),--images '$(IMAGES)')

check: setup ## Between two edits: ruff, mypy and a slice of every room (3 minutes)
check: SLICE := -m check

test: setup ## Run ruff, mypy and pytest

check test:
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(SLICE) $(PYTEST_ARGS)

demo: setup ## Data, training, testing, comparison on drawn shapes, end to end (minutes)
	$(RUN) -m alignment_tests.demo --output-dir experiments/demo --lang $(LANGUAGE)

bench: setup ## Measure times and memory
	$(RUN) -m alignment_tests.bench

proof: setup ## Other models and all operators beside PyTorch, planted faults: writes docs/ anew
	$(RUN) -m alignment_tests.conformity --rows build/proof
	$(RUN) -m alignment_tests.meta_tests --output docs/proof.md
	rm -rf build/proof

# No environment is made: a machine with a GPU keeps its PyTorch. Where there is one already, it is taken.
gpu: ## All that needs a GPU, within 10 minutes and without network (WHEELS=folder); DRY=1 only compiles, anywhere
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m alignment_tests.gpu --wheels '$(WHEELS)' $(if $(DRY),--dry) $(GPU_ARGS)

gpu-wheels: ## Fetch the folder that `make gpu` takes along (WHEELS=folder GPU_PYTHON=3.12)
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m alignment_tests.gpu.wheels fetch --wheels '$(WHEELS)' --python $(GPU_PYTHON)

doctor: $(INSTALLED) ## Say what this machine lacks, and the command that mends it
	@$(RUN) -m jt_impl.doctor

clean: ## Remove .venv, reports and the tools' caches; Jittor's own cache is the user's and stays
	rm -rf $(VENV) reports build .pytest_cache .mypy_cache .ruff_cache .benchmarks *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Jittor's cache was left alone: its kernels are kept for the next run, below $${JITTOR_HOME:-$$HOME}/.cache/jittor"

# The stamp is newer than pyproject.toml when what that file pins is installed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "$(PYTHON) is not Python 3.10 to 3.12; choose one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -c '$(ROOM)' || exit 1
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) cannot make a virtual environment: apt-get install -y python3-venv" >&2; exit 1; }
	@echo 'Installing the pinned packages: a few GB with PyTorch, once.'
	$(RUN) -m pip install --disable-pip-version-check --editable '.[test]'
	@touch $@
