"""Families of text models and ImageGPT without PyTorch: checkpoints in, the right weights in the right places, or a refusal.

The oracles are forward passes of Llama and GPT-2 written here on Hugging Face's own tensor names, one sequence at a time.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
from coupled_sampling.export.families import FAMILIES, find_family
from coupled_sampling.export.graphs.decoder import decoder_graph, write_decoder_graph
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rotary import RotaryScaling
from standins.checkpoints import checkpoint_of, interleaved_rotary
from standins.published import published, recommended
from standins.text_models import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    gpt2_logits,
    gpt2_tensors,
    llama_logits,
    llama_tensors,
)
from standins.tree_windows import furthest_of_trees
from standins.wrong_configurations import what_goes_wrong

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": POSITIONS,
    "n_ctx": POSITIONS,
}
IMAGEGPT = GPT2 | {"model_type": "imagegpt", "activation_function": "quick_gelu"}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": None}
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 6}
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY - 1, POSITIONS)


def load(tensors, config, positions=None, name="auto"):
    checkpoint = checkpoint_of(tensors, config)
    return find_family(checkpoint, name).load(checkpoint, positions)


def graph_logits(model, description, tokens):
    """All logits of one sequence, in two windows."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    shape = (1, description.kv_heads, description.cache_length, description.head_size)
    names = [value.name for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    caches, half, found = {name: np.zeros(shape, np.float32) for name in names}, len(tokens) // 2, []
    for first, last in ((0, half), (half, len(tokens))):
        control = {"input_ids": tokens[None, first:last], "start": np.array([first]), "kv_length": np.array([last])}
        logits, *present = session.run(None, control | caches)
        caches = dict(zip(names, present, strict=True))
        found.append(logits[0])
    return np.concatenate(found)


MODELS = {
    "llama": (LLAMA, llama_tensors(), llama_logits),
    "llama, tied": (LLAMA | {"tie_word_embeddings": True}, llama_tensors(tied=True), llama_logits),
    "mistral": (MISTRAL, llama_tensors(), llama_logits),
    "qwen2": (QWEN2, llama_tensors(bias=True), llama_logits),
    "gpt2": (GPT2, gpt2_tensors(), gpt2_logits),
    "gpt2, no prefix": (GPT2, gpt2_tensors(prefix=""), gpt2_logits),
    "imagegpt": (IMAGEGPT, gpt2_tensors(image=True), lambda t, tokens: gpt2_logits(t, tokens, image=True)),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_safetensors_folder_gives_the_models_logits(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("onnx")
    config, tensors, logits = MODELS[model]
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors, str(tmp_path / "model.safetensors"))
    expected = logits(tensors, TOKENS)
    with open_checkpoint(tmp_path) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint)
        reference = reference_logits(exportable.description, exportable.weights, TOKENS)
        graph = decoder_graph(exportable.description, exportable.weights).SerializeToString()
    found = graph_logits(graph, exportable.description, TOKENS)
    generated = expected.shape[1]
    assert expected.std() > 0.3
    np.testing.assert_allclose(reference[:, :generated], expected, atol=2e-5)
    np.testing.assert_allclose(found[:, :generated], expected, atol=1e-4)
    assert np.isneginf(found[:, generated:]).all()


@pytest.mark.parametrize("model", MODELS)
def test_windows_may_be_trees(model):
    pytest.importorskip("onnx")
    config, tensors, _ = MODELS[model]
    assert furthest_of_trees(load(tensors, config).description) <= 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_fewer_positions_are_the_same_model(model):
    config, tensors, logits = MODELS[model]
    exportable = load(tensors, config, positions=5)
    assert exportable.description.positions == 5
    found = reference_logits(exportable.description, exportable.weights, TOKENS[:5])
    expected = logits(tensors, TOKENS[:5])
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=2e-5)


@pytest.mark.parametrize("positions", [0, POSITIONS + 1])
@pytest.mark.parametrize("config", [LLAMA, GPT2, IMAGEGPT])
def test_more_positions_than_the_checkpoint_has_are_refused(config, positions):
    with pytest.raises(InvalidArgument, match=f"positions is {positions}, expected 1 to {POSITIONS}"):
        load(llama_tensors(), config, positions=positions)


