"""Configurations of text families, read: sliding windows, stretched rotary positions, and what each family does differently.

That the choices read are those of the models is shown in ``test_text_families_torch.py``, where they are compared with
transformers; here is which keys mean them, and which are refused.
"""

import math
import re

import numpy as np
import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export import LayerKind, Norm, QueryKeyNorm, Rotary, RotaryScaling
from coupled_sampling.export.families import UNSUPPORTED, find_family
from standins.checkpoints import checkpoint_of
from standins.text_models import HIDDEN, KV_HEADS, LAYERS, POSITIONS, VOCABULARY, WIDTH, llama_tensors
from standins.tree_windows import furthest_of_trees

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
LLAMA = SIZES | {"model_type": "llama", "rope_theta": 10000.0}
MISTRAL = SIZES | {"model_type": "mistral", "sliding_window": None}
QWEN2 = SIZES | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
SIZE = WIDTH // 4


def load(tensors, config, positions=None):
    checkpoint = checkpoint_of(tensors, config)
    return find_family(checkpoint).load(checkpoint, positions)


def windows(config, positions=None):
    tensors = llama_tensors(bias=config["model_type"] == "qwen2")
    return [kind.window for kind in load(tensors, config, positions).description.kinds()]


def test_windows_are_those_of_the_models_own_code():
    longest = MISTRAL | {"sliding_window": POSITIONS - 1}
    assert windows(longest) == [POSITIONS - 1] * LAYERS
    assert windows(longest, positions=POSITIONS - 1) == [0] * LAYERS
    assert windows(QWEN2) == [0, 4]
    assert windows(QWEN2 | {"max_window_layers": 0}) == [4, 4]
    assert windows(QWEN2 | {"layer_types": ["sliding_attention", "full_attention"]}) == [4, 0]
    assert windows(QWEN2 | {"sliding_window": POSITIONS}) == [0, 0]
    assert windows(QWEN2 | {"use_sliding_window": False}) == [0, 0]
    assert windows(QWEN2 | {"sliding_window": None}) == [0, 0]


LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize(
    ("positions", "expected", "factors", "words"),
    [
        (None, 4, (1.0, 1.5), "Positions end at 4, .* Up to 16 positions can be exported"),
        (4, 4, (1.0, 1.5), "short factors"),
        (5, 5, (2.0, 4.0), "also in sequences of up to 4 tokens"),
        (16, 16, (2.0, 4.0), "long factors"),
    ],
)
def test_long_rotary_scaling_has_one_set_of_factors(kind, positions, expected, factors, words):
    config = LLAMA | {"rope_scaling": LONG | {"rope_type": kind}, "original_max_position_embeddings": 4}
    exportable = load(llama_tensors(), config, positions)
    scaling = RotaryScaling("factors", factors=factors, attention_factor=math.sqrt(1 + math.log(16 / 4) / math.log(4)))
    assert (exportable.description.positions, exportable.description.rotary.scaling) == (expected, scaling)
    assert re.search(words, exportable.decoding.notes[0])


@pytest.mark.parametrize(("change", "strength"), [({"factor": 1.0}, 1.0), ({"attention_factor": 1.25}, 1.25)])
def test_the_strength_of_long_rotary_scaling_may_be_said(change, strength):
    config = LLAMA | {"rope_scaling": LONG | change, "original_max_position_embeddings": 4}
    assert load(llama_tensors(), config).description.rotary.scaling.attention_factor == strength


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"attention_factor": 0.1 * math.log(4.0) + 1.0}),
        ({"attention_factor": 1.5, "beta_fast": 16}, {"attention_factor": 1.5, "high_frequency_factor": 16.0}),
        ({"attention_factor": 1.5, "truncate": False}, {"attention_factor": 1.5, "whole_pairs": False}),
        (
            {"mscale": 0.5, "mscale_all_dim": 2, "factor": None},
            {"factor": 2.0, "attention_factor": (0.05 * math.log(2.0) + 1) / (0.2 * math.log(2.0) + 1)},
        ),
    ],
)
def test_yarn(change, expected):
    found = load(llama_tensors(), LLAMA | {"rope_scaling": YARN | change}).description.rotary
    plain = {"factor": 4.0, "low_frequency_factor": 1.0, "high_frequency_factor": 32.0, "original_positions": 8}
    assert found == Rotary(scaling=RotaryScaling("yarn", **(plain | expected)))


