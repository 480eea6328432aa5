# Everything sets itself up: a virtual environment in .venv, made anew when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# Python compiles modules when they are imported; most of what is installed never is, so compiling all would cost half of the time.
INSTALL = $(BIN)/python -m pip install -q --no-compile
# And they are compiled once: where the environment forbids Python to keep what it compiled, each of the hundreds of processes that
# tests start compiles numpy and all else anew, a third of the time of all tests.
unexport PYTHONDONTWRITEBYTECODE
# Tests run side by side on all cores, or on as many as JOBS says; a worker that is through takes over from another.
JOBS ?= auto
PARALLEL = -n $(JOBS) --dist worksteal
# What runs the tests and benchmarks for a GPU. By default an environment of its own, since [dev] has the onnxruntime of the CPU.
# On a machine without a package index name a Python that has the packages: make test-gpu GPU_PYTHON=python3
GPU_EXTRAS ?= gpu,export,pictures,testing,text
GPU_PYTHON ?= $(VENV)-gpu/bin/python

# What a target stands on, such as checks and documentation, is made side by side.
MAKEFLAGS += --jobs=2

.PHONY: demo serve-demo test test-long mutants fuzz load check docs test-gpu test-torch test-frameworks test-openvino test-plugins \
	test-javascript test-ray test-triton bench bench-gpu train train-moving train-moving-variants clean

demo: $(VENV)/.demo
	$(BIN)/coupled-sampling generate --count 40 --method scd-gumbel --beside-ar --out demo.png
	$(BIN)/coupled-sampling generate moving --count 1 --beside-ar --out demo.gif

# Starts a server, draws a picture through OpenAI's client, and stops the server.
serve-demo: $(VENV)/.serve
	$(BIN)/python examples/serve_demo.py --out served.png

test: check docs
	$(BIN)/python -m pytest $(PARALLEL)

test-long: check
	$(BIN)/python -m pytest $(PARALLEL) --coupled-sampling-profile nightly

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py

# Damaged files for every reader, as many of each as COUNT says; some twenty minutes.
COUNT ?= 10000
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/run.py --count $(COUNT)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-gpu: $(filter $(VENV)-gpu/%,$(GPU_PYTHON))
	$(GPU_PYTHON) -m pytest -m gpu --continue-on-collection-errors

test-torch: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)" onnxscript transformers
	$(BIN)/python -m pytest -m torch

# Optimum and the builder of ONNX Runtime GenAI want different versions of transformers, hence the second environment.
test-frameworks: $(VENV)/.dev
	$(INSTALL) "$(TORCH)" -e ".[jax,mlx]" optimum==2.1.0 optimum-onnx==0.1.0
	$(BIN)/python -m pytest $(PARALLEL) -m frameworks
	$(PYTHON) -m venv $(VENV)-genai
	$(VENV)-genai/bin/python -m pip install -q --no-compile "$(TORCH)" -e ".[dev]" onnxruntime-genai==0.18.0 onnx_ir "transformers>=5"
	$(VENV)-genai/bin/python -m pytest -m frameworks tests/backends/foreign/test_real_exporters.py

test-openvino: $(VENV)/.dev
	$(INSTALL) -e ".[openvino]"
	$(BIN)/python -m pytest $(PARALLEL) -rs tests/backends/openvino

# An environment of its own, as extras of plugins ask for a newer onnxruntime than the rest. Without a GPU WebGPU's plugin needs a
# Vulkan driver in software: the tests find the one in Debian's chromium.
test-plugins:
	$(PYTHON) -m venv $(VENV)-plugins
	$(VENV)-plugins/bin/python -m pip install -q --no-compile -e ".[export,openvino-plugin,testing,webgpu]"
	$(VENV)-plugins/bin/python -m pytest -rs tests/backends/ort/test_real_plugins.py tests/backends/ort/test_plugin_placement.py