def llama3(**changes):
    four = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3"} | four | changes


NEW = {key: value for key, value in LLAMA.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    ("config", "base", "scaling"),
    [
        (NEW, 10000.0, None),
        (LLAMA | {"rope_scaling": None}, 10000.0, None),
        (NEW | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}}, 10000.0, RotaryScaling("linear", 2.0)),
        (LLAMA | {"rope_scaling": llama3()}, 10000.0, RotaryScaling("llama3", 8.0)),
        (NEW | {"rope_parameters": llama3(rope_theta=5e5, factor=32.0)}, 5e5, RotaryScaling("llama3", 32.0)),
    ],
)
def test_rotary_positions_of_old_and_new_configurations(config, base, scaling):
    rotary = load(llama_tensors(), config).description.rotary
    assert (rotary.base, rotary.scaling, rotary.pairs) == (base, scaling, "half")


GATED = "keys that are not understood"
REFUSED_KEYS = {
    "unknown key": (LLAMA, {"residual_multiplier": 0.22}, f"{GATED}: residual_multiplier = 0.22"),
    "quantised": (LLAMA, {"quantization_config": {"bits": 4}}, f"{GATED}: quantization_config"),
    "dynamic": (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
    "yarn of slow beyond fast": (
        LLAMA,
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 40.0}},
        "expected 0 < low < high",
    ),
    "longrope without factors": (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "no 'short_factor'"),
    "longrope with a factor too few": (
        LLAMA,
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        "1 factors, expected one for each of the 2 pairs",
    ),
    "unknown key of scaling": (LLAMA, {"rope_scaling": llama3(attention_factor=2.0)}, "attention_factor = 2.0"),
    "incomplete scaling": (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    "scaling below one": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    "two kinds": (LLAMA, {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "remove one"),
    "two bases": (LLAMA, {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0 and 5.0"),
    "partial rotation": (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "interleaved": (LLAMA, {"rope_interleaved": True}, "rope_interleaved is True"),
    "activation": (LLAMA, {"hidden_act": "mish"}, "hidden_act is 'mish'"),
    "factors that are not Llama 3's": (
        LLAMA,
        {"rope_scaling": {"rope_type": "frequency_factors", "frequency_factors": [1.0, 3.0]}},
        "only those of Llama 3.1",
    ),
    "head size": (LLAMA, {"num_key_value_heads": 3}, "kv_heads is 3"),
    "window of a Llama": (
        LLAMA,
        {"sliding_window": POSITIONS - 1},
        "sliding_window is 15, and Llama's own code has no",
    ),
    "window that is no number": (MISTRAL, {"sliding_window": "4"}, "sliding_window is '4'"),
    "window of nothing": (MISTRAL, {"sliding_window": 0}, "sliding_window is 0"),
    "types of layers": (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "types of Mistral's layers": (
        MISTRAL,
        {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]},
        "heeds nothing else",
    ),
    "too few types": (QWEN2, {"layer_types": ["full_attention"]}, "2 times 'full_attention' or"),
    "unknown types": (QWEN2, {"layer_types": ["full_attention", "chunked_attention"]}, "2 times 'full_attention' or"),
    "no bias of Qwen 2": (QWEN2, {"attention_bias": False}, "attention_bias is False"),
    "bias of Mistral": (MISTRAL, {"attention_bias": True}, "attention_bias is True"),
    "scale by layer": (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    "cross attention": (GPT2, {"add_cross_attention": True}, "add_cross_attention is True"),
    "two lengths": (GPT2, {"n_ctx": 8}, "n_ctx is 8"),
    "tied ImageGPT": (IMAGEGPT, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    "no square": (IMAGEGPT, {"n_positions": 15, "n_ctx": 15}, "n_positions is 15"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_keys_that_change_the_numbers_are_refused_by_name(case):
    config, change, message = REFUSED_KEYS[case]
    tensors = next(tensors for one, tensors, _ in MODELS.values() if one["model_type"] == config["model_type"])
    load(tensors, config)
    with pytest.raises(CheckpointError, match=message):
        load(tensors, config | change)


def test_windows_without_effect_are_accepted():
    assert load(llama_tensors(), MISTRAL | {"sliding_window": POSITIONS}).description.attention_window == 0
    assert load(llama_tensors(), MISTRAL | {"sliding_window": 5}, positions=5).description.positions == 5
    every = {"layer_types": ["full_attention"] * LAYERS}
    assert load(llama_tensors(bias=True), QWEN2 | every).description.attention_window == 0


def test_a_missing_window_of_mistral_is_not_taken_for_none():
    config = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    with pytest.raises(CheckpointError, match="no 'sliding_window'"):
        load(llama_tensors(), config)


@pytest.mark.parametrize("model", MODELS)
def test_missing_left_over_and_wrong_tensors_are_refused(model):
    config, tensors, _ = MODELS[model]
    for name in tensors:
        with pytest.raises(CheckpointError, match=f"{name}'"):
            load({key: array for key, array in tensors.items() if key != name}, config)
        with pytest.raises(CheckpointError, match=f"{name}' has shape"):
            load(tensors | {name: np.zeros((3, 5), np.float32)}, config)
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        load(tensors | {"score.weight": np.zeros((2, WIDTH), np.float32)}, config)


def test_harmless_tensors_are_left_over():
    load(llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}, LLAMA)
    masks = {"transformer.h.0.attn.bias": np.ones((1, 1, 4, 4)), "transformer.h.1.attn.masked_bias": np.ones(())}
    load(gpt2_tensors() | masks, GPT2)


@pytest.mark.parametrize(
    ("config", "tensors", "embedding"),
    [
        (LLAMA | {"tie_word_embeddings": True}, llama_tensors(tied=True), "model.embed_tokens.weight"),
        (GPT2, gpt2_tensors(), "transformer.wte.weight"),
    ],
)
def test_a_stored_copy_of_a_tied_head_is_harmless_and_another_head_is_refused(config, tensors, embedding):
    assert load(tensors | {"lm_head.weight": tensors[embedding]}, config).description.tied_head
    with pytest.raises(CheckpointError, match=r"differs from .*set tie_word_embeddings to false"):
        load(tensors | {"lm_head.weight": tensors[embedding] + 1}, config)


@pytest.mark.parametrize(
    ("found", "expected"), [(2, (2,)), ([2, 5, 2], (2, 5)), (None, ()), (-1, ()), (VOCABULARY, ())]
)
def test_stop_tokens(found, expected):
    assert load(llama_tensors(), LLAMA | {"eos_token_id": found}).decoding.stop_tokens == expected


def test_decoding_of_imagegpt():
    tensors = gpt2_tensors(image=True)
    decoding = load(tensors, IMAGEGPT).decoding
    assert decoding.prompts["start"].tokens == (VOCABULARY - 1,)
    assert (decoding.length, decoding.grid, decoding.drafting) == (16, Grid(4, 4), "copy:4")
    assert recommended(decoding) == published("ImageGPT")
    assert load(tensors, IMAGEGPT, positions=8).decoding.grid == Grid(2, 4)
    assert load(tensors, IMAGEGPT, positions=7).decoding.grid is None


def test_a_missing_head_size_of_qwen3_is_its_own_default():
    norms = {f"model.layers.{i}.self_attn.{n}_norm.weight": np.ones(6, np.float32) for i in range(LAYERS) for n in "qk"}
    tensors = llama_tensors()
    with pytest.raises(CheckpointError, match="q_norm"):
        load(tensors, QWEN3)
    with pytest.raises(CheckpointError, match=r"q_proj.* expected \(24, 16\)"):
        load(tensors | norms, QWEN3)
    config = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    with pytest.raises(CheckpointError, match=r"q_proj.* expected \(512, 16\)"):
        load(tensors | norms, config)


@pytest.mark.parametrize(("scaled", "expected"), [(True, 0.5), (False, 1.0)])
def test_gpt2_without_scaled_attention(scaled, expected):
    assert load(gpt2_tensors(), GPT2 | {"scale_attn_weights": scaled}).description.attention_scale == expected


def test_find_family():
    for name in FAMILIES:
        assert find_family(checkpoint_of({}, {}), name).name == name
    for config, tensors, _ in MODELS.values():
        expected = "llama" if config["model_type"] in ("mistral", "qwen2") else config["model_type"]
        assert find_family(checkpoint_of(tensors, config)).name == expected
    assert find_family(checkpoint_of({}, {"architectures": ["Qwen3ForCausalLM"]})).name == "llama"
    unknown = checkpoint_of({}, {"model_type": "mamba"})
    with pytest.raises(CheckpointError, match=r"'mamba'.*llama"):
        find_family(unknown)
    with pytest.raises(InvalidArgument, match=r"'mamba'.*auto.*llama"):
        find_family(unknown, "mamba")
    with pytest.raises(CheckpointError, match="model_type is 'mamba'"):
        find_family(unknown, "llama").load(unknown)


def test_weights_are_read_when_asked_for_and_the_embedding_once():
    pytest.importorskip("onnx")
    checkpoint, read = checkpoint_of(llama_tensors(tied=True), LLAMA | {"tie_word_embeddings": True}), []
    plain = checkpoint.read
    checkpoint.read = lambda name, shape=None: (read.append(name), plain(name, shape))[1]
    exportable = find_family(checkpoint).load(checkpoint)
    assert read == []
    decoder_graph(exportable.description, exportable.weights)
    assert read.count("model.embed_tokens.weight") == 1


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path, tensors):
    """What llama.cpp's converter makes of `LLAMA`: its names, and interleaved rows of queries and keys."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_eos_token_id(7)
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, array in tensors.items():
        stem, part = name.rsplit(".", 1)
        if stem not in top:
            _, _, layer, rest = stem.split(".", 3)
            top[stem] = f"blk.{layer}.{GGUF_NAMES[rest]}"
        for projection, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if projection in name:
                array = interleaved_rotary(array, heads)
        writer.add_tensor(f"{top[stem]}.{part}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_is_the_same_family(tied, tmp_path):
    tensors = llama_tensors(tied=tied)
    write_gguf(tmp_path / "model.gguf", tensors)
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint)
        found = reference_logits(exportable.description, exportable.weights, TOKENS)
    assert exportable.decoding.stop_tokens == (7,)
    np.testing.assert_allclose(found, llama_logits(tensors, TOKENS), atol=2e-5)


def test_a_real_gguf_file_knows_the_capital_of_france(tmp_path):
    path = os.environ.get("COUPLED_SAMPLING_SMOLLM2")
    if not path or not Path(path).is_file():
        pytest.skip("COUPLED_SAMPLING_SMOLLM2 names no GGUF file of SmolLM2-135M-Instruct")
    for package in ("onnx", "gguf", "tokenizers"):
        pytest.importorskip(package)
    with open_checkpoint(path) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, positions=64)
        tokenizer = gguf_tokenizer(checkpoint.metadata)
        write_decoder_graph(exportable.description, exportable.weights, tmp_path / "model.onnx")
    tokens = np.array(tokenizer.encode("The capital of France is").ids)
    logits = graph_logits(str(tmp_path / "model.onnx"), exportable.description, tokens)
    assert np.isfinite(logits).all()
    best = [tokenizer.decode([int(token)]).strip() for token in np.argsort(-logits[-1])[:5]]
    assert "Paris" in best, best


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_value_of_any_key_is_refused_or_taken(model):
    config, tensors, _ = MODELS[model]
    optional = {
        "head_dim": WIDTH // HEADS,
        "hidden_act": "silu",
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    optional |= {
        "rope_parameters": None,
        "attention_bias": False,
        "mlp_bias": False,
        "layer_types": None,
        "n_inner": None,
    }
    optional |= {
        "tie_word_embeddings": None,
        "sliding_window": None,
        "scale_attn_weights": True,
        "activation_function": "gelu",
    }
    for whole in (config, {**optional, **config}):
        assert what_goes_wrong(whole, lambda changed: load(tensors, changed)) == []
