"""Exported decoders against the numpy reference: every choice a description offers, through windows of all kinds.

The reference knows no caches, no windows and no joined maps. Of the parts it shares with the graph, the canonical weights are
checked here and the rotary tables in ``test_rotary_tables.py``, against formulas of their own.
"""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.attention import AttentionGraph
from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.decoder import decoder_graph, write_decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription, LayerKind, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.linear import Linear
from coupled_sampling.export.graphs.picture_positions import PicturePositions
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rotary import GridRotary, Rotary, RotaryScaling
from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.export.graphs.weights import WeightReader
from standins.rotary_scalings import LLAMA3, OWN_FACTORS, YARN

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTH, VOCABULARY = 18, 23
LLAMA = DecoderDescription(
    vocab_size=VOCABULARY, positions=LENGTH, width=24, layers=2, heads=3, mlp_width=20, rotary=Rotary(), cache_length=20
)
GPT2 = dataclasses.replace(
    LLAMA,
    norm=Norm("layer"),
    mlp="plain",
    activation="gelu_tanh",
    rotary=None,
    learned_positions=True,
    query_key_value_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    tied_head=True,
)
PICTURES = PicturePositions(4, ((2, 2), (2, 3)), (1, 1, 2))
NEAR, FAR = LayerKind(5, Rotary(base=100.0)), LayerKind(0, Rotary(base=5000.0))


def llama(**changes):
    return dataclasses.replace(LLAMA, **changes)


DESCRIPTIONS = {
    "llama": LLAMA,
    "gpt-2": GPT2,
    "grouped queries": llama(width=32, heads=4, kv_heads=2, head_size=8),
    "one head of keys": llama(width=32, heads=4, kv_heads=1, head_size=8),
    "a head size of its own": llama(head_size=6, attention_scale=0.3),
    "interleaved pairs": llama(rotary=Rotary("interleaved")),
    "partial rotation": llama(rotary=Rotary(size=4)),
    "partial interleaved": llama(rotary=Rotary("interleaved", size=4)),
    "linear scaling": llama(rotary=Rotary(scaling=RotaryScaling("linear", 4.0))),
    "llama 3 scaling": llama(rotary=Rotary(base=500.0, scaling=LLAMA3)),
    "yarn": llama(rotary=Rotary(scaling=YARN)),
    "yarn, no whole pairs": llama(rotary=Rotary(scaling=dataclasses.replace(YARN, whole_pairs=False))),
    "factors of pairs": llama(rotary=Rotary(scaling=OWN_FACTORS)),
    "grid": llama(rotary=Rotary("interleaved", grid=GridRotary(3, 5, 2))),
    "pictures behind text": llama(rotary=Rotary(pictures=PICTURES)),
    "pictures behind text, partial": llama(
        kv_heads=1, rotary=Rotary("interleaved", size=6, pictures=dataclasses.replace(PICTURES, sections=(2, 1, 0)))
    ),
    "softcaps and scales": llama(
        attention_softcap=1.5, logit_softcap=2.0, logit_scale=1.7, embedding_scale=4.9, norm=Norm(one_plus=True)
    ),
    "sliding window": llama(attention_window=4),
    "window of one": llama(attention_window=1),
    "near and far layers": llama(layers=4, rotary=None, layer_kinds=(NEAR, NEAR, FAR, NEAR)),
    "layers with and without positions": llama(rotary=None, layer_kinds=(LayerKind(0, Rotary()), LayerKind(3))),
    "two ways of turning": llama(
        rotary=None,
        layer_kinds=(LayerKind(7, Rotary(size=4)), LayerKind(2, Rotary("interleaved", scaling=OWN_FACTORS))),
    ),
    "scaled residuals": llama(residual_scale=0.3, embedding_scale=3.0),
    "norms of outputs": llama(norm_placement="output"),
    "norms of both": llama(norm_placement="both"),
    "query-key rms": llama(kv_heads=1, query_key_norm=QueryKeyNorm(Norm("rms", 1e-3))),
    "query-key rms, one plus": llama(query_key_norm=QueryKeyNorm(Norm("rms", one_plus=True))),
    "query-key layer per head": llama(kv_heads=1, query_key_norm=QueryKeyNorm(Norm("layer"), per_head=True)),
    "query-key rms over all heads": llama(
        width=32, heads=4, kv_heads=2, head_size=8, query_key_norm=QueryKeyNorm(Norm("rms", 1e-3), whole=True)
    ),
    "query-key layer over all heads": llama(
        query_key_norm=QueryKeyNorm(Norm("layer", one_plus=True), whole=True), norm_placement="output"
    ),
    "all biases": llama(query_key_value_bias=True, attention_output_bias=True, mlp_bias=True, head_bias=True),
    "relu": llama(activation="relu"),
    "exact gelu": llama(activation="gelu"),
    "gated tanh gelu": llama(activation="gelu_tanh"),
    "imagegpt": dataclasses.replace(GPT2, activation="quick_gelu", tied_head=False, generated=20, norm=Norm("rms")),
    "layer norm without bias": llama(norm=Norm("layer", bias=False)),
    "position offset": dataclasses.replace(GPT2, position_offset=2),
    "tied head with bias": dataclasses.replace(GPT2, head_bias=True),
    "tied head over a part": llama(tied_head=True, generated_first=4, generated=7, head_bias=True),
    "no positions": llama(rotary=None),
    "janus": llama(embedding_segments=(15, 8), generated_first=15, generated=8, head_hidden=12, head_bias=True),
}


