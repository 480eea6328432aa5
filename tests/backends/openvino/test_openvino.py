"""OpenVINO on the CPU, on small random models. Skipped where it is not installed: ``make test-openvino`` installs it.

Oracles: the numpy reference of the exporter, which knows no caches; and ONNX Runtime on the same bundle, in windows of its own.
"""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, HostStep, Request, generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import Forks, LogitsProvider, ReadsPrompts, RowRanges, max_window
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.export import DecoderDescription, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rotary import Rotary
from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.testing import StepComparison, check_provider
from standins.toy_bundles import toy_gpt, toy_weights, write_toy_bundle

pytest.importorskip("openvino", reason="openvino is not installed: make test-openvino installs it")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from coupled_sampling.backends.openvino import OpenVinoProvider  # noqa: E402 - it is skipped without openvino

ROWS, LENGTH, VOCAB, DEAD = 3, 80, 11, 9
GPT = toy_gpt(LENGTH)
LLAMA = DecoderDescription(
    VOCAB, LENGTH, width=32, layers=2, heads=4, mlp_width=24, kv_heads=2, rotary=Rotary(), cache_length=LENGTH
)
DESCRIPTIONS = {
    "grouped queries": LLAMA,
    "a sliding window": dataclasses.replace(LLAMA, attention_window=5),
    "heads of odd sizes and scales": dataclasses.replace(LLAMA, head_size=6, attention_scale=0.3),
    "normed queries and keys": dataclasses.replace(LLAMA, kv_heads=1, query_key_norm=QueryKeyNorm(Norm("rms"))),
    "learned positions": GPT,
}


def bundle_of(path, description, storage=None):
    """A bundle of that description, whose weights are stored so."""
    bundle = open_bundle(write_toy_bundle(path / "toy", description, max_window=70))
    write_decoder_graph(description, toy_weights(description), bundle.window_graph, storage=storage, inline=True)
    return bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_bundle(tmp_path_factory.mktemp("openvino") / "toy", GPT, max_window=70)


@pytest.fixture
def provider(folder):
    return OpenVinoProvider.open(folder, batch_size=ROWS, threads=1)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def starts(*values):
    return np.array(values, np.int64)


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def scored(description, tokens):
    """Logits (T, V) of a whole sequence (T,), by the reference."""
    return reference_logits(description, toy_weights(description), tokens)


def blocks(provider):
    """What every cache holds, by row."""
    return {name: cache.reshape(ROWS, -1).copy() for name, cache in provider._caches.items()}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_it_passes_the_conformance_suite(tmp_path, name):
    description = DESCRIPTIONS[name]
    with OpenVinoProvider.open(bundle_of(tmp_path, description), ROWS, threads=1) as provider:
        tokens = range(description.generated)
        check_provider(provider, reference=lambda sequence: scored(description, sequence), tokens=tokens)


def test_it_keeps_the_contract(provider):
    for offer in (LogitsProvider, RowRanges, ReadsPrompts, Forks):
        assert isinstance(provider, offer)
    assert (provider.vocab_size, provider.batch_size, provider.max_length) == (VOCAB, ROWS, LENGTH)
    assert (max_window(provider), provider.prompt_chunk, provider.forks) == (70, 70, True)
    logits = provider.forward(some_tokens(3, 4), starts(0, 0, 0))
    assert (logits.shape, logits.dtype) == ((3, 4, VOCAB), np.float32)
    assert str(provider.runs).startswith("on OpenVINO 20")


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_ragged_windows_that_go_back_give_the_references_logits(tmp_path, name):
    """Over the edges of blocks, with rows of their own lengths; and caches begin as the worst there can be."""
    description, tokens = DESCRIPTIONS[name], some_tokens(2, LENGTH)
    provider = OpenVinoProvider.open(bundle_of(tmp_path, description), 2, threads=1)
    for cache in provider._caches.values():
        cache[...] = np.nan
    schedule = (([0, 0], 40), ([40, 31], 1), ([31, 32], 2), ([33, 5], 30), ([63, 35], 1), ([64, 0], 16), ([10, 8], 3))
    for seed, (start, width) in enumerate(schedule):
        for row in (0, 1):
            tokens[row, start[row] :] = some_tokens(LENGTH - start[row], seed=2 * seed + row)
        found = provider.forward(
            np.stack([tokens[row, start[row] : start[row] + width] for row in (0, 1)]), starts(*start)
        )
        for row in (0, 1):
            close(found[row], scored(description, tokens[row, : start[row] + width])[start[row] :])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_and_widths_of_all_kinds_give_onnx_runtimes_logits(folder, data):
    provider = OpenVinoProvider.open(folder, ROWS, threads=1)
    other, held = OrtProvider.open(folder, ROWS, threads=1), np.zeros(ROWS, np.int64)
    for seed in range(6):
        first = data.draw(st.integers(0, ROWS - 1))
        rows = range(first, data.draw(st.integers(first + 1, ROWS)))
        width = data.draw(st.integers(1, 70))
        start = starts(*(data.draw(st.integers(0, min(int(held[row]), LENGTH - width))) for row in rows))
        tokens = some_tokens(len(rows), width, seed=seed)
        close(provider.forward_rows(tokens, start, rows), other.forward_rows(tokens, start, rows))
        held[rows] = start + width


