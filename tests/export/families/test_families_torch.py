"""Exported families against transformers: small models of the real architectures with random weights, saved and read back.

Every parameter is random, so that no bias is zero and no norm is one, and every case names wrong readings of its
checkpoint that must show. Run with -s for the table of largest differences.
"""

import json

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.rotary import Rotary
from standins.exported_windows import LENGTH, one_thread, print_table
from standins.transformers_models import SIZES, TOLERANCE, VOCABULARY, export, furthest, logits_of
from standins.transformers_models import build as build_model
from standins.wrong_readings import assert_they_show, changed, epsilon, kinds, rotary, scaling, without

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "layer_norm_epsilon": 1e-3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 3.0,
    "original_max_position_embeddings": 64,
}


def swapped(first, second):
    def wrong(description, weights):
        names = {first: second, second: first}

        def read(name):
            for ending, other in names.items():
                if name.endswith(ending):
                    return weights(name.removesuffix(ending) + other)
            return weights(name)

        return description, read

    return wrong


SWIGLU = swapped("mlp.gate.weight", "mlp.up.weight")
PAIRS = rotary(pairs="interleaved")
CASES = {
    "Llama 2, untied": ("Llama", SIZES, [epsilon, PAIRS, SWIGLU, rotary(base=1000.0)]),
    "Llama, linear scaling, all biases": (
        "Llama",
        SIZES
        | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
        | {"attention_bias": True, "mlp_bias": True},
        [
            rotary(scaling=None),
            without("output.bias"),
            without("query.bias"),
            without("gate.bias"),
            without("down.bias"),
        ],
    ),
    "Llama 3, scaled, tied": (
        "Llama",
        SIZES | {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "eos_token_id": [2, 5]},
        [rotary(scaling=None), rotary(base=10000.0), PAIRS],
    ),
    "SmolLM2: 3 heads, 1 of keys, tied": (
        "Llama",
        SIZES | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
        [changed(activation="gelu_tanh")],
    ),
    "Llama, exact GELU, head size 20": (
        "Llama",
        SIZES | {"head_dim": 20, "hidden_act": "gelu"},
        [changed(activation="gelu_tanh"), changed(attention_scale=0.3)],
    ),
    "Mistral, no window": ("Mistral", SIZES | {"sliding_window": None, "head_dim": 16}, [epsilon, SWIGLU]),
    "Mistral, window = positions": ("Mistral", SIZES | {"sliding_window": LENGTH}, [changed(attention_window=8)]),
    "Mistral, window of 7": (
        "Mistral",
        SIZES | {"sliding_window": 7},
        [changed(attention_window=0), changed(attention_window=6), changed(attention_window=8)],
    ),
    "Qwen 2, layers that slide": (
        "Qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        [kinds(0, window=5), kinds(2, window=0), kinds(1, window=6)],
    ),
    "Qwen 2.5, YaRN": (
        "Qwen2",
        SIZES | {"rope_parameters": YARN},
        [
            scaling(attention_factor=1.0),
            scaling(kind="llama3"),
            scaling(high_frequency_factor=16.0),
            rotary(scaling=None),
        ],
    ),
    "Llama, YaRN with exponents, ends not rounded": (
        "Llama",
        SIZES | {"rope_parameters": YARN | {"mscale": 0.5, "mscale_all_dim": 1.2, "truncate": False}},
        [scaling(attention_factor=1.0), scaling(whole_pairs=True)],
    ),
    "Qwen 2, tied": (
        "Qwen2",
        SIZES | {"tie_word_embeddings": True},
        [without("query.bias"), without("key.bias"), without("value.bias")],
    ),
    "Qwen 3, head size 16": (
        "Qwen3",
        SIZES | {"head_dim": 16, "attention_bias": True},
        [without("query_norm.weight"), without("key_norm.weight"), without("output.bias")],
    ),
    "GPT-2": (
        "GPT2",
        GPT2,
        [
            epsilon,
            changed(activation="gelu"),
            without("up.bias"),
            swapped("query.weight", "key.weight"),
            without("norm.bias"),
        ],
    ),
    "GPT-2, untied, unscaled, n_inner, relu": (
        "GPT2",
        GPT2
        | {"tie_word_embeddings": False, "scale_attn_weights": False, "n_inner": 72, "activation_function": "relu"},
        [changed(attention_scale=0.5), changed(activation="silu")],
    ),
    "ImageGPT": (
        "ImageGPT",
        GPT2,
        [epsilon, changed(activation="gelu_tanh"), without("down.bias"), without("position.weight")],
    ),
}
CLASSES = {name: (f"{name}Config", f"{name}ForCausalLM") for name in ("Llama", "Mistral", "Qwen2", "Qwen3")} | {
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "ImageGPT": ("ImageGPTConfig", "ImageGPTForCausalImageModeling"),
}
FURTHEST = {}

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print_table(FURTHEST, "transformers")


