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
    "mlx",
    "cupy",
    "cuda",
    "tensorrt",
    "llguidance",
)


@pytest.mark.parametrize(
    "module", ["coupled_sampling", "coupled_sampling.cli", "coupled_sampling.backends", "coupled_sampling.export"]
)
def test_importing_the_core_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_type_checkers_find_the_installed_package():
    """They know folders, not the finders by which setuptools may install a checkout."""
    code = (
        "from importlib.machinery import PathFinder\nfrom importlib.metadata import distributions\n"
        "print(any(found.name == 'coupled-sampling' for found in distributions()))\n"
        "package = PathFinder.find_spec('coupled_sampling')\n"
        "places = package.submodule_search_locations if package else []\n"
        "print(all(PathFinder.find_spec(f'coupled_sampling.{name}', places) for name in ('cli', 'backends', 'export')))"
    )
    # Isolated, so that no PYTHONPATH and no working directory stands in for what is installed.
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    is_installed, is_found = result.stdout.split()
    if is_installed == "False":
        pytest.skip("the package is not installed")
    assert is_found == "True", "install the checkout again: pip install -e ."


def test_every_public_name_exists():
    for found in pkgutil.walk_packages(coupled_sampling.__path__, "coupled_sampling."):
        if found.name.endswith("__main__"):  # importing it runs the command line
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{found.name}.{name}"


def test_every_error_is_in_the_tree_and_in_its_drawing():
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, Warning if name == "SharedNoise" else errors.CoupledSamplingError)
        assert name in errors.__doc__
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.InvalidLogits, errors.ProviderError)
