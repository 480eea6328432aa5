"""The TensorRT provider on stand-ins that keep TensorRT's and CUDA's rules and compute the same graph with ONNX Runtime.

No GPU is used, so nothing here says that TensorRT computes what the graph says: only that this backend keeps the rules, moves the
right bytes, and gives the tokens of the CPU backend if the engine does compute it.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.cuda.device import CudaError
from coupled_sampling.backends.cuda.pointers import device_pointer
from coupled_sampling.backends.cuda.streams import DeviceArray
from coupled_sampling.backends.trt import EngineError
from coupled_sampling.contracts import LogitsProvider, max_window
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.testing import check_provider
from standins.fake_cuda import Code
from standins.fake_kernels import EmulatedCuda
from standins.trt_bundles import LENGTH, Machine, some_tokens, starts, write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("trt") / "toy")


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("flavour", "settings_"),
    [
        ("tensorrt", {}),
        ("tensorrt-rtx", {}),
        ("tensorrt", {"columns": (8, 20)}),
        ("tensorrt", {"windows": (5,)}),
        ("tensorrt", {"windows": tuple(range(1, LENGTH + 1))}),
        ("tensorrt", {"rows": 1}),
    ],
    ids=["tensorrt", "tensorrt-rtx", "column-buckets", "one-bucket", "no-padding", "one-row"],
)
def test_it_passes_the_conformance_suite(bundle, flavour, settings_):
    provider = Machine(flavour=flavour).open(bundle, **settings_)
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])


def test_it_keeps_the_contract(bundle):
    provider = Machine().open(bundle)
    assert isinstance(provider, LogitsProvider)
    assert (provider.vocab_size, provider.batch_size, provider.max_length, max_window(provider)) == (11, 3, LENGTH, 16)
    logits = provider.forward(some_tokens(2, 3), starts(0, 0))
    assert (logits.shape, logits.dtype) == ((2, 3, 11), np.float32)
    assert np.isneginf(logits[..., 8:]).all()


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_it_gives_the_tokens_of_the_cpu_backend(bundle, method):
    settings_ = {"length": 24, "method": method, "window": 1 if method == "ar" else 6, "drafting": "repeat", "seed": 3}
    prompts = [[8, 1, 2], [9], [10, 3]]
    expected = generate(OrtProvider.open(bundle, batch_size=3, threads=1), prompts, **settings_)
    found = generate(Machine().open(bundle), prompts, **settings_)
    for row, other in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(row, other)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_calls_give_the_logits_of_the_cpu_backend(bundle, data):
    """Rows, widths, starts and tokens all vary; starts go back, and never beyond what padding wrote over."""
    provider, oracle = Machine().open(bundle, columns=(16,)), OrtProvider.open(bundle, batch_size=3, threads=1)
    cached = np.zeros(3, np.int64)
    for _ in range(6):
        rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 16))
        start = starts(*(data.draw(st.integers(0, min(int(cached[b]), LENGTH - width))) for b in range(rows)))
        tokens = some_tokens(rows, width, seed=data.draw(st.integers(0, 1000)))
        close(provider.forward(tokens, start), oracle.forward(tokens, start))
        cached[:rows] = start + width


def test_a_shape_runs_once_is_captured_and_is_launched_from_then_on(bundle):
    machine = Machine()
    provider = machine.open(bundle)
    machine.cuda.calls.clear()
    for width in (3, 4, 2):  # one bucket
        provider.forward(some_tokens(1, width), starts(0))
    calls = machine.cuda.calls
    order = [name for name in calls if name.endswith(("Capture", "Launch", "Instantiate"))]
    assert order == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", *["cuGraphLaunch"] * 2]
    first = calls.index("cuStreamBeginCapture")
    copies = [name for name in calls[:first] if name.startswith("cuMemcpy")]
    assert len(copies) == 3, "it must have run once before it is captured"
    assert provider.captured == [(1, 4, 44)]
    launched = calls[calls.index("cuGraphLaunch") :]
    assert not {"cuMemAlloc", "cuMemAllocHost", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"} & set(launched)


def test_a_window_whose_padding_does_not_fit_runs_at_its_own_width_without_a_graph(bundle):
    provider, oracle = Machine().open(bundle, windows=(16,)), OrtProvider.open(bundle, threads=1)
    tokens = some_tokens(1, LENGTH)
    for first, end in ((0, 16), (16, 32), (32, 35), (35, 40)):
        close(
            provider.forward(tokens[:, first:end], starts(first)), oracle.forward(tokens[:, first:end], starts(first))
        )
    assert provider.captured == [(1, 16, 44)]


def test_prepare_captures_every_bucket(bundle):
    provider = Machine().open(bundle)
    provider.prepare()
    assert [shape.width for shape in provider.captured] == [1, 4, 16]


def test_what_padding_wrote_over_is_not_read(bundle):
    """Position 6 was forwarded, then written over by the padding of a shorter window; starting behind it is refused."""
    provider = Machine().open(bundle, rows=2)
    tokens = some_tokens(2, 16)
    provider.forward(tokens, starts(0, 0))
    provider.forward(1 - tokens[:1, 5:7] % 2, starts(5))
    with pytest.raises(
        InvalidArgument, match="row 0 starts at 8, but positions from 7 on were written over by the padding"
    ):
        provider.forward(tokens[:1, 8:9], starts(8))
    provider.forward(tokens[:, 9:10], starts(7, 9))  # the other row was in no padded call
    provider.forward(tokens[:1, 8:12], starts(8))
    provider.forward(tokens[:1, 12:13], starts(12))


def test_a_window_that_says_again_what_was_there_keeps_what_lies_behind_it(bundle):
    """As idle rows do while others go on: its padding is the tokens that were there."""
    provider, oracle = Machine().open(bundle, rows=2), OrtProvider.open(bundle, batch_size=2, threads=1)
    tokens, others = some_tokens(2, 24), some_tokens(2, 24, seed=1)
    for one in (provider, oracle):
        one.forward(tokens[:, :16], starts(0, 0))
    for width in (2, 5, 3):
        window = np.stack([tokens[0, :width], others[1, 16 : 16 + width]])
        provider.forward(window, starts(0, 16))
    close(provider.forward(tokens[:1, 16:20], starts(16)), oracle.forward(tokens[:1, 16:20], starts(16)))
    with pytest.raises(InvalidArgument, match="row 1 starts at 22, but positions from 21 on"):
        provider.forward(tokens[:, 20:22], starts(20, 22))


def test_wide_padding_is_remembered_behind_narrow_padding(bundle):
    provider, tokens = Machine().open(bundle, rows=1), some_tokens(1, 20)
    for i, (first, end) in enumerate(((0, 16), (0, 5), (5, 7), (7, 11))):  # padded to 16, 16, 9, and not at all
        provider.forward((tokens[:, first:end] + i) % 11, starts(first))
    with pytest.raises(InvalidArgument, match="positions from 11 on were written over"):
        provider.forward(tokens[:, 14:15], starts(14))


@settings(max_examples=24, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_call_after_padding_is_right_or_refused(bundle, data):
    """Windows of two fixed sequences, anywhere in what was forwarded; after the last one nothing is refused."""
    provider, oracle = Machine().open(bundle, rows=2), OrtProvider.open(bundle, batch_size=2, threads=1)
    tokens, reached = some_tokens(2, LENGTH), np.zeros(2, np.int64)
    whole = oracle.forward(tokens, starts(0, 0)).copy()
    for _ in range(8):
        rows, width = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 16))
        start = starts(*(data.draw(st.integers(0, min(int(reached[b]), LENGTH - width))) for b in range(rows)))
        window = np.stack([tokens[b, start[b] : start[b] + width] for b in range(rows)])
        try:
            logits = provider.forward(window, start)
        except InvalidArgument as error:
            assert "written over by the padding" in str(error)  # noqa: PT017
            continue
        for b in range(rows):
            close(logits[b], whole[b, start[b] : start[b] + width])
        reached[:rows] = np.maximum(reached[:rows], start + width)
        following = np.minimum(start + width, LENGTH - 1)
        provider._runner._check_overwritten(following)


def test_padding_that_was_not_refused_would_give_wrong_logits(bundle):
    """Negative control of the test before: without the check the answer is wrong, in silence."""
    provider, oracle = Machine().open(bundle, rows=1), OrtProvider.open(bundle, threads=1)
    provider._runner._check_overwritten = lambda start: None
    tokens = some_tokens(1, 16)
    for one in (provider, oracle):
        one.forward(tokens, starts(0))
        one.forward((tokens[:, 5:7] + 1) % 11, starts(5))
    found, expected = (one.forward(tokens[:, 12:13], starts(12)) for one in (provider, oracle))
    assert np.abs(found[..., :8] - expected[..., :8]).max() > 1e-3


def test_logits_can_stay_on_the_device(bundle):
    machine = Machine()
    provider, oracle = machine.open(bundle, on_device=True), OrtProvider.open(bundle, batch_size=3, threads=1)
    tokens = some_tokens(3, 12)
    for first, end in ((0, 3), (3, 6), (6, 12)):
        logits = provider.forward(tokens[:, first:end], starts(*[first] * 3))
        assert isinstance(logits, DeviceArray)
        provider.stream.synchronize()
        block, offset = machine.cuda.find(logits.address, 4 * int(np.prod(logits.shape)), "reading")
        found = block.content[offset:].view(np.float32)[: np.prod(logits.shape)].reshape(logits.shape)
        close(found, oracle.forward(tokens[:, first:end], starts(*[first] * 3)))
        pointer = device_pointer(logits)
        assert (pointer.pointer, pointer.shape, pointer.dtype) == (logits.address, logits.shape, "float32")
        assert pointer.stream == provider.stream.handle
    assert {shape.width for shape in provider.captured} == {3, 6}


def test_past_and_present_are_one_buffer(bundle):
    provider = Machine().open(bundle)
    provider.forward(some_tokens(1, 1), starts(0))
    context = next(iter(provider._runner._prepared.values())).context._context
    for name in ("0.key", "0.value", "1.key", "1.value"):
        past, present = (context.get_tensor_address(f"{prefix}.{name}") for prefix in ("past_key_values", "present"))
        assert past == present != 0


def test_closing_gives_everything_back(bundle):
    machine = Machine()
    provider = machine.open(bundle)
    provider.prepare()
    provider.close()
    provider.close()
    assert not machine.cuda.live()
    with pytest.raises(ProviderError, match="was freed"):
        provider.forward(some_tokens(1, 1), starts(0))


def test_two_providers_share_nothing(bundle):
    machine = Machine()
    one, other = machine.open(bundle), machine.open(bundle)
    oracle = OrtProvider.open(bundle, threads=1)
    tokens, others = some_tokens(1, 8), some_tokens(1, 8, seed=9)
    one.forward(tokens[:, :4], starts(0))
    other.forward(others[:, :4], starts(0))
    oracle.forward(tokens[:, :4], starts(0))
    close(one.forward(tokens[:, 4:], starts(4)), oracle.forward(tokens[:, 4:], starts(4)))


@pytest.mark.parametrize(
    ("flavour", "why"),
    [("tensorrt-rtx", "TensorRT cannot capture them"), ("tensorrt", "not permitted when stream is capturing")],
)
def test_an_engine_that_cannot_be_captured_runs_without_a_graph_and_says_so(bundle, flavour, why):
    """``tensorrt_rtx`` tells beforehand; ``tensorrt`` refuses when it is tried."""
    provider = Machine(flavour=flavour, capturable=False).open(bundle)
    with pytest.warns(UserWarning, match=f"run without a CUDA graph: .*{why}"):
        provider.forward(some_tokens(1, 4), starts(0))
    close(
        provider.forward(some_tokens(1, 4), starts(0)), OrtProvider.open(bundle).forward(some_tokens(1, 4), starts(0))
    )
    assert provider.captured == []


def test_a_capture_that_cuda_cannot_end_is_done_without(bundle):
    machine = Machine()
    provider = machine.open(bundle)
    machine.cuda.fail("cuStreamEndCapture", Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    with pytest.warns(UserWarning, match=r"run without a CUDA graph: cuStreamEndCapture failed: .*\(900\)"):
        provider.forward(some_tokens(1, 4), starts(0))
    provider.forward(some_tokens(1, 4), starts(0))
    assert provider.captured == []


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        (some_tokens(4, 2), starts(0, 0, 0, 0), "tokens has 4 rows"),
        (some_tokens(1, 17), starts(0), "tokens has 17 slots, expected 1 to max_window, 16"),
        (some_tokens(1, 3), starts(38), "row 0 starts at 38"),
        (np.array([[11]]), starts(0), "is token 11"),
    ],
)
def test_a_call_out_of_bounds_is_refused_before_anything_is_queued(bundle, tokens, start, message):
    machine = Machine()
    provider = machine.open(bundle)
    machine.cuda.calls.clear()
    with pytest.raises(InvalidArgument, match=message):
        provider.forward(tokens, start)
    assert not machine.cuda.calls


@pytest.mark.parametrize("function", ["cuMemcpyDtoHAsync", "cuStreamSynchronize", "cuStreamEndCapture"])
def test_a_failing_call_is_named_and_the_next_one_works(bundle, function):
    machine = Machine()
    provider = machine.open(bundle)
    machine.cuda.fail(function, Code.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match=f"{function} failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        provider.forward(some_tokens(1, 4), starts(0))
    close(
        provider.forward(some_tokens(1, 4), starts(0)), OrtProvider.open(bundle).forward(some_tokens(1, 4), starts(0))
    )


def test_no_driver_says_what_to_do(bundle):
    cuda = EmulatedCuda()
    cuda.fail("cuInit", RuntimeError("no libcuda"))
    with pytest.raises(MissingDependency, match=r"there is no NVIDIA driver \(no libcuda\): install the driver"):
        Machine(cuda=cuda).open(bundle)


def test_too_little_memory_is_refused_before_building(bundle):
    machine = Machine(cuda=EmulatedCuda(memory=10_000))
    with pytest.raises(
        ProviderError, match=r"0\.0 MiB free of 0\.0 MiB, but at least .* are needed \(weights .*caches .*logits"
    ):
        machine.open(bundle)
    assert machine.trt.built == 0


def test_a_graph_that_is_not_what_the_manifest_promises_is_refused(tmp_path):
    def rename(model):
        model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"

    bundle = write_bundle(tmp_path / "toy", change=rename)
    with pytest.raises(BundleError, match="'logits' is missing"):
        Machine().open(bundle)


def test_an_engine_that_copies_its_caches_is_refused(bundle, monkeypatch):
    monkeypatch.setattr("standins.fake_tensorrt.ICudaEngine.get_aliased_input_tensor", lambda self, name: None)
    with pytest.raises(EngineError, match=r"present\.0\.key lies in None"):
        Machine().open(bundle)


@pytest.mark.parametrize(
    ("failing", "result"),
    [
        ("ICudaEngine.create_execution_context", None),
        ("IExecutionContext.set_input_shape", False),
        ("IExecutionContext.execute_async_v3", False),
        ("IExecutionContext.infer_shapes", RuntimeError("infer_shapes error code: -1")),
        ("IExecutionContext.set_optimization_profile_async", RuntimeError("Error in set optimization profile async.")),
    ],
)
def test_what_tensorrt_reports_is_an_error_of_ours(bundle, monkeypatch, failing, result):
    def fail(*_):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(f"standins.fake_tensorrt.{failing}", fail)
    with pytest.raises(EngineError, match=r"TensorRT gave no reason|infer_shapes error|Error in set optimization"):
        Machine().open(bundle).forward(some_tokens(1, 4), starts(0))


def test_without_a_driver_that_tensorrt_can_use_the_error_says_so(bundle):
    """TensorRT's Python raises a ``TypeError`` that says nothing, and its log what is wrong."""
    with pytest.raises(EngineError, match=r"starting tensorrt .*CUDA initialization failure.*update the NVIDIA driver"):
        Machine(starts=False).open(bundle)
    Machine().open(bundle)
    with pytest.raises(EngineError, match=r"starting tensorrt .*CUDA initialization failure.*update the NVIDIA driver"):
        Machine(starts=False).open(bundle)