@pytest.mark.parametrize("rows", [range(1), range(ROWS), range(1, 2), range(1, ROWS)], ids=str)
def test_other_rows_keep_their_state_bit_by_bit(provider, rows):
    provider.forward(some_tokens(ROWS, 40), starts(*[0] * ROWS))
    before = blocks(provider)
    provider.forward_rows(some_tokens(len(rows), 6, seed=1), starts(*range(28, 28 + len(rows))), rows)
    for name, now in blocks(provider).items():
        changed = (now != before[name]).any(axis=1)
        np.testing.assert_array_equal(changed, [row in rows for row in range(ROWS)])


def test_calls_of_one_shape_for_one_row_after_the_other(provider):
    """What is fed in place is the row's own."""
    tokens = some_tokens(ROWS, 12)
    for first in (0, 6):
        for row in range(ROWS):
            window = tokens[row : row + 1, first : first + 6]
            found = provider.forward_rows(window, starts(first), range(row, row + 1))
            close(found[0], scored(GPT, tokens[row, : first + 6])[first:])


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 60])
def test_a_fork_goes_on_as_its_source_would(provider, length):
    tokens = some_tokens(1, LENGTH)
    provider.forward(tokens[:, :60], starts(0))
    provider.forward_rows(some_tokens(1, 70, seed=5), starts(0), range(2, 3))
    provider.fork(0, [2], length)
    window = tokens[:, length : length + 10]
    close(provider.forward_rows(window, starts(length), range(2, 3))[0], scored(GPT, tokens[0, : length + 10])[length:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_token_that_the_model_cannot_compute_disturbs_nobody(tmp_path, name, value):
    """Neither slots to its left, nor rows beside it, nor later windows."""
    description = DESCRIPTIONS[name]

    def spoil(model):
        (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "embedding.weight"]
        numbers = onnx.numpy_helper.to_array(table).copy()
        numbers[DEAD] = value
        table.CopyFrom(onnx.numpy_helper.from_array(numbers, table.name))

    folder = write_toy_bundle(tmp_path / "toy", description, max_window=70, change=spoil)
    provider = OpenVinoProvider.open(folder, 2, threads=1)
    tokens = np.full((2, 40), 3)
    tokens[0, 35] = DEAD
    expected = scored(description, np.full(40, 3))
    found = provider.forward(tokens, starts(0, 0))
    close(found[0, :35], expected[:35])
    close(found[1], expected)
    assert np.isnan(found[0, 35, : description.generated]).all()
    for start, width in ((34, 1), (30, 5), (35, 4)):  # next to what is dead, before it, over it
        close(provider.forward(np.full((2, width), 3), starts(start, start))[0], expected[start : start + width])


@pytest.mark.parametrize("method", ["scd-match", "scd-maximal"])
def test_every_decision_is_that_over_onnx_runtimes_logits(method):
    """Where rounding decides otherwise, the comparison shows that it is a tie; tokens beside the reference's are its own."""
    with (
        OpenVinoProvider.open("fashion", ROWS, threads=1) as provider,
        OrtProvider.open("fashion", ROWS, threads=1) as other,
    ):
        both = StepComparison(other, HostStep(provider, method), logits_error=1e-4)
        decoder = Decoder(both, window=16, drafting="copy:14")
        for sequence in range(ROWS):
            decoder.add(Request([258 + sequence], 120, sequence=sequence))
        while decoder.active or decoder.waiting:
            decoder.step()
        report = both.report().check()
    assert report.sites > 1000
    print(report)


def test_match_gives_the_tokens_of_one_by_one():
    with open_model("fashion", Place("openvino", threads=1), 2) as model:
        prompts, found = [[258], [262]], {}
        for method, window in (("ar", 1), ("scd-match", 16)):
            found[method] = generate(model, prompts, length=100, window=window, method=method, seed=3).tokens
    for one, other in zip(found["ar"], found["scd-match"], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weights", ["float16", "int8", "int4"])
def test_weights_of_other_types_give_onnx_runtimes_logits(tmp_path, weights):
    """ONNX Runtime widens them when they are loaded; OpenVINO keeps them as they are."""
    description = dataclasses.replace(LLAMA, width=64, mlp_width=64, head_size=16)
    bundle = bundle_of(tmp_path, description, Storage(weights=weights))
    with OpenVinoProvider.open(bundle, 2, threads=1) as provider, OrtProvider.open(bundle, 2, threads=1) as other:
        for start, width in ((0, 33), (20, 1), (20, 8)):
            tokens, begin = some_tokens(2, width, seed=width), starts(start, start)
            close(provider.forward(tokens, begin), other.forward(tokens, begin), atol=2e-4)
        check_provider(provider)


def test_logits_of_an_earlier_call_can_still_be_read(provider):
    """They may have been written over, as the contract says, and are never memory that was given back."""
    kept = [provider.forward(some_tokens(ROWS, width), starts(*[0] * ROWS)) for width in (1, 70, 2, 60)]
    provider.close()
    gc.collect()
    assert all(np.isfinite(logits[..., : GPT.generated]).all() for logits in kept)


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        (some_tokens(1, 71), starts(0), "tokens has 71 slots"),
        (some_tokens(2, 3), starts(0, -1), "row 1 starts at -1, expected 0 to 77"),
        (some_tokens(2, 3), starts(0, 78), "row 1 starts at 78, expected 0 to 77"),
        (some_tokens(4, 2), starts(0, 0, 0, 0), "tokens has 4 rows"),
        (np.array([[0, VOCAB]]), starts(0), r"token 11, expected tokens in \[0, 11\)"),
    ],
)
def test_a_call_out_of_bounds_is_refused_and_changes_nothing(provider, tokens, start, message):
    with pytest.raises(InvalidArgument, match=message):
        provider.forward(tokens, start)
    assert all(not cache.any() for cache in provider._caches.values())


def test_the_last_position_can_be_used_and_no_other_row_is_written(provider):
    tokens = some_tokens(LENGTH)
    provider.forward(tokens[None, :70], starts(0))
    close(provider.forward(tokens[None, 70:], starts(70))[0], scored(GPT, tokens)[70:])
    assert all(not row.any() for cache in blocks(provider).values() for row in cache[1:])


def test_a_closed_provider_says_so_and_gives_its_memory_back(folder):
    with OpenVinoProvider.open(folder, 2, threads=1) as provider:
        logits = weakref.ref(provider.forward(some_tokens(2, 4), starts(0, 0)).base)
        caches = [weakref.ref(cache) for cache in provider._caches.values()]
    provider.close()
    gc.collect()
    assert [kept() for kept in (logits, *caches)] == [None] * (1 + len(caches))
    assert not provider.forks
    for call in (
        lambda: provider.forward(some_tokens(1, 4), starts(0)),
        lambda: provider.forward_rows(some_tokens(1, 4), starts(0), range(1)),
        lambda: provider.fork(0, [1], 1),
    ):
        with pytest.raises(ProviderError, match="was closed and cannot run any more"):
            call()


def test_two_providers_share_nothing(folder):
    one, other = (OpenVinoProvider.open(folder, threads=1) for _ in range(2))
    tokens, others = some_tokens(10), some_tokens(10, seed=9)
    one.forward(tokens[None, :5], starts(0))
    other.forward(others[None, :5], starts(0))
    close(one.forward(tokens[None, 5:], starts(5))[0], scored(GPT, tokens)[5:])
    close(other.forward(others[None, 5:], starts(5))[0], scored(GPT, others)[5:])


@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_with_the_threads_that_were_asked_for_and_in_float32(folder, threads):
    with open_model(folder, Place("openvino", threads=threads)) as provider:
        compiled = provider._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"):
            assert "float32" in repr(compiled.get_property(name))
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_a_failing_runtime_is_a_provider_error_and_the_call_can_be_made_again(provider):
    class Failing:
        def __init__(self, request):
            self.request = request

        def set_tensor(self, name, tensor):
            self.request.set_tensor(name, tensor)

        def infer(self):
            raise RuntimeError("out of luck")

    tokens, request = some_tokens(1, 10), provider._request
    provider.forward(tokens[:, :6], starts(0))
    provider._request = Failing(request)
    with pytest.raises(ProviderError, match="OpenVINO failed on a window of 1 rows and 4 slots: out of luck"):
        provider.forward(some_tokens(1, 4, seed=5), starts(6))
    provider._request = request
    close(provider.forward(tokens[:, 6:], starts(6))[0], scored(GPT, tokens[0])[6:])
