"""ONNX Runtime's TensorRT execution provider on a stand-in. Neither a GPU nor TensorRT's libraries were there."""

import json
import os

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort import gpu_session as ort_gpu_session
from coupled_sampling.backends.ort.cuda_provider import OrtCudaProvider
from coupled_sampling.backends.ort.tensorrt import TensorrtOptions
from coupled_sampling.errors import InvalidArgument, MissingDependency, OutputError, ProviderError
from coupled_sampling.testing import check_provider
from standins.fake_onnxruntime import CUDA, TENSORRT, FakeRuntime
from standins.on_a_gpu import opened
from standins.trt_bundles import write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "toy")


@pytest.fixture
def runtime(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    fake = FakeRuntime()
    monkeypatch.setattr(ort_gpu_session, "require_onnxruntime", lambda install: fake)
    return fake


def starts(*values):
    return np.array(values, np.int64)


def engines(bundle):
    """The folders of engines beside a bundle."""
    return sorted(bundle.with_name("toy.engines").glob("*"))


def test_it_passes_the_conformance_suite(bundle, runtime):
    provider = OrtCudaProvider.open_on_gpu(bundle, batch_size=3, tensorrt=TensorrtOptions())
    assert provider.execution_provider == TENSORRT
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])


def test_it_gives_the_tokens_of_the_cpu(bundle, runtime):
    settings = {"length": 20, "method": "scd-gumbel", "window": 6, "drafting": "repeat", "seed": 1}
    provider = OrtCudaProvider.open_on_gpu(bundle, batch_size=2, tensorrt=TensorrtOptions(), column_buckets=(16,))
    found = generate(provider, [[8], [3, 1]], **settings)
    expected = generate(OrtProvider.open(bundle, batch_size=2, threads=1), [[8], [3, 1]], **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()


def test_the_session_is_what_it_must_be(bundle, runtime):
    """Caches stay with CUDA, whose kernel writes them in place; the rest is reported where it is."""
    provider = OrtCudaProvider.open_on_gpu(
        bundle, tensorrt=TensorrtOptions(fp16=True, more={"trt_builder_optimization_level": "2"})
    )
    (session,) = runtime.sessions
    (folder,) = engines(bundle)
    (name, settings), (second, _) = session.providers
    assert (name, second) == (TENSORRT, CUDA)
    assert settings == {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "1",
        "trt_op_types_to_exclude": "Attention,TensorScatter,Slice",
        "trt_builder_optimization_level": "2",
    }
    assert dict(provider.placement[TENSORRT]) == {"Gemm": 9, "Gelu": 2}
    assert provider.placement[CUDA]["Attention"] == 2
    assert set(provider.on_cpu) == {"Slice", "Concat"}


def test_engines_are_tuned_for_the_largest_and_the_smallest_window_at_opening(bundle, runtime, monkeypatch):
    seen = []
    real = OrtCudaProvider._run
    monkeypatch.setattr(
        OrtCudaProvider, "_run", lambda self, *shape: seen.append((*shape, *self._kv_length)) or real(self, *shape)
    )
    options = TensorrtOptions(max_window=7)
    OrtCudaProvider.open_on_gpu(bundle, batch_size=3, tensorrt=options, column_buckets=(8,))
    assert seen == [(3, 7, 44), (1, 1, 8)]
    provider = OrtCudaProvider.open_on_gpu(bundle, batch_size=3, tensorrt=options)
    assert provider.max_window == 7
    with pytest.raises(InvalidArgument, match="window"):
        provider.forward(np.zeros((1, 8), np.int64), starts(0))
    provider.forward(np.zeros((1, 2), np.int64), starts(0))
    assert seen[2:] == [(3, 7, 44), (1, 1, 44), (1, 2, 44)], "shapes within an engine must not change with kv_length"


def test_weights_versions_and_options_have_engines_of_their_own(bundle, runtime, tmp_path):
    """ONNX Runtime tells engines apart by names in the graph, which are the same after more training."""
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    assert len(engines(bundle)) == 1
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions(fp16=True))
    assert len(engines(bundle)) == 2
    runtime.__version__ = "1.32.0"
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    assert len(engines(bundle)) == 3
    before = json.loads((bundle / "manifest.json").read_text())["files"]
    write_bundle(bundle, seed=1)
    assert json.loads((bundle / "manifest.json").read_text())["files"] != before
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    assert len(engines(bundle)) == 4
    OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions(engines=tmp_path / "mine"))
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_tf32_is_refused_unless_it_is_off_or_allowed(bundle, runtime, monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with pytest.raises(InvalidArgument, match=r"NVIDIA_TF32_OVERRIDE is None.*NVIDIA_TF32_OVERRIDE=0, or allow it"):
        TensorrtOptions()
    assert TensorrtOptions(tf32=True).tf32


def libraries_are_missing(runtime):
    # What onnxruntime-gpu 1.28 and 1.31 say where libnvinfer.so.10 cannot be loaded.
    runtime.fails = (
        "onnxruntime_pybind_state.cc:729 void onnxruntime::python::RegisterTensorRTPluginsAsCustomOps(...) Please install TensorRT "
        "libraries as mentioned in the GPU requirements page, make sure they're in the PATH or LD_LIBRARY_PATH, and that your GPU "
        "is supported."
    )


def left_out_with_a_line_in_the_log(runtime):
    runtime.used = CUDA


@pytest.mark.parametrize("spoil", [libraries_are_missing, left_out_with_a_line_in_the_log])
def test_missing_libraries_are_an_error_and_leave_nothing(bundle, runtime, spoil):
    spoil(runtime)
    with pytest.raises(MissingDependency, match=r"libnvinfer\.so\.10.*TensorRT 10 and not 11.*LD_LIBRARY_PATH"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    assert not bundle.with_name("toy.engines").exists()


def test_an_engine_that_cannot_be_built_is_no_missing_library(bundle, runtime):
    runtime.fails = "TensorRT EP failed to create engine from network."
    with pytest.raises(
        ProviderError, match=r"with TensorRT: TensorRT EP failed to create engine.*use the backend 'cuda'"
    ):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())


def test_a_package_without_tensorrt_is_refused(bundle, runtime):
    runtime.available = [CUDA, "CPUExecutionProvider"]
    with pytest.raises(MissingDependency, match=r"built without TensorRT.*coupled-sampling\[gpu\]"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())


def test_no_gpu_is_refused(bundle, runtime):
    runtime.used = "CPUExecutionProvider"
    with pytest.raises(ProviderError, match=r"on CPUExecutionProvider, expected TensorrtExecutionProvider.*nvidia-smi"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())


def test_tensorrt_that_takes_nothing_is_refused(bundle, runtime):
    runtime.on_tensorrt = ("Attention",)
    with pytest.raises(ProviderError, match=r"TensorRT takes no node .*CPUExecutionProvider \(\d+\), CUDAExecution"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    provider = OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions(excluded=()))
    assert dict(provider.placement[TENSORRT]) == {"Attention": 2}


def test_nodes_on_the_cpu_are_refused(bundle, runtime):
    runtime.on_cpu = ("Slice", "Transpose")
    with pytest.raises(ProviderError, match=r"no CUDA kernel for \d+ nodes .* Transpose"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions())
    assert engines(bundle) == []


def test_a_folder_that_cannot_be_made_is_refused(bundle, runtime, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="pass engines=, a folder that is yours"):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions(engines=tmp_path / "file"))
    assert runtime.sessions == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(bundle, runtime, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="pass engines="):
        OrtCudaProvider.open_on_gpu(bundle, tensorrt=TensorrtOptions(engines=tmp_path / "locked"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fp16": "yes"}, "fp16 is 'yes', expected True or False"),
        ({"tf32": 1}, "tf32 is 1"),
        ({"max_window": 0}, "max_window is 0"),
        ({"max_window": True}, "max_window is True"),
        ({"excluded": "Attention"}, "excluded is 'Attention', expected a sequence"),
        ({"more": {"device_id": "1"}}, "more has 'device_id'.*begin with 'trt_'"),
    ],
)
def test_options_that_cannot_work_are_refused(runtime, settings, match):
    with pytest.raises(InvalidArgument, match=match):
        TensorrtOptions(**settings)


@pytest.mark.gpu
def test_on_a_gpu_it_passes_the_conformance_suite(bundle, tmp_path):
    options = TensorrtOptions(tmp_path / "mine", tf32=True, max_window=8)
    provider = opened(lambda: OrtCudaProvider.open_on_gpu(bundle, batch_size=3, tensorrt=options))
    print(provider.placement)
    reference = OrtProvider.open(bundle)
    check_provider(provider, tolerance=2e-2, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])