def random_weights(description, seed=0):
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("norm.weight"):
            return random.normal(1.0, 0.3, shape)
        return random.normal(0, 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3, shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in description.weight_shapes().items()}


class Run:
    """The graph with its caches, returned by one call and handed to the next."""

    def __init__(self, model, rows):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.caches = {
            value.name: np.zeros((rows, *value.shape[1:]), types[value.type])
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }

    def __call__(self, tokens, start, spare=0):
        kv_length = np.array([int(np.max(start)) + tokens.shape[1] + spare], np.int64)
        inputs = {"input_ids": tokens, "start": np.asarray(start, np.int64), "kv_length": kv_length}
        logits, *present = self.session.run(None, inputs | self.caches)
        self.caches = dict(zip(self.caches, present, strict=True))
        return logits


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def furthest(found, expected):
    """Largest difference of finite logits; the others must be equal."""
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    return np.abs(found[finite] - expected[finite]).max()


def furthest_of_windows(run, logits):
    """Prefill, ragged windows, and windows that go back over other tokens; the largest difference of all of them."""
    tokens, worst = some_tokens(3, LENGTH), 0.0
    schedule = (([0, 0, 0], 5, 0), ([5, 2, 4], 4, 1), ([9, 1, 8], 1, 0), ([3, 2, 9], 7, 0), ([10, 9, 11], 7, 2))
    for step, (starts, width, spare) in enumerate(schedule):
        for row, start in enumerate(starts):
            tokens[row, start:] = some_tokens(LENGTH - start, seed=100 * step + row)
        window = np.stack([tokens[row, start : start + width] for row, start in enumerate(starts)])
        found = run(window, starts, spare)
        for row, start in enumerate(starts):
            worst = max(worst, furthest(found[row], logits(tokens[row, : start + width])[start:]))
    return worst


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_windows_give_the_references_logits(name):
    description = DESCRIPTIONS[name]
    weights = random_weights(description)
    run = Run(decoder_graph(description, weights).SerializeToString(), 3)
    assert furthest_of_windows(run, lambda tokens: reference_logits(description, weights, tokens)) <= 2e-5


DEAD = 11
"""A token whose embedding is no number."""