def build(kind, sizes, seed=0):
    config_class, model_class = CLASSES[kind]
    return build_model(getattr(transformers, config_class)(**sizes), model_class, seed)


@pytest.mark.parametrize("case", CASES)
def test_windows_are_scored_as_by_transformers(case, tmp_path):
    kind, sizes, wrong_readings = CASES[case]
    model = build(kind, sizes)
    model.save_pretrained(tmp_path / "checkpoint")
    _, path = export(tmp_path / "checkpoint", tmp_path)
    difference, spread = FURTHEST[case] = furthest(path, model)
    assert difference <= TOLERANCE
    assert 1 <= spread <= 20
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, LENGTH)
    expected = logits_of(model, tokens)
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, LENGTH)
        generated = slice(expected.shape[1])
        assert_they_show(exportable, wrong_readings, tokens, expected, generated, TOLERANCE)


@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_older_configurations_and_shards_are_the_same_model(tmp_path, kind_key):
    model = build("Llama", SIZES | {"rope_parameters": LLAMA3})
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="40KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 1
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    nested = config.pop("rope_parameters")
    config |= {"rope_theta": nested.pop("rope_theta")}
    config |= {"rope_scaling": {kind_key: nested.pop("rope_type"), **nested}}
    file.write_text(json.dumps(config))
    exportable, path = export(tmp_path / "checkpoint", tmp_path)
    assert exportable.description.rotary != Rotary()
    difference, spread = FURTHEST[f"Llama 3, transformers 4 keys ({kind_key}), shards"] = furthest(path, model)
    assert difference <= TOLERANCE
    assert spread >= 1


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_tensors_without_the_prefix(tmp_path, kind):
    model = build(kind, (SIZES if kind == "Llama" else GPT2) | {"tie_word_embeddings": True})
    model.base_model.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_text()) | {"tie_word_embeddings": True}
    file.write_text(json.dumps(config))
    _, path = export(tmp_path / "checkpoint", tmp_path)
    difference, _ = FURTHEST[f"{kind} without prefix"] = furthest(path, model)
    assert difference <= TOLERANCE


def test_llama3_factors_of_gguf_are_transformers_frequencies():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from coupled_sampling.export.families.config import ConfigReader
    from coupled_sampling.export.families.rotary_settings import Lengths, take_rotary
    from coupled_sampling.export.graphs.rotary import rotary_tables

    nested = LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(**SIZES | {"head_dim": 64, "rope_parameters": nested})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    factors = {"rope_type": "frequency_factors", "frequency_factors": (plain / frequencies.numpy()).tolist()}
    reader = ConfigReader({"rope_theta": 500000.0, "rope_scaling": factors}, "the file")
    rotary = take_rotary(reader, "the file", 64, Lengths(64, None)).rotary
    _, sin = rotary_tables(rotary, 64, 2)
    np.testing.assert_allclose(np.arcsin(sin[1, 1:]), frequencies.numpy()[1:], rtol=1e-5)
