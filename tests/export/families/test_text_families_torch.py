"""Families whose layers differ, or that scale and normalise in ways of their own, against transformers.

As in ``test_families_torch.py``: small models of the real architectures with random weights, saved and read back, and wrong
readings of each that must show. Windows are a fraction of the sequences.
"""

import json

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.description import Norm
from standins.exported_windows import LENGTH, one_thread, print_table
from standins.transformers_models import SIZES, TOLERANCE, VOCABULARY, build, export, furthest, logits_of
from standins.wrong_readings import assert_they_show, changed, epsilon, kinds, rotary, scaling, without

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FURTHEST = {}
one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print_table(FURTHEST, "transformers")


SPARE = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
GEMMA2 = SIZES | SPARE | {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
GEMMA2 |= {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0}
GEMMA3 = SIZES | SPARE | {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
}
PHI3 = SIZES | SPARE
CASES = {
    "Gemma 2": (
        ("Gemma2Config", "Gemma2ForCausalLM"),
        GEMMA2,
        [
            epsilon,
            changed(attention_softcap=0.0),
            changed(logit_softcap=0.0),
            changed(embedding_scale=1.0),
            changed(attention_scale=0.25),
            changed(norm=Norm("rms", 1e-3)),
            changed(activation="gelu"),
            kinds(0, window=0),
            kinds(1, window=6),
            kinds(2, window=7),
        ],
    ),
    "Gemma 2, no softcaps, window without effect": (
        ("Gemma2Config", "Gemma2ForCausalLM"),
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": LENGTH},
        [changed(attention_softcap=3.0), without("attention_output_norm.weight"), without("mlp_output_norm.weight")],
    ),
    "Gemma 3, two bases": (
        ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        GEMMA3 | {"sliding_window_pattern": 3, "rope_parameters": TWO_BASES},
        [kinds(0, window=0), kinds(1, window=5), kinds(2, window=6), kinds(3, window=0), without("query_norm.weight")],
    ),
    "Gemma 3, types of layers, final softcap": (
        ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        GEMMA3
        | {"layer_types": ["full_attention", "sliding_attention"] * 2, "final_logit_softcapping": 5.0}
        | {"attention_bias": True},
        [changed(logit_softcap=0.0), kinds(0, window=6), kinds(1, window=0), without("key.bias")],
    ),
    "Phi-3, window of 9": (
        ("Phi3Config", "Phi3ForCausalLM"),
        PHI3 | {"sliding_window": 9},
        [changed(attention_window=0), changed(attention_window=10), epsilon],
    ),
    "Phi-3, short factors": (
        ("Phi3Config", "Phi3ForCausalLM"),
        PHI3 | {"rope_parameters": dict(LONG), "original_max_position_embeddings": LENGTH},
        [rotary(scaling=None), scaling(attention_factor=1.0), scaling(factors=tuple(LONG["long_factor"]))],
    ),
    "Phi-4 mini: partial rotation, tied": (
        ("Phi3Config", "Phi3ForCausalLM"),
        PHI3
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75}}
        | {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 3},
        [rotary(size=0), rotary(size=10)],
    ),
    "OLMo 2": (
        ("Olmo2Config", "Olmo2ForCausalLM"),
        SIZES | SPARE | {"attention_bias": True},
        [
            epsilon,
            without("query_norm.weight"),
            without("key_norm.weight"),
            without("mlp_output_norm.weight"),
            without("output.bias"),
        ],
    ),
    "SmolLM3": (
        ("SmolLM3Config", "SmolLM3ForCausalLM"),
        SIZES | SPARE | {"num_hidden_layers": 5},
        [kinds(0, rotary=None), kinds(3, rotary=None, window=9), epsilon],
    ),
    "SmolLM3, layers named, windows": (
        ("SmolLM3Config", "SmolLM3ForCausalLM"),
        SIZES
        | SPARE
        | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 7, "mlp_bias": True},
        [kinds(0, window=0), kinds(1, rotary=None), kinds(2, window=6), without("gate.bias")],
    ),
    "Granite": (
        ("GraniteConfig", "GraniteForCausalLM"),
        SIZES
        | SPARE
        | {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 0.6},
        [
            changed(embedding_scale=1.0),
            changed(attention_scale=12**-0.5),
            changed(residual_scale=1.0),
            changed(logit_scale=1.0),
            changed(logit_scale=0.6),
        ],
    ),
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
SHORT = LONG | {"original_max_position_embeddings": LENGTH}
for like, title, stretched in (
    ("SmolLM3", "YaRN", YARN),
    ("OLMo 2", "YaRN", YARN),
    ("Granite", "YaRN", YARN),
    ("Gemma 2", "YaRN", YARN),
    ("OLMo 2", "short factors", SHORT),
    ("SmolLM3", "short factors", SHORT),
):
    classes, sizes, _ = CASES[like]
    few = sizes | {"rope_parameters": stretched}
    CASES[f"{like}, {title}"] = (classes, few, [scaling(attention_factor=1.0)])


