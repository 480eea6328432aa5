"""The written graphs, run as they are: plain ONNX Runtime calls with numpy caches, no backend of ours.

The oracle is a GPT in numpy that knows no caches and no windows: whole sequences in, logits out.
"""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.export import GptDescription, pixel_graph, save_graph, window_graph

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

GPT = GptDescription(
    vocab_size=11,
    generated=8,
    positions=12,
    width=8,
    layers=2,
    heads=2,
    mlp_width=20,
    norm_epsilon=1e-3,
    cache_length=14,
)


def random_weights(description, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.5, shape) for name, shape in description.weight_shapes().items()}


WEIGHTS = random_weights(GPT)


def oracle_norm(x, scale, shift):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + GPT.norm_epsilon) * scale + shift


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
        block = f"blocks.{layer}"
        query, key, value = np.split(linear(f"{block}.attention_in", norm(f"{block}.attention_norm", x)), 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in range(GPT.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                score = np.exp(key[: i + 1, part] @ query[i, part] / math.sqrt(size))
                mixed[i, part] = score / score.sum() @ value[: i + 1, part]
        x = x + linear(f"{block}.attention_out", mixed)
        hidden = linear(f"{block}.mlp_in", norm(f"{block}.mlp_norm", x))
        x = x + linear(f"{block}.mlp_out", hidden * (1 + erf(hidden / math.sqrt(2))) / 2)
    never = np.full((len(tokens), GPT.vocab_size - GPT.generated), -np.inf)
    return np.concatenate([linear("head", norm("norm", x)), never], axis=-1)


class Run:
    """The graph with its caches, returned by one call and handed to the next."""

    def __init__(self, path, rows):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
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
    return save_graph(window_graph(GPT, WEIGHTS), tmp_path_factory.mktemp("graph") / "window.onnx")


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, GPT.vocab_size, shape)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_one_window_over_the_whole_sequence_gives_the_models_logits(path):
    tokens = some_tokens(3, 12)
    logits = Run(path, 3)(tokens, [0, 0, 0])
    for row in range(3):
        close(logits[row], oracle_logits(tokens[row]))


@settings(max_examples=25, deadline=None, derandomize=True)
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


@settings(max_examples=25, deadline=None, derandomize=True)
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


def test_columns_beyond_the_positions_can_be_written_but_change_nothing(path):
    """A backend may pad its windows up to cache_length."""
    tokens = some_tokens(1, 14)
    logits = Run(path, 1)(tokens, [0])
    close(logits[0, :12], oracle_logits(tokens[0, :12]))
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


def test_the_interface_is_the_documented_one(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    cache = ["B", 2, 14, 4]
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    assert inputs.pop("input_ids") == ("tensor(int64)", ["B", "W"])
    assert inputs.pop("start") == ("tensor(int64)", ["B"])
    assert inputs.pop("kv_length") == ("tensor(int64)", [1])
    assert outputs.pop("logits") == ("tensor(float)", ["B", "W", 11])
    parts = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert inputs == {f"past_key_values.{part}": ("tensor(float)", cache) for part in parts}
    assert outputs == {f"present.{part}": ("tensor(float)", cache) for part in parts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"heads": 3}, "heads is 3, expected a divisor of width, 8"),
        ({"generated": 12}, "generated is 12, expected at most vocab_size, 11"),
        ({"cache_length": 11}, "cache_length is 11"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    sizes = {"vocab_size": 11, "generated": 8, "positions": 12, "width": 8, "layers": 2, "heads": 2, "mlp_width": 20}
    with pytest.raises(InvalidArgument, match=message):
        GptDescription(**(sizes | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": None}, "'head.bias' is missing"),
        ({"lm_head.weight": np.zeros(3)}, "'lm_head.weight' is unknown"),
        ({"head.bias": np.zeros(11)}, r"'head.bias' has shape \(11,\), expected \(8,\)"),
        ({"head.bias": np.full(8, np.nan)}, "'head.bias' has NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights = {name: value for name, value in (WEIGHTS | change).items() if value is not None}
    with pytest.raises(InvalidArgument, match=message):
        window_graph(GPT, weights)


def test_the_checker_refuses_what_is_no_graph_and_nothing_is_written(tmp_path):
    model = window_graph(GPT, WEIGHTS)
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
        save_graph(window_graph(GPT, WEIGHTS), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pixels_of_tokens_lie_where_the_grid_puts_them(tmp_path):
    codebook = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 2)).astype(np.uint8)
    path = save_graph(pixel_graph(codebook, 4, 5), tmp_path / "pixels.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(1).integers(0, 9, (3, 20))
    (pixels,) = session.run(None, {"tokens": tokens})
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 8, 15, 2))
    for picture in range(3):
        for row in range(4):
            for column in range(5):
                patch = pixels[picture, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                np.testing.assert_array_equal(patch, codebook[tokens[picture, 5 * row + column]])


@pytest.mark.parametrize("token", [9, -1])
def test_a_token_without_pixels_is_an_error_never_a_picture(tmp_path, token):
    path = save_graph(pixel_graph(np.zeros((9, 1, 1, 1), np.uint8), 1, 1), tmp_path / "pixels.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"(?i)indices"):
        session.run(None, {"tokens": np.array([[token]])})


@pytest.mark.parametrize(
    ("codebook", "grid", "message"),
    [
        (np.zeros((9, 2, 2, 1)), (2, 2), "codebook is float64"),
        (np.zeros((9, 4), np.uint8), (2, 2), r"codebook is uint8 of shape \(9, 4\)"),
        (np.zeros((9, 2, 2, 1), np.uint8), (0, 2), "grid is 0 by 2"),
    ],
)
def test_codebooks_that_cannot_be_are_refused(codebook, grid, message):
    with pytest.raises(InvalidArgument, match=message):
        pixel_graph(codebook, *grid)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_exporter_loads_no_onnx():
    assert run_python("import sys, coupled_sampling.export; print('onnx' in sys.modules)").strip() == "False"


def test_without_onnx_the_extra_to_install_is_named():
    code = """
import sys
sys.modules["onnx"] = None
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export import GptDescription, window_graph
import numpy as np
gpt = GptDescription(3, 3, 4, 4, 1, 1, 4)
try:
    window_graph(gpt, {name: np.zeros(shape) for name, shape in gpt.weight_shapes().items()})
except MissingDependency as error:
    print(error)
"""
    assert "pip install 'coupled-sampling[export]'" in run_python(code)
