"""What is said where OpenVINO is missing or too old, and what its back end does not have. No OpenVINO is needed."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.backends.openvino.runtime import find_runtime, settings
from coupled_sampling.errors import InvalidArgument, MissingDependency


@pytest.fixture
def installed(monkeypatch):
    """Installs an OpenVINO of some version that has nothing in it."""

    def install(version):
        for name in ("openvino", "openvino.opset13", "openvino.frontend", "openvino.frontend.onnx"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["openvino"].__version__ = version
        sys.modules["openvino.frontend.onnx"].ConversionExtension = SimpleNamespace

    return install


def test_a_missing_openvino_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"package openvino.*pip install 'coupled-sampling\[openvino\]'"):
        open_model("fashion", Place("openvino"))


@pytest.mark.parametrize("version", ["2026.3.0-1-abc", "2025.4.1", "2026.4.0"])
def test_an_openvino_that_is_too_old_is_refused(installed, version):
    installed(version)
    if version.startswith("2026.4"):
        assert find_runtime().version == version
        return
    with pytest.raises(MissingDependency, match=rf"openvino is {version}, expected 2026\.4 or more"):
        find_runtime()


def test_importing_the_back_end_loads_no_runtime():
    code = "import sys, coupled_sampling.backends.openvino.opening; print({'openvino', 'onnxruntime', 'onnx'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_what_the_back_end_does_not_have_is_refused():
    with pytest.raises(InvalidArgument, match="device is 0, but backend 'openvino' runs on no GPU"):
        Place("openvino", device=0)
    with pytest.raises(
        InvalidArgument, match="step is 'graph', but backend is 'openvino', which decides steps by host"
    ):
        check_model("fashion", Place("openvino"), method="sjd", step="graph")
    assert check_model("fashion", Place("openvino"), method="sjd") == "host"


def test_threads_are_openvinos_choice_unless_they_are_given():
    assert "INFERENCE_NUM_THREADS" not in settings(None)
    assert settings(3)["INFERENCE_NUM_THREADS"] == 3
