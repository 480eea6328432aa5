# Everything sets itself up: a virtual environment in .venv, made anew when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: demo test test-long mutants check lint test-gpu test-torch test-javascript bench bench-gpu train clean

demo: $(VENV)/.demo
	$(BIN)/coupled-sampling generate --count 40 --method scd-gumbel --beside-ar --out demo.png

test: check
	$(BIN)/python -m pytest

test-long: check
	$(BIN)/python -m pytest --coupled-sampling-profile nightly

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

test-torch: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)" onnxscript transformers
	$(BIN)/python -m pytest -m torch

test-javascript: $(VENV)/.dev
	cd examples/javascript && npm ci --no-audit --no-fund
	$(BIN)/python -m pytest -rs tests/test_javascript.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/host_step.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/step_graph.py

bench-gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

train: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python examples/fashion_mnist/train.py --out build/fashion
	$(BIN)/python examples/fashion_mnist/export.py --checkpoint build/fashion/checkpoint.pt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[cpu,pictures]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@