def with_a_dead_token(model, value):
    table = next(one for one in model.graph.initializer if one.name == "embedding.weight")
    numbers = onnx.numpy_helper.to_array(table).copy()
    numbers[DEAD] = value
    table.CopyFrom(onnx.numpy_helper.from_array(numbers, table.name))
    return model.SerializeToString()


@pytest.mark.cases(40)
@pytest.mark.parametrize(
    ("compute", "value"),
    [
        ("float32", np.nan),
        ("float16", np.inf),
        pytest.param("float32", np.inf, marks=pytest.mark.long),
        pytest.param("float16", np.nan, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("name", [name for name, one in DESCRIPTIONS.items() if not one.tied_head])
def test_a_token_that_the_model_cannot_compute_says_so_and_disturbs_nobody(name, compute, value):
    """Neither slots to its left, nor rows beside it, nor later windows that do not write over it."""
    description, tokens = DESCRIPTIONS[name], np.full((2, LENGTH), 3)
    storage = Storage(compute=compute, weights=compute)
    model = decoder_graph(description, random_weights(description), storage)
    whole, run = Run(model.SerializeToString(), 2), Run(with_a_dead_token(model, value), 2)
    expected = whole(tokens, [0, 0])
    dead = tokens[:, :9].copy()
    dead[0, 6] = DEAD
    found = run(dead, [0, 0])
    bound = 2e-5 if compute == "float32" else 5e-2
    assert furthest(found[0, :6], expected[0, :6]) <= bound
    assert furthest(found[1], expected[1, :9]) <= bound
    generated = slice(description.generated_first, description.generated_first + description.generated)
    assert np.isnan(found[0, 6, generated]).all()
    for start, width in ((3, 2), (5, 1), (6, 4)):  # before what is dead, next to it, over it
        found = run(tokens[:, start : start + width], [start, start])
        assert furthest(found, expected[:, start : start + width]) <= bound


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_slot_with_one_number_that_is_none_says_so_by_its_query_and_keeps_nothing(value):
    """Even where the model would go on with finite numbers, since only a key overflowed; others keep their bits."""
    graph, description = GraphBuilder(), LLAMA
    linear = Linear(graph, WeightReader(description.weight_shapes(), random_weights(description)), Storage())
    size = description.head_size * (description.heads + 2 * description.kv_heads)
    joined = graph.input("joined", "float32", ["N", size])
    graph.op("Identity", AttentionGraph(description, linear).contained(joined), name="contained")
    graph.output("contained", "float32", ["N", size])
    session = onnxruntime.InferenceSession(graph.build("part", "", {}).SerializeToString())
    numbers = np.random.default_rng(0).standard_normal((4, size), np.float32)
    numbers[3] = 65504.0
    given, queries = numbers.copy(), description.heads * description.head_size
    given[1, size - 1] = given[2, queries] = value
    (found,) = session.run(None, {"joined": given})
    np.testing.assert_array_equal(found[[0, 3]], numbers[[0, 3]])
    assert np.isnan(found[1:3, :queries]).all()
    assert (found[1:3, queries:] == 0).all()


def test_without_care_it_disturbs_the_slots_to_its_left(monkeypatch):
    """Negative control: what is not finite enters the caches."""
    monkeypatch.setattr(AttentionGraph, "contained", lambda self, joined: joined)
    tokens = np.full((1, 9), 3)
    tokens[0, 6] = DEAD
    run = Run(with_a_dead_token(decoder_graph(LLAMA, random_weights(LLAMA)), np.nan), 1)
    assert np.isnan(run(tokens, [0])[0, 2]).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rotary": Rotary("interleaved")}),
        ("llama", {"rotary": Rotary(base=9000.0)}),
        ("llama", {"rotary": None}),
        ("llama", {"activation": "gelu"}),
        ("llama", {"norm": Norm(epsilon=1e-3)}),
        ("llama", {"norm": Norm(one_plus=True)}),
        ("llama", {"attention_scale": 0.36}),
        ("llama", {"attention_window": 17}),
        ("llama", {"embedding_scale": 1.01}),
        ("llama", {"residual_scale": 0.99}),
        ("yarn", {"rotary": Rotary(scaling=dataclasses.replace(YARN, attention_factor=1.0))}),
        ("yarn", {"rotary": Rotary(scaling=dataclasses.replace(YARN, kind="llama3"))}),
        ("yarn", {"rotary": Rotary(scaling=dataclasses.replace(YARN, whole_pairs=False))}),
        ("near and far layers", {"layer_kinds": (NEAR, FAR, NEAR, NEAR)}),
        ("near and far layers", {"layer_kinds": (NEAR, NEAR, FAR, LayerKind(6, NEAR.rotary))}),
        ("near and far layers", {"layer_kinds": (NEAR, NEAR, FAR, LayerKind(5, FAR.rotary))}),
        ("layers with and without positions", {"layer_kinds": (LayerKind(0, Rotary()), LayerKind(3, Rotary()))}),
        ("llama", {"attention_softcap": 20.0}),
        ("llama", {"logit_softcap": 20.0}),
        ("exact gelu", {"activation": "gelu_tanh"}),
        (
            "llama 3 scaling",
            {"rotary": Rotary(base=500.0, scaling=dataclasses.replace(LLAMA3, high_frequency_factor=5.0))},
        ),
        ("query-key rms", {"query_key_norm": QueryKeyNorm(Norm("rms", 1e-2))}),
        ("position offset", {"learned_positions": True, "position_offset": 1, "positions": LENGTH + 1}),
    ],
)
def test_another_model_would_be_noticed(name, change):
    """Negative control: descriptions that differ in one choice differ by more than the tolerance of the test above."""
    description = DESCRIPTIONS[name]
    weights = random_weights(description)
    other = dataclasses.replace(description, cache_length=0, **change)
    tokens = some_tokens(LENGTH)
    expected = reference_logits(description, weights, tokens)
    assert furthest(reference_logits(other, weights, tokens), expected) > 1e-4


def test_the_graph_keeps_the_documented_interface():
    model = decoder_graph(DESCRIPTIONS["one head of keys"], random_weights(DESCRIPTIONS["one head of keys"]))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert [len(node.input) for node in model.graph.node if node.op_type == "Attention"] == [4, 4]
    session = Run(model.SerializeToString(), 1).session
    found = {value.name: (value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())}
    caches = [f"{part}.{n}.{k}" for part in ("past_key_values", "present") for n in (0, 1) for k in ("key", "value")]
    expected = {name: ("tensor(float)", ["B", 1, 20, 8]) for name in caches}
    expected |= {"input_ids": ("tensor(int64)", ["B", "W"]), "start": ("tensor(int64)", ["B"])}
    expected |= {"kv_length": ("tensor(int64)", [1]), "logits": ("tensor(float)", ["B", "W", VOCABULARY])}
    assert found == expected


@pytest.mark.parametrize("name", ["llama", "gpt-2", "grid"])
def test_columns_beyond_the_positions_can_be_written(name):
    """A backend may pad its windows up to cache_length."""
    description = DESCRIPTIONS[name]
    weights = random_weights(description)
    logits = Run(decoder_graph(description, weights).SerializeToString(), 1)(some_tokens(1, 20), [0])
    assert np.isfinite(logits).all()
    expected = reference_logits(description, weights, some_tokens(1, 20)[0, :LENGTH])
    assert furthest(logits[0, :LENGTH], expected) <= 2e-5


def test_the_manifest_describes_the_graph():
    graph = DESCRIPTIONS["one head of keys"].manifest("window.onnx", "float16", 9)
    assert (graph.layers, graph.kv_heads, graph.head_size, graph.cache_length) == (2, 1, 8, 20)
    assert (graph.dtype, graph.max_length, graph.max_window, graph.has_kv_length) == ("float16", LENGTH, 9, True)


def test_a_tied_head_is_stored_once(tmp_path):
    tied, untied = GPT2, dataclasses.replace(GPT2, tied_head=False)
    sizes = [
        write_decoder_graph(each, random_weights(each), tmp_path / "w.onnx")[0].stat().st_size
        for each in (tied, untied)
    ]
    assert sizes[1] - sizes[0] >= 4 * VOCABULARY * GPT2.width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"layers": True}, "layers is True"),
        ({"heads": 5, "head_size": 0}, "heads is 5, expected a divisor of width, 24"),
        ({"kv_heads": 2}, "kv_heads is 2, expected a divisor of heads, 3"),
        ({"rotary": Rotary(size=10)}, "turn 10 entries of a head, .* head_size, 8"),
        ({"head_size": 7}, "turn 7 entries"),
        (
            {"head_size": 6, "rotary": Rotary(grid=GridRotary(2, 2))},
            "turn 6 entries of a head, expected a multiple of 4",
        ),
        ({"activation": "tanh"}, "activation is 'tanh', expected one of 'silu'"),
        ({"mlp": "moe"}, "mlp is 'moe'"),
        ({"norm_placement": "after"}, "norm_placement is 'after'"),
        ({"generated_first": 20, "generated": 4}, "generated tokens are 4 from 20 on"),
        ({"generated_first": 23, "generated": 0}, "generated tokens are 0 from 23 on"),
        ({"embedding_segments": (20, 4)}, "embedding_segments is"),
        ({"tied_head": True, "head_hidden": 3}, "at most one of them"),
        ({"cache_length": 17}, "cache_length is 17"),
        ({"position_offset": 2}, "without learned_positions"),
        ({"logit_softcap": -1.0}, "logit_softcap is -1.0"),
        ({"logit_scale": math.nan}, "logit_scale is nan"),
        ({"residual_scale": 0.0}, "residual_scale is 0"),
        ({"rotary": None, "layer_kinds": (NEAR,)}, "layer_kinds has 1 entries, .* the 2 layers"),
        ({"layer_kinds": (NEAR, FAR)}, "layer_kinds is given beside rotary"),
        ({"rotary": None, "layer_kinds": (FAR, LayerKind(0, Rotary(size=10)))}, "turn 10 entries of a head"),
        ({"rotary": Rotary(size=4, scaling=OWN_FACTORS)}, "4 factors, expected one for each of the 2 pairs"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(change, message):
    with pytest.raises(InvalidArgument, match=message):
        llama(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": None}, "'head.weight' is missing"),
        ({"head.bias": np.zeros(23)}, "'head.bias' is unknown"),
        ({"norm.weight": np.zeros(23)}, r"'norm.weight' has shape \(23,\), expected \(24,\)"),
        ({"layers.1.mlp.up.weight": np.full((20, 24), np.inf)}, "'layers.1.mlp.up.weight' has NaN or infinite"),
        ({"norm.weight": np.full(24, "x", dtype=object)}, "'norm.weight' is object, expected floats"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights = {name: value for name, value in (random_weights(LLAMA) | change).items() if value is not None}
    with pytest.raises(InvalidArgument, match=message):
        decoder_graph(LLAMA, weights)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(0, int), "tokens"),
        (np.zeros(LENGTH + 1, int), f"tokens has 19 tokens, expected at most the {LENGTH} positions"),
        (np.zeros((1, 3), int), "tokens"),
        (np.array([23]), r"tokens token 0 is 23, expected tokens in \[0, 23\)"),
        (np.array([-1]), r"tokens token 0 is -1, expected tokens in \[0, 23\)"),
    ],
)
def test_sequences_that_the_reference_cannot_take_are_refused(tokens, message):
    with pytest.raises(InvalidArgument, match=message):
        reference_logits(LLAMA, random_weights(LLAMA), tokens)


def test_importing_the_exporter_loads_no_onnx():
    code = (
        "import sys, coupled_sampling.export.graphs.decoder; print({'onnx', 'ml_dtypes', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
