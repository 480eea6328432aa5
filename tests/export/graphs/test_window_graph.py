"""The window graph of a GPT, run as it is: plain ONNX Runtime calls with numpy caches, no backend of ours.

The oracle is a GPT in numpy that knows no caches and no windows: whole sequences in, logits out. It shares nothing with
the exporter, not even `reference_logits`, which test_decoder_graph.py compares every kind of decoder with.
"""

import functools
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.export import Norm, save_graph
from coupled_sampling.export.graphs.decoder import decoder_graph
from standins.toy_bundles import toy_gpt, toy_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

GPT = toy_gpt(12, cache_length=14, norm=Norm("layer", 1e-3))
WEIGHTS = toy_weights(GPT)


def oracle_norm(x, scale, shift):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + GPT.norm.epsilon) * scale + shift


def oracle_logits(tokens, weights=WEIGHTS):
    """Logits (T, V) of one sequence (T,), in float64, one query at a time."""
    erf = np.vectorize(math.erf)

    def linear(name, value):
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, value):
        return oracle_norm(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    size = GPT.width // GPT.heads
    x = weights["embedding.weight"][tokens] + weights["position.weight"][: len(tokens)]
    for layer in range(GPT.layers):
        block = f"layers.{layer}"
        normed = norm(f"{block}.attention_norm", x)
        query, key, value = (linear(f"{block}.attention.{part}", normed) for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(GPT.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                score = np.exp(key[: i + 1, part] @ query[i, part] / math.sqrt(size))
                mixed[i, part] = score / score.sum() @ value[: i + 1, part]
        x = x + linear(f"{block}.attention.output", mixed)
        hidden = linear(f"{block}.mlp.up", norm(f"{block}.mlp_norm", x))
        x = x + linear(f"{block}.mlp.down", hidden * (1 + erf(hidden / math.sqrt(2))) / 2)
    never = np.full((len(tokens), GPT.vocab_size - GPT.generated), -np.inf)
    return np.concatenate([linear("head", norm("norm", x)), never], axis=-1)


@functools.cache
def session_at(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class Run:
    """The graph with its caches, returned by one call and handed to the next."""

    def __init__(self, path, rows):
        self.session = session_at(path)
        shape = (rows, GPT.heads, 14, 4)
        self.caches = {
            f"past_key_values.{layer}.{part}": np.zeros(shape, np.float32)
            for layer in range(2)
            for part in ("key", "value")
        }

    def __call__(self, tokens, start, kv_length=None):
        needed = int(np.max(start)) + tokens.shape[1]
        kv_length = np.array([needed if kv_length is None else kv_length], np.int64)
        inputs = {"input_ids": tokens, "start": np.asarray(start, np.int64), "kv_length": kv_length}
        logits, *present = self.session.run(None, inputs | self.caches)
        self.caches = dict(zip(self.caches, present, strict=True))
        return logits


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_graph(decoder_graph(GPT, WEIGHTS), tmp_path_factory.mktemp("graph") / "window.onnx")


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, GPT.vocab_size, shape)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_one_window_over_the_whole_sequence_gives_the_models_logits(path):
    tokens = some_tokens(3, 12)
    logits = Run(path, 3)(tokens, [0, 0, 0])
    for row in range(3):
        close(logits[row], oracle_logits(tokens[row]))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 1000))
def test_any_split_into_windows_gives_the_same_logits(path, cuts, seed):
    tokens = some_tokens(1, 12, seed=seed)
    edges = [0, *sorted(cuts), 12]
    run = Run(path, 1)
    parts = [run(tokens[:, a:b], [a]) for a, b in itertools.pairwise(edges)]
    close(np.concatenate(parts, axis=1)[0], oracle_logits(tokens[0]))


def test_rows_may_start_at_different_positions(path):
    tokens = some_tokens(2, 12)
    run = Run(path, 2)
    run(tokens[:, :6], [0, 0])
    logits = run(np.stack([tokens[0, 2:6], tokens[1, 6:10]]), [2, 6])
    close(logits[0], oracle_logits(tokens[0, :6])[2:6])
    close(logits[1], oracle_logits(tokens[1, :10])[6:10])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_last_write_wins_so_going_back_is_starting_lower(path, data):
    """Random windows over a random sequence that changes wherever it is written again."""
    run, tokens, cached = Run(path, 1), some_tokens(12), 0
    for _ in range(6):
        start = data.draw(st.integers(0, min(cached, 11)))
        width = data.draw(st.integers(1, 12 - start))
        tokens[start:] = some_tokens(12 - start, seed=data.draw(st.integers(0, 1000)))
        logits = run(tokens[None, start : start + width], [start])
        close(logits[0], oracle_logits(tokens[: start + width])[start:])
        cached = start + width


def test_a_slot_does_not_see_later_slots_or_what_the_cache_held_there(path):
    tokens = some_tokens(1, 12)
    run = Run(path, 1)
    before = run(tokens, [0])
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % GPT.vocab_size
    after = run(changed, [0])
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert (np.abs(after[0, 7:, :8] - before[0, 7:, :8]).max(-1) > 1e-3).all()


def test_rows_do_not_influence_each_other(path):
    tokens = some_tokens(2, 6)
    other = np.stack([tokens[0], (tokens[1] + 3) % GPT.vocab_size])
    here, there = Run(path, 2)(tokens, [0, 0]), Run(path, 2)(other, [0, 5])
    close(there[0], here[0])
    assert np.abs(there[1, :, :8] - here[1, :, :8]).max() > 1e-2


@pytest.mark.parametrize("kv_length", [8, 9, 11, 14])
def test_kv_length_beyond_what_is_needed_changes_nothing(path, kv_length):
    tokens = some_tokens(1, 8)
    run = Run(path, 1)
    run(some_tokens(1, 12, seed=5), [0])
    close(run(tokens, [0], kv_length)[0], oracle_logits(tokens[0]))


def test_kv_length_is_heeded(path):
    """Columns from kv_length on are really left out: too small a value must change the logits."""
    tokens = some_tokens(1, 8)
    logits = Run(path, 1)(tokens, [0], 5)
    close(logits[0, :5], oracle_logits(tokens[0])[:5])
    assert np.abs(logits[0, 7, :8] - oracle_logits(tokens[0])[7, :8]).max() > 1e-3


def test_tokens_that_are_never_generated_have_minus_infinity(path):
    logits = Run(path, 1)(some_tokens(1, 12), [0])
    assert np.isneginf(logits[..., 8:]).all()
    assert np.isfinite(logits[..., :8]).all()


def test_writing_beyond_the_cache_is_refused_by_the_runtime(path):
    run = Run(path, 1)
    with pytest.raises(Exception, match=r"(?i)scatter|write_indices|out of"):
        run(some_tokens(1, 4), [11], 14)


def test_only_standard_operators_of_opset_24_and_no_nonpad_kv_seqlen(path):
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert all(node.domain == "" for node in model.graph.node)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert [len(node.input) for node in attention] == [4, 4]
    assert model.producer_name == "coupled-sampling"
    assert model.doc_string


def test_the_checker_refuses_what_is_no_graph_and_nothing_is_written(tmp_path):
    model = decoder_graph(GPT, WEIGHTS)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InvalidArgument, match="not a valid ONNX graph"):
        save_graph(model, tmp_path / "window.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_graph(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    path = tmp_path / "window.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        save_graph(decoder_graph(GPT, WEIGHTS), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_without_onnx_the_extra_to_install_is_named():
    code = """
import sys
sys.modules["onnx"] = None
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export import DecoderDescription
from coupled_sampling.export.graphs.decoder import decoder_graph
try:
    decoder_graph(DecoderDescription(3, 4, 4, 1, 1, 4), print)
except MissingDependency as error:
    print(error)
"""
    assert "pip install 'coupled-sampling[export]'" in run_python(code)
