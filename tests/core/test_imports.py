"""The core is light, its names exist, and its errors form one tree."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import coupled_sampling
from coupled_sampling import errors

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "PIL",
    "matplotlib",
    "scipy",
    "hypothesis",
    "tqdm",
    "jax",
    "cupy",
    "cuda",
    "tensorrt",
)


@pytest.mark.parametrize(
    "module", ["coupled_sampling", "coupled_sampling.cli", "coupled_sampling.backends", "coupled_sampling.export"]
)
def test_importing_the_core_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists():
    for found in pkgutil.walk_packages(coupled_sampling.__path__, "coupled_sampling."):
        if found.name.endswith("__main__"):  # importing it runs the command line
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{found.name}.{name}"


def test_every_error_is_in_the_tree_and_in_its_drawing():
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.CoupledSamplingError)
        assert name in errors.__doc__
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.InvalidLogits, errors.ProviderError)
