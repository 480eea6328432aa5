"""Decoders with growing caches: graphs written here in the styles of Optimum and ONNX Runtime GenAI, right ones and broken ones.

The oracle runs the same graph in one plain call over a whole sequence with an empty past. What the exporters themselves write is
tried in `test_real_exporters`.
"""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, LogitsProvider, Request, generate
from coupled_sampling.backends.foreign.provider import ConcatenatedProvider
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.testing.contracts.providers import check_provider
from standins.grown_cache_graphs import HEADS, LENGTH, SIZE, VOCABULARY, genai, optimum

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


KINDS = {
    "optimum": lambda path: optimum(path),
    "positions from the mask": lambda path: optimum(path, positions="mask"),
    "positions from columns": lambda path: optimum(path, positions="columns"),
    "padding ignored": lambda path: optimum(path, mask="unpadded"),
    "float16": lambda path: optimum(path, dtype=np.float16),
    "genai": lambda path: genai(path),
    "genai int4": lambda path: genai(path, four_bits=True),
}
BATCHING = {
    "optimum": "padded",
    "positions from the mask": "padded",
    "positions from columns": "one by one",
    "padding ignored": "one by one",
    "float16": "padded",
    "genai": "in place",
    "genai int4": "in place",
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": LENGTH}))
    return {kind: write(folder / f"{kind.replace(' ', '-')}.onnx") for kind, write in KINDS.items()}


def oracle_of(path):
    """Logits (T, V) of one sequence (T,), in one call with an empty past."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}

    def logits(tokens):
        length = len(tokens)
        control = {
            "input_ids": np.array(tokens)[None],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
        }
        feeds = {name: value for name, value in control.items() if name in inputs}
        for name, value in inputs.items():
            if name.startswith("past"):
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
        return session.run(["logits"], feeds)[0][0].astype(np.float32)

    return logits


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def starts(*values):
    return np.array(values, np.int64)


def tolerance(kind):
    return 2e-2 if kind == "float16" else 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_how_rows_are_batched_is_found_by_trying(graphs, kind):
    provider = ConcatenatedProvider.open(graphs[kind], batch_size=3, threads=1)
    assert isinstance(provider, LogitsProvider)
    assert provider.batching == BATCHING[kind]
    assert bool(provider.why_not_padded) == (BATCHING[kind] == "one by one")
    assert (provider.vocab_size, provider.max_length) == (VOCABULARY, LENGTH)
    logits = provider.forward(some_tokens(3, 4), starts(0, 0, 0))
    assert (logits.shape, logits.dtype) == ((3, 4, VOCABULARY), np.float32)


@pytest.mark.cases(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_conforms(graphs, kind, batch_size):
    provider = ConcatenatedProvider.open(graphs[kind], batch_size=batch_size, threads=1)
    check_provider(provider, tolerance=tolerance(kind), reference=oracle_of(graphs[kind]))


@pytest.mark.parametrize("kind", ["optimum", "padding ignored", "genai"])
def test_rows_can_be_forwarded_alone_and_copied(graphs, kind):
    """By each way of batching; other rows keep their state bit by bit."""
    provider, oracle = ConcatenatedProvider.open(graphs[kind], batch_size=3, threads=1), oracle_of(graphs[kind])
    tokens = some_tokens(3, 14)
    provider.forward(tokens[:, :6], starts(0, 0, 0))
    before = [columns.copy() for columns in provider._caches]
    rows = range(1, 3)
    found = provider.forward_rows(tokens[1:, 6:10], starts(6, 6), rows)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(found[i], oracle(tokens[row, :10])[6:], atol=1e-4)
    for columns, old in zip(provider._caches, before, strict=True):
        np.testing.assert_array_equal(columns[0], old[0])
        assert (columns[1:] != old[1:]).any()
    provider.fork(2, [0, 1], 8)
    for columns, old in zip(provider._caches, before, strict=True):
        np.testing.assert_array_equal(columns[0, :, :8], columns[2, :, :8])
        np.testing.assert_array_equal(columns[0, :, 8:], old[0, :, 8:])
    for row in range(3):
        own = provider.forward_rows(tokens[2:, 8:], starts(8), range(row, row + 1))
        np.testing.assert_allclose(own[0], oracle(tokens[2])[8:], atol=1e-4)
    with pytest.raises(InvalidArgument, match=r"rows is range\(2, 4\), expected a range of 2 consecutive rows"):
        provider.forward_rows(tokens[:2], starts(0, 0), range(2, 4))
    with pytest.raises(InvalidArgument, match="row 3 to fork"):
        provider.fork(3, [0], 2)
    provider.close()
    assert not provider.forks
    with pytest.raises(ProviderError, match="was closed"):
        provider.fork(0, [1], 2)
    with pytest.raises(ProviderError, match="was closed"):
        provider.forward_rows(tokens[:1], starts(0), range(1))


@pytest.mark.parametrize("kind", ["optimum", "genai"])
def test_prompts_read_in_chunks_and_forked_give_the_same_tokens(graphs, kind):
    prompt = some_tokens(20, seed=2).tolist()
    provider = ConcatenatedProvider.open(graphs[kind], batch_size=3, threads=1)
    plain = ConcatenatedProvider.open(graphs[kind], batch_size=1, threads=1)
    expected = generate(plain, [prompt] * 3, length=6, window=4, method="scd-match", prompt_chunk=20).tokens
    for chunk in (1, 7, None):
        decoder = Decoder(provider, window=4, method="scd-match", prompt_chunk=chunk)
        decoder.add(Request(prompt, 6, samples=3))
        tokens = {handle: [] for handle in range(3)}
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                tokens[commit.handle].extend(commit.tokens.tolist())
        assert list(tokens.values()) == [row.tolist() for row in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_windows_that_go_back_give_the_logits_of_the_last_tokens_written(graphs, kind):
    provider, oracle = ConcatenatedProvider.open(graphs[kind], batch_size=3, threads=1), oracle_of(graphs[kind])

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(data=st.data())
    def check(data):
        tokens, cached = some_tokens(3, LENGTH), np.zeros(3, np.int64)
        for _ in range(4):
            rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
            start = starts(*(data.draw(st.integers(0, min(int(cached[b]), LENGTH - width))) for b in range(rows)))
            seed = data.draw(st.integers(0, 1000))
            for b in range(rows):
                tokens[b, start[b] :] = some_tokens(LENGTH - start[b], seed=seed + b)
            window = np.stack([tokens[b, start[b] : start[b] + width] for b in range(rows)])
            logits = provider.forward(window, start)
            for b in range(rows):
                expected = oracle(tokens[b, : start[b] + width])[start[b] :]
                np.testing.assert_allclose(logits[b], expected, atol=tolerance(kind), rtol=0)
            cached[:rows] = start + width

    check()


@pytest.mark.parametrize("kind", ["optimum", "positions from columns", "genai int4"])
def test_match_is_autoregressive_decoding_token_for_token(graphs, kind):
    provider = ConcatenatedProvider.open(graphs[kind], batch_size=3, threads=1)
    prompts, settings = [[1], [2, 3, 4], [5, 6], [7]], {"length": 20, "seed": 3}
    expected = generate(provider, prompts, method="ar", **settings)
    found = generate(provider, prompts, method="scd-match", window=6, **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(one, other)
    maximal = generate(provider, prompts, method="scd-maximal", window=6, **settings)
    assert [len(tokens) for tokens in maximal.tokens] == [20] * 4
    assert sum(trace.nfe for trace in maximal.traces) < sum(trace.nfe for trace in expected.traces)


def test_caches_of_a_graph_that_writes_in_place_are_never_copied(graphs):
    provider = ConcatenatedProvider.open(graphs["genai"], batch_size=2, threads=1)
    for cache in provider._caches:
        cache[:] = 0
    provider.forward(some_tokens(2, 3), starts(4, 9))
    for cache in provider._caches:
        written = np.abs(cache).max(axis=(1, 3)) > 0
        expected = np.zeros((2, LENGTH), bool)
        expected[0, 4:7] = expected[1, 9:12] = True
        np.testing.assert_array_equal(written, expected)


def test_padding_of_rows_is_all_in_one_call(graphs):
    provider = ConcatenatedProvider.open(graphs["optimum"], batch_size=3, threads=1)
    calls, run = [], provider._run
    provider._run = lambda *arguments: calls.append(arguments) or run(*arguments)
    provider.forward(some_tokens(3, 4), starts(0, 7, 2))
    assert len(calls) == 1


def test_what_the_padding_check_would_have_let_through(graphs):
    """Padding rows of a graph that ignores its mask gives wrong logits: the check is not idle."""
    provider = ConcatenatedProvider.open(graphs["padding ignored"], batch_size=2, threads=1)
    tokens, oracle = some_tokens(2, 10), oracle_of(graphs["padding ignored"])
    assert re.match(r"rows padded .* differ by \d", provider.why_not_padded)
    provider.forward(tokens, starts(0, 0))
    provider.batching = "padded"
    logits = provider.forward(np.stack([tokens[0, 2:4], tokens[1, 8:]]), starts(2, 8))
    assert np.abs(logits[0] - oracle(tokens[0])[2:4]).max() > 0.05


BROKEN = {
    "open": (
        lambda p: optimum(p, mask="open"),
        ProviderError,
        "a window of 5 tokens after a past of 6 is not scored like",
    ),
    "none": (
        lambda p: optimum(p, mask="none"),
        ProviderError,
        "tokens further right in the same window change the logits",
    ),
    "last": (lambda p: optimum(p, logits="last"), ProviderError, r"gives logits \(1, 1, 13\) for a window of 3 tokens"),
    "quantised": (
        lambda p: optimum(p, activations="quantised per call"),
        ProviderError,
        r"differ by 0\.\d+ of their spread, .* the cause is DynamicQuantizeLinear \(1 of them\).* add --widen",
    ),
    "unknown": (
        lambda p: optimum(p, extra=[("encoder_states", onnx.TensorProto.FLOAT, ["batch", 4])]),
        BundleError,
        "nothing is known about encoder_states",
    ),
    "names": (lambda p: optimum(p, names=("k{}{}", "p{}{}")), BundleError, "has no caches that are known.*with-past"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_graph_that_would_be_silently_wrong_is_refused_with_the_reason(tmp_path, kind):
    write, error, message = BROKEN[kind]
    path = write(tmp_path / "model.onnx")
    with pytest.raises(error, match=message):
        ConcatenatedProvider.open(path, batch_size=2, max_length=LENGTH, threads=1)


def test_a_tolerance_accepts_what_is_nearly_causal(tmp_path):
    path = optimum(tmp_path / "model.onnx", activations="quantised per call")
    assert ConcatenatedProvider.open(path, max_length=LENGTH, threads=1, tolerance=0.2).vocab_size == VOCABULARY
    with pytest.raises(ProviderError):
        ConcatenatedProvider.open(optimum(tmp_path / "open.onnx", mask="open"), max_length=LENGTH, tolerance=0.2)


def test_other_names_of_caches_are_known(tmp_path):
    path = optimum(tmp_path / "model.onnx", names=("past_{1}_{0}", "present_{1}_{0}"))
    assert ConcatenatedProvider.open(path, max_length=LENGTH, threads=1).graph.caches[1].past == "past_value_0"


def merged(path):
    """Two branches as Optimum merges them: without a past the caches that come in are not looked at."""
    model = onnx.load(optimum(path))
    flag = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    model.graph.input.append(flag)
    zero = onnx.numpy_helper.from_array(np.array(0.0, np.float32), "no_past")
    branches = []
    for name, kind in (("cached", "Identity"), ("fresh", "ConstantOfShape")):
        node = onnx.helper.make_node("Identity", ["past_key_values.0.key"], [f"{name}.out"])
        if kind == "ConstantOfShape":
            shape = onnx.numpy_helper.from_array(np.array([1, HEADS, 0, SIZE]), "empty")
            node = onnx.helper.make_node(kind, ["empty"], [f"{name}.out"])
        out = onnx.helper.make_tensor_value_info(f"{name}.out", onnx.TensorProto.FLOAT, None)
        branches.append(onnx.helper.make_graph([node], name, [], [out], [shape] if kind != "Identity" else []))
    for node in model.graph.node:
        node.input[:] = ["chosen" if value == "past_key_values.0.key" else value for value in node.input]
    choice = onnx.helper.make_node(
        "If", ["use_cache_branch"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
    )
    nodes = [choice, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(zero)
    onnx.save(model, path)
    return path


def test_a_merged_graph_takes_the_branch_that_fits(tmp_path):
    path = merged(tmp_path / "decoder_model_merged.onnx")
    provider = ConcatenatedProvider.open(path, max_length=LENGTH, threads=1)
    assert "use_cache_branch" in provider.graph.control
    check_provider(provider, tolerance=1e-4, reference=oracle_of(optimum(tmp_path / "model.onnx")))


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ([[1, 2]], starts(0), "tokens is list"),
        (some_tokens(4, 2), starts(0, 0, 0, 0), "tokens has 4 rows"),
        (some_tokens(1, 3), starts(LENGTH - 2), f"row 0 starts at {LENGTH - 2}, expected 0 to {LENGTH - 3}"),
        (np.array([[0, VOCABULARY]]), starts(0), "slot 1 is token 13"),
    ],
)
def test_a_call_out_of_bounds_is_refused(graphs, tokens, start, message):
    with pytest.raises(InvalidArgument, match=message):
        ConcatenatedProvider.open(graphs["optimum"], batch_size=3, threads=1).forward(tokens, start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 5}, "max_length is 5, expected at least 6"),
        (
            {"max_length": LENGTH + 1},
            f"max_length is {LENGTH + 1}, expected at most {LENGTH}, which is what .*config.json",
        ),
        ({"threads": 0}, "threads is 0"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(graphs, arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        ConcatenatedProvider.open(graphs["optimum"], **arguments)


def test_a_file_that_is_no_graph_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="is no file"):
        ConcatenatedProvider.open(tmp_path / "model.onnx", max_length=8)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"cannot load .*download or export"):
        ConcatenatedProvider.open(tmp_path / "model.onnx", max_length=8)


def test_missing_external_data_is_named(tmp_path):
    model = onnx.load(optimum(tmp_path / "whole.onnx"))
    onnx.save(
        model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1000
    )
    assert ConcatenatedProvider.open(tmp_path / "model.onnx", max_length=LENGTH).vocab_size == VOCABULARY
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx_data.*beside the graph"):
        ConcatenatedProvider.open(tmp_path / "model.onnx", max_length=LENGTH)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("config.json", {"n_positions": 20}, 20),
        ("genai_config.json", {"model": {"context_length": 21}}, 21),
        (
            "config.json",
            {
                "max_position_embeddings": 40,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 22},
            },
            22,
        ),
        (
            "config.json",
            {
                "max_position_embeddings": 40,
                "original_max_position_embeddings": 23,
                "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4},
            },
            23,
        ),
    ],
)
def test_the_length_comes_from_the_configuration_beside_the_graph(tmp_path, name, config, expected):
    folder = tmp_path / "onnx"
    folder.mkdir()
    path = optimum(folder / "model.onnx")
    with pytest.raises(InvalidArgument, match=r"max_length is None and there is no config\.json"):
        ConcatenatedProvider.open(path)
    (tmp_path / name).write_text(json.dumps(config))
    assert ConcatenatedProvider.open(path).max_length == expected