test-javascript: $(VENV)/.dev
	cd examples/javascript && npm ci --no-audit --no-fund
	$(BIN)/python -m pytest -rs tests/examples/test_javascript.py tests/examples/test_javascript_trees.py tests/examples/test_javascript_clips.py \
		tests/examples/test_javascript_webgpu.py

# A real tritonserver: the one in nvidia-pytriton, whose Python is not used, nor what it depends on. It is from before Triton took
# NumPy 2, so that its Python backend, which runs in this environment, has NumPy 1.
test-triton: $(VENV)-triton/.done
	$(VENV)-triton/bin/python -m pytest -rs tests/serving/triton

# An environment of its own, as Ray brings many packages. It starts a cluster on this machine, two replicas
# and a proxy on the loopback, and stops them.
test-ray: $(VENV)-ray/bin/python
	RAY_USAGE_STATS_ENABLED=0 $(VENV)-ray/bin/python -m pytest -rs -W ignore tests/serving/ray

# A server under load: how many requests a second, whether each has its own tokens, and whether anything leaks. Half an hour.
MINUTES ?= 20
load: $(VENV)/.dev
	$(BIN)/python tests/load/throughput.py
	PYTHONPATH=tests $(BIN)/python tests/load/identity.py
	$(BIN)/python tests/load/soak.py --minutes $(MINUTES)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/host_step.py
	$(BIN)/python benchmarks/methods.py --step graph --threads 1 --windows 12,16,32,auto --count 20
	$(BIN)/python benchmarks/corrections.py passes
	$(BIN)/python benchmarks/corrections.py cost
	$(BIN)/python benchmarks/step_graph.py
	$(BIN)/python benchmarks/prompts.py

bench-gpu: $(filter $(VENV)-gpu/%,$(GPU_PYTHON))
	$(GPU_PYTHON) benchmarks/first_light_gpu.py

train: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python examples/fashion_mnist/train.py --out build/fashion
	$(BIN)/python examples/fashion_mnist/export.py --checkpoint build/fashion/checkpoint.pt
	$(BIN)/coupled-sampling fit-corrections ./coupled_sampling/bundles/models/fashion

# The model of clips, likewise; a tokeniser of frames comes first.
train-moving: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python examples/moving/train_moving.py --out build/moving
	$(BIN)/python examples/moving/export_moving.py --build build/moving

# What its speed depends on: the same model, taught clips in which nothing moves, and clips of cuts. Bundles in build/ only.
train-moving-variants: $(VENV)/.dev
	$(BIN)/python -m pip install -q "$(TORCH)"
	for motion in still cuts; do \
	  $(BIN)/python examples/moving/train_moving.py --motion $$motion --begin-with build/moving --out build/$$motion --steps 120 --rate 1e-3 --grain-from 0 --long-from 0 \
	  && $(BIN)/python examples/moving/export_moving.py --build build/$$motion --out build/$$motion/bundle || exit 1; done
	$(BIN)/python benchmarks/video.py depends --count 10 build/still/bundle build/cuts/bundle

clean:
	rm -rf $(VENV) $(VENV)-gpu $(VENV)-genai $(VENV)-ray $(VENV)-triton $(VENV)-plugins build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)-gpu/bin/python: pyproject.toml
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install -q -e ".[$(GPU_EXTRAS)]"
	touch $@

$(VENV)-triton/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install -q --no-compile -e ".[cpu,export,testing,text]" "tritonclient[grpc]>=2.51"
	$(VENV)-triton/bin/python -m pip install -q --no-compile --no-deps nvidia-pytriton==0.7.0 numpy==1.26.4
	touch $@

$(VENV)-ray/bin/python: pyproject.toml
	$(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install -q --no-compile -e ".[bulk,ray,export,testing]" httpx
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e ".[cpu,pictures]"
	touch $@

$(VENV)/.serve: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e ".[serve]" "openai>=2"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e ".[dev]"
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.dev
	$(INSTALL) -e ".[docs]"
	touch $@
