# Every target sets up what it needs in .venv and is safe, and quick, to repeat.
# Needs python3 (3.10 to 3.13) and a package index; PYTHON=python3.12 picks another interpreter.
.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint bench bench-gpu check-gpu bench-scale kernels-report kernels-matrix scenes readme clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

help:  ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## Segment the packaged scene: writes demo/demo.png
	@$(BIN)/resclip demo --out demo

test: $(VENV)/.dev  ## Run the tests (those marked gpu are skipped without one)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

fuzz: $(VENV)/.dev  ## Damage whatever is parsed, at random, for two minutes (ARGS="--minutes 60"); failures go to fuzz/
	$(BIN)/python tests/fuzz.py $(ARGS)

lint: $(VENV)/.dev  ## Check style, layout and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## Time the ops and judge their figures; JSON goes to benchmarks/results/
	$(BIN)/python -m benchmarks cpu

bench-gpu: $(VENV)/.dev  ## Check, then time, the kernels on one GPU in six minutes (ARGS="--tune --compare OLD.json")
	$(BIN)/python -m benchmarks gpu $(ARGS)

check-gpu: $(VENV)/.dev  ## Look for bad accesses and races of the kernels on one GPU, by compute-sanitizer
	$(BIN)/python -m benchmarks check-gpu $(ARGS)

bench-scale: $(VENV)/.dev  ## Time batch jobs, ways to see large images, and one of 30,000 × 30,000 pixels
	$(BIN)/python -m benchmarks scale

kernels-report: $(VENV)/.dev  ## Compile every kernel, without a GPU: registers, spills, loops (ARGS="--combinations 3": options)
	$(BIN)/python -m benchmarks kernels-report $(ARGS)

kernels-matrix: $(VENV)/.dev  ## Compile every kernel by the oldest, installed and newest Triton (ARGS="--versions 3.6,3.7")
	$(BIN)/python -m benchmarks kernels-matrix $(ARGS)

scenes: $(VENV)/.dev  ## Measure every method on the held-out scenes (ARGS=--fresh: all anew); JSON goes to benchmarks/results/
	@mkdir -p benchmarks/results
	$(BIN)/resclip evaluate --method all --json benchmarks/results/builtin.json $(ARGS)

readme: $(VENV)/.dev  ## Make the README's images and tables again, from the stored results
	$(BIN)/resclip demo --out docs
	$(BIN)/python -m benchmarks comparison
	$(BIN)/resclip attention docs/scene.png --at 60,120 --method naclip+rcs --out docs/attention.png
	$(BIN)/python -m benchmarks gallery --out docs/gallery.png
	$(BIN)/python -m benchmarks method-pictures
	$(BIN)/python -m benchmarks readme

clean:  ## Remove .venv, builds and caches
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "make: expected Python 3.10 to 3.13, got $$($(PYTHON) --version 2>&1);" \
		"name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: python cannot make an environment; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/.runtime: setup.py pyproject.toml | $(BIN)/python
	@echo "Installing resclip and PyTorch into $(VENV): some minutes the first time."
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: setup.py pyproject.toml | $(BIN)/python
	@echo "Installing resclip and the development tools into $(VENV): some minutes the first time."
	@$(PIP) install --editable '.[dev]'
	@touch $(VENV)/.runtime $@