def made(case):
    (config_class, model_class), sizes, _ = CASES[case]
    return build(getattr(transformers, config_class)(**json.loads(json.dumps(sizes))), model_class)


@pytest.mark.parametrize("case", CASES)
def test_windows_are_scored_as_by_transformers(case, tmp_path):
    model = made(case)
    model.save_pretrained(tmp_path / "checkpoint")
    _, path = export(tmp_path / "checkpoint", tmp_path)
    difference, spread = FURTHEST[case] = furthest(path, model)
    assert difference <= TOLERANCE
    assert 1 <= spread <= 20
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, LENGTH)
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, LENGTH)
        assert_they_show(exportable, CASES[case][2], tokens, logits_of(model, tokens), slice(VOCABULARY), TOLERANCE)


def test_beyond_the_original_length_all_positions_take_the_long_factors(tmp_path):
    """As transformers does for a sequence of that length read at once; here its code is told that every sequence is longer."""
    sizes = PHI3 | {"rope_parameters": dict(LONG), "original_max_position_embeddings": 16}
    model = build(transformers.Phi3Config(**sizes), "Phi3ForCausalLM")
    model.save_pretrained(tmp_path / "checkpoint")
    exportable, path = export(tmp_path / "checkpoint", tmp_path)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, LENGTH)
    expected = logits_of(model, tokens)
    short = logits_of(model, tokens[:16])
    model.config.rope_parameters["original_max_position_embeddings"] = model.config.original_max_position_embeddings = 1
    np.testing.assert_allclose(logits_of(model, tokens), expected, atol=1e-6)
    assert np.abs(logits_of(model, tokens[:16]) - short).max() > 20 * TOLERANCE
    difference, spread = FURTHEST["Phi-3, long factors"] = furthest(path, model)
    assert difference <= TOLERANCE
    assert spread >= 1
    assert "long factors" in exportable.decoding.notes[0]
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        usual = find_family(checkpoint).load(checkpoint)
        assert usual.description.positions == 16
        assert "short factors" in usual.decoding.notes[0]
        assert_they_show(usual, [scaling(attention_factor=1.0)], tokens[:16], short, slice(VOCABULARY), TOLERANCE)


OLDER_GEMMA3 = {
    "rope_theta": 5000.0,
    "rope_local_base_freq": 100.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}


def test_gemma3_with_older_keys_is_the_same_model(tmp_path):
    model = made("Gemma 3, two bases")
    model.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        config.pop(key, None)
    file.write_text(json.dumps(config | OLDER_GEMMA3 | {"sliding_window_pattern": 3}))
    _, path = export(tmp_path / "checkpoint", tmp_path)
    difference, _ = FURTHEST["Gemma 3, older keys"] = furthest(path, model)
    assert difference <= TOLERANCE


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


@pytest.mark.parametrize("hub", [False, True])
def test_the_text_decoder_of_a_gemma3_with_pictures(tmp_path, hub):
    """Its file also has an encoder of pictures, which is left out; the hub's files have older names."""
    text = GEMMA3 | {"sliding_window_pattern": 3, "rope_parameters": json.loads(json.dumps(TWO_BASES))}
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION | {"model_type": "siglip_vision_model"})
    model = build(config, "Gemma3ForConditionalGeneration")
    model.save_pretrained(tmp_path / "checkpoint")
    if hub:
        from safetensors.numpy import load_file, save_file

        file = tmp_path / "checkpoint" / "model.safetensors"
        tensors = load_file(file)
        renamed = {
            name.replace("model.language_model.", "language_model.model.").removeprefix("model."): array
            for name, array in tensors.items()
        }
        renamed = {name.replace("language_model.lm_head", "lm_head"): array for name, array in renamed.items()}
        save_file(renamed, file)
    exportable, path = export(tmp_path / "checkpoint", tmp_path)
    difference, spread = FURTHEST[f"Gemma 3 with pictures, {'hub' if hub else 'new'} names"] = furthest(path, model)
    assert difference <= TOLERANCE
    assert spread >= 1
    assert "encoder of pictures" in exportable.decoding.notes[-1]