def layers_of(names):
    """Tensors of every layer by their shapes, and those around them."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


HEAD = {"lm_head.weight": np.ones((VOCABULARY, WIDTH), np.float32)}
OUTPUT_NORMS = {"post_attention_layernorm": (WIDTH,), "post_feedforward_layernorm": (WIDTH,)}
INPUT_NORMS = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
MAPS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV_HEADS * SIZE, WIDTH),
    "self_attn.v_proj": (KV_HEADS * SIZE, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
FUSED = {
    "self_attn.qkv_proj": (WIDTH + 2 * KV_HEADS * SIZE, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_up_proj": (2 * HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
FOUR_NORMS = INPUT_NORMS | OUTPUT_NORMS | {"pre_feedforward_layernorm": (WIDTH,)}
HEAD_NORMS = {"self_attn.q_norm": (SIZE,), "self_attn.k_norm": (SIZE,)}
WHOLE_NORMS = {"self_attn.q_norm": (WIDTH,), "self_attn.k_norm": (KV_HEADS * SIZE,)}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA2 = SIZES | CAPS | {"model_type": "gemma2", "head_dim": SIZE, "sliding_window": 6, "query_pre_attn_scalar": 64}
GEMMA3 = SIZES | {"model_type": "gemma3_text", "head_dim": SIZE, "sliding_window": 6, "query_pre_attn_scalar": 64}
GRANITE = SIZES | {"embedding_multiplier": 12.0, "attention_multiplier": 0.25, "logits_scaling": 8.0}
MODELS = {
    "gemma2": (GEMMA2, layers_of(MAPS | FOUR_NORMS)),
    "gemma3": (GEMMA3, layers_of(MAPS | FOUR_NORMS | HEAD_NORMS)),
    "phi3": (SIZES | {"model_type": "phi3"}, layers_of(FUSED | INPUT_NORMS) | HEAD),
    "olmo2": (SIZES | {"model_type": "olmo2"}, layers_of(MAPS | OUTPUT_NORMS | WHOLE_NORMS) | HEAD),
    "smollm3": (SIZES | {"model_type": "smollm3"}, layers_of(MAPS | INPUT_NORMS)),
    "granite": (
        GRANITE | {"model_type": "granite", "residual_multiplier": 0.22},
        layers_of(MAPS | INPUT_NORMS) | HEAD,
    ),
}


def described(model, **changes):
    config, tensors = MODELS[model]
    return load(tensors, config | changes).description


def test_gemma2():
    found, norm = described("gemma2"), Norm("rms", 1e-5, one_plus=True)
    assert (found.norm, found.norm_placement, found.query_key_norm, found.tied_head) == (norm, "both", None, True)
    assert (found.attention_softcap, found.logit_softcap, found.attention_scale) == (50.0, 30.0, 1 / 8)
    assert (found.embedding_scale, found.activation) == (4.0, "gelu_tanh")
    assert found.layer_kinds == (LayerKind(6, Rotary()), LayerKind(0, Rotary()))
    assert described("gemma2", final_logit_softcapping=None).logit_softcap == 0
    assert described("gemma2", attn_logit_softcapping=None).attention_softcap == 0
    assert described("gemma2", sliding_window=POSITIONS).layer_kinds == ()
    assert described("gemma2", sliding_window_size=6, cache_implementation="hybrid", hidden_act="gelu") == found


def test_gemma3():
    found, near, far = described("gemma3"), Rotary(base=1e4), Rotary(base=1e6)
    assert found.query_key_norm == QueryKeyNorm(Norm("rms", 1e-5, one_plus=True))
    assert (found.attention_softcap, found.logit_softcap, found.attention_scale) == (0, 0, 1 / 8)
    assert (found.rotary, found.attention_window) == (near, 6)  # two layers of which the sixth would see everything
    assert described("gemma3", sliding_window_pattern=2).layer_kinds == (LayerKind(6, near), LayerKind(0, far))
    older = {"rope_theta": 7.0, "rope_local_base_freq": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    stretched = LayerKind(0, Rotary(base=7.0, scaling=RotaryScaling("linear", 8.0)))
    assert described("gemma3", sliding_window_pattern=2, **older).layer_kinds == (
        LayerKind(6, Rotary(base=5.0)),
        stretched,
    )
    newer = {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 7.0, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 5.0, "rope_type": "default"},
        },
    }
    assert described("gemma3", **newer).layer_kinds == (stretched, LayerKind(6, Rotary(base=5.0)))


def test_phi3_takes_its_maps_apart():
    config, tensors = MODELS["phi3"]
    exportable = load(tensors, config)
    fused = tensors["model.layers.1.self_attn.qkv_proj.weight"]
    parts = [exportable.weights(f"layers.1.attention.{name}.weight") for name in ("query", "key", "value")]
    assert [len(part) for part in parts] == [WIDTH, KV_HEADS * SIZE, KV_HEADS * SIZE]
    np.testing.assert_array_equal(np.concatenate(parts), fused)
    parts = [exportable.weights(f"layers.1.mlp.{name}.weight") for name in ("gate", "up")]
    np.testing.assert_array_equal(np.concatenate(parts), tensors["model.layers.1.mlp.gate_up_proj.weight"])
    assert described("phi3", sliding_window=5).attention_window == 5
    assert described("phi3", partial_rotary_factor=0.5).rotary == Rotary(size=2)


@pytest.mark.parametrize(("change", "positions"), [({}, 4096), ({"original_max_position_embeddings": 8192}, 8192)])
def test_phi3_was_first_trained_on_4096_positions_unless_it_says_otherwise(change, positions):
    """Nothing else tells which factors hold, and how strong they are."""
    config, tensors = MODELS["phi3"]
    config = config | {"rope_scaling": LONG, "max_position_embeddings": 16384} | change
    found = load(tensors, config).description
    assert (found.positions, found.rotary.scaling.factors) == (positions, (1.0, 1.5))
    strength = math.sqrt(1 + math.log(16384 / positions) / math.log(positions))
    assert found.rotary.scaling.attention_factor == strength
    assert load(tensors, config, positions + 1).description.rotary.scaling.factors == (2.0, 4.0)


def test_olmo2():
    found = described("olmo2")
    assert (found.norm_placement, found.query_key_norm) == ("output", QueryKeyNorm(found.norm, whole=True))


def test_smollm3_leaves_out_the_positions_of_every_fourth_layer():
    rotary = Rotary(base=2e6)
    assert described("smollm3").layer_kinds == ()  # two layers, of which the fourth would have none
    assert described("smollm3", no_rope_layer_interval=2).layer_kinds == (LayerKind(0, rotary), LayerKind())
    on = {"use_sliding_window": True, "sliding_window": 3, "no_rope_layers": [0, 1]}
    assert described("smollm3", **on).layer_kinds == (LayerKind(3), LayerKind(0, rotary))


def test_granite():
    found = described("granite")
    scales = (found.embedding_scale, found.attention_scale, found.residual_scale, found.logit_scale)
    assert scales == (12.0, 0.25, 0.22, 1 / 8)
    assert described("granite", attention_multiplier=None).attention_scale == 1


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"sliding_window_size": 7}, "sliding_window_size is 7"),
        ("gemma2", {"sliding_window": None}, "sliding_window is None, expected an integer"),
        ("gemma2", {"attn_logit_softcapping": "50"}, "attn_logit_softcapping is '50'"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0, expected a number > 0"),
        ("gemma2", {"rope_scaling": LONG}, "rope_type is 'longrope'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3", {"rope_local_base_freq": "1e4"}, "'1e4'"),
        ("gemma3", {"rope_parameters": {"full_attention": {}, "rope_theta": 3.0}}, "full_attention"),
        ("gemma3", {"rope_local_base_freq": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("phi3", {"rope_scaling": YARN}, "rope_type is 'yarn'"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ("phi3", {"mlp_bias": True}, "mlp_bias is True"),
        ("olmo2", {"clip_qkv": 8.0}, "keys that are not understood: clip_qkv"),
        ("olmo2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers is \[1\], expected 2 times 1"),
        ("smollm3", {"no_rope_layers": [1, 2]}, r"no_rope_layers is \[1, 2\]"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 2}, "not switched on"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0, expected a number > 0"),
        ("granite", {"num_local_experts": 8}, "keys that are not understood: num_local_experts"),
        ("granite", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(model, change, message):
    with pytest.raises(CheckpointError, match=message):
        described(model, **change)


@pytest.mark.parametrize("model", MODELS)
def test_windows_may_be_trees(model):
    """Sliding windows of 6 positions, in layers that take turns with others, among them."""
    pytest.importorskip("onnx")
    assert furthest_of_trees(described(model)) <= 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_layers_beyond_the_tensors_are_refused_before_they_are_enumerated(model):
    with pytest.raises(CheckpointError, match="asks for 2147483647 layers, and the checkpoint holds only"):
        described(model, num_hidden_layers=2**31 - 1)


@pytest.mark.parametrize("model", MODELS)
def test_missing_left_over_and_wrong_tensors_are_refused(model):
    config, tensors = MODELS[model]
    for name in tensors:
        with pytest.raises(CheckpointError, match=f"{name}'"):
            load({key: array for key, array in tensors.items() if key != name}, config)
        with pytest.raises(CheckpointError, match=f"{name}' has shape"):
            load(tensors | {name: np.zeros((3, 5), np.float32)}, config)
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        load(tensors | {"score.weight": np.zeros((2, WIDTH), np.float32)}, config)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_gemma3_with_pictures_is_its_text_decoder(prefix):
    config, tensors = MODELS["gemma3"]
    renamed = {name.replace("model.", prefix, 1): array for name, array in tensors.items()}
    vision = {"vision_tower.embedding.weight": np.ones(3, np.float32)}
    text = {key: value for key, value in config.items() if key not in ("model_type", "num_key_value_heads")}
    outer = {"model_type": "gemma3", "text_config": text | {"num_key_value_heads": KV_HEADS}, "vision_config": {}}
    exportable = load(renamed | vision, outer | {"mm_tokens_per_image": 256, "image_token_index": 5})
    assert exportable.description == described("gemma3")
    assert exportable.decoding.stop_tokens == (2,)
    chat = load(renamed, outer | {"eos_token_id": [2, 7]}).decoding
    assert chat.stop_tokens == (2, 7)
    with pytest.raises(CheckpointError, match="text_config is 3"):
        load(renamed, outer | {"text_config": 3})
    with pytest.raises(CheckpointError, match=r"audio\.weight"):
        load(renamed | {"audio.weight": np.ones(3, np.float32)}, outer)


@pytest.mark.parametrize(
    "config",
    [{"model_type": ["llama"]}, {"model_type": {}}, {"architectures": 3}, {"model_type": "x", "architectures": True}],
)
def test_kinds_that_are_no_names_are_of_no_family(config):
    with pytest.raises(CheckpointError, match="is of no family that can be exported"):
        load({}, config)


@pytest.mark.parametrize("kind", ["qwen3_moe", "granitemoehybrid", "phi3small", "gemma3n"])
def test_relatives_that_are_other_architectures_are_refused_by_name(kind):
    with pytest.raises(CheckpointError, match=re.escape(f"model_type is '{kind}', {UNSUPPORTED[kind]}")):
        load({}, {"model_type": kind})
