"""`TrtStep`: what it refuses, and what becomes of failures. On the stand-ins of `test_trt_step`; nothing ran on a GPU."""

import sys

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends import Place, open_model
from coupled_sampling.backends.cuda.device import CudaError
from coupled_sampling.backends.trt import EngineError
from coupled_sampling.backends.trt.runner import Runner
from coupled_sampling.backends.trt.step import step_tensors
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.errors import BundleError, InvalidArgument, InvalidLogits, MissingDependency, ProviderError
from standins.fake_cuda import Code
from standins.fake_kernels import EmulatedCuda
from standins.refused import LOGPROBS, OTHERS, PROCESSORS, WARPS, expect_refusals
from standins.trt_bundles import LENGTH, Machine, adding, write_bundle
from standins.trt_steps import STEPS, expect_the_tokens_of_host_step, kernels, one_row

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cuda.bindings.nvrtc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("step") / "toy", steps=STEPS)


@pytest.fixture
def with_kernels(monkeypatch):
    with kernels(monkeypatch) as install:
        yield install


@pytest.fixture
def machine(with_kernels):
    return with_kernels(Machine())


def opened(bundle, method="scd-match", **settings):
    return open_model(bundle, Place("tensorrt"), method=method, step="graph", **settings)


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "speculative"])
def test_other_methods_are_refused_before_anything_is_looked_for(bundle, method):
    message = rf"method is '{method}', expected 'scd-match'.*float64.*ring of 3 axes.*CUDA kernels decide"
    with pytest.raises(InvalidArgument, match=message):
        opened(bundle, method)


def test_guidance_and_cuts_are_refused(bundle):
    with pytest.raises(InvalidArgument, match=r"guidance is 2\.0, expected 1 .*float64"):
        opened("fashion", guidance=2.0)
    with pytest.raises(InvalidArgument, match=r"warped is True, expected neither .*float64"):
        opened(bundle, warped=True)


def test_without_its_graph_the_error_is_the_command_that_makes_it(machine, tmp_path, monkeypatch, capsys):
    bundle = write_bundle(tmp_path / "toy")
    with pytest.raises(BundleError, match="no step graph for TensorRT; make one with") as refused:
        machine.open_step(bundle)
    with pytest.raises(InvalidArgument, match="step is 'graph', but the bundle toy has no step graph for TensorRT"):
        opened(bundle)
    monkeypatch.chdir(tmp_path)
    command = str(refused.value).split("`")[1].split()
    assert main(command[1:]) == 0
    expect_the_tokens_of_host_step(bundle, machine.open_step(tmp_path / "toy-steps"))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (one_row([1, 2], Sampling(top_k=2)), r"top_k=2.*float64.*use KernelStep"),
        (one_row([1, 2], Sampling(top_p=0.5)), "row 0 asks for"),
        (one_row([1, 2], Sampling(min_p=0.5)), "row 0 asks for"),
        (one_row([1, 2], Sampling(processors=(lambda x, t, p: x,))), "row 0 has logits processors.*use HostStep"),
        (one_row([1, 11]), "slot 1 is token"),
        (one_row([1, 2], start=LENGTH), "starts at"),
    ],
)
def test_a_window_that_cannot_be_is_refused_before_anything_is_queued(machine, bundle, window, message):
    step = machine.open_step(bundle)
    machine.cuda.calls.clear()
    with pytest.raises(InvalidArgument, match=message):
        step.step(window)
    assert not machine.cuda.calls


def test_requests_for_what_it_cannot_do_are_refused_before_anything_runs(machine, bundle):
    step = machine.open_step(bundle)
    machine.cuda.calls.clear()
    asked = PROCESSORS | LOGPROBS | OTHERS
    refused = {name: (settings, "which a step in TensorRT") for name, settings in asked.items()}
    refused |= {name: (settings, "use KernelStep over TrtProvider") for name, settings in WARPS.items()}
    expect_refusals(step, refused, [{}, {"sampling": Sampling(0.5)}])
    assert not machine.cuda.calls


def test_what_padding_wrote_over_is_not_read(machine, bundle):
    step = machine.open_step(bundle)
    step.step(one_row([1] * 16))
    step.step(one_row([2] * 5, start=5))
    with pytest.raises(InvalidArgument, match="positions from 10 on were written over by the padding"):
        step.step(one_row([1] * 4, start=12))


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_unusable_logits_are_told_by_row_and_position(machine, tmp_path, fault):
    step = machine.open_step(write_bundle(tmp_path / "toy", change=adding({3: fault}), steps=STEPS))
    failure = step.step(one_row([1, 2])).failures[0]
    assert isinstance(failure, InvalidLogits)
    assert "row 0 for position 1 hold" in str(failure)


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuMemcpyDtoHAsync", "cuGraphInstantiate"])
def test_a_failing_call_is_named_and_the_next_one_works(machine, bundle, function):
    step = machine.open_step(bundle)
    machine.cuda.fail(function, Code.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match=f"{function} failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        step.step(one_row([1, 2, 3, 4]))
    expect_the_tokens_of_host_step(bundle, step)


def test_a_failing_build_writes_nothing(with_kernels, tmp_path):
    bundle = write_bundle(tmp_path / "toy", steps=STEPS)
    with pytest.raises(EngineError, match=r"building step-scd-match-tensorrt\.onnx"):
        with_kernels(Machine(builds=False)).open_step(bundle)
    assert list(bundle.with_name("toy.engines").iterdir()) == []


def test_a_lost_mask_is_refused(machine, tmp_path):
    machine.trt.losing_mask = True
    with pytest.raises(EngineError, match="without its boolean mask"):
        machine.open_step(write_bundle(tmp_path / "toy", steps=STEPS))


def test_too_little_memory_is_refused_before_building(with_kernels, bundle, tmp_path):
    machine = with_kernels(Machine(cuda=EmulatedCuda(memory=10_000)))
    with pytest.raises(ProviderError, match=r"at least .* are needed \(weights .*caches .*noise"):
        machine.open_step(bundle, engines=tmp_path)
    assert machine.trt.built == 0


def test_kernels_that_cannot_be_compiled_are_missed_before_building(machine, bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingDependency, match="CUDA kernels need"):
        machine.open_step(bundle, engines=tmp_path)
    assert machine.trt.built == 0


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(with_kernels, bundle):
    step = with_kernels(Machine(flavour="tensorrt-rtx", capturable=False)).open_step(bundle)
    with pytest.warns(UserWarning, match="run without a CUDA graph"):
        expect_the_tokens_of_host_step(bundle, step)
    assert step.captured == []


def test_a_window_engine_is_no_step(machine, bundle):
    """What `Runner` refuses, were one ever to get here."""
    provider = machine.open(bundle)
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match="'committed' is missing"):
        Runner(
            opened,
            provider.engine,
            provider.options,
            provider.fingerprint,
            step_tensors(opened.manifest),
            (),
        )
