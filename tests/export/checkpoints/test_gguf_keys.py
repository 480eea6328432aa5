"""Every key of a GGUF file's metadata is used, known to describe only, or refused by name and value."""

import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
from standins.gguf_files import hyperparameters

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.output_scale", 0.5),
        ("llama.something_new", [1, 2]),
        ("llama.rope.scaling.yarn_ext_factor", 1.0),
        ("llama.rope.scaling.attn_factor", 0.5),
        ("llama.rope.scaling.alpha", 2.0),
        ("llama.expert_used_count", 2),
        ("llama.nextn_predict_layers", 1),
        ("llama.attention.sliding_window_pattern", [True]),
        ("llama.tensor_data_layout", "columns"),
        ("qwen2.rope.freq_base", 1.0),
        ("diffusion.shift_logits", True),
        ("adapter.type", "lora"),
        ("general.type", "adapter"),
    ],
)
def test_a_key_that_is_not_understood_stops_the_export_by_name_and_value(key, value):
    metadata = {"general.architecture": "llama"} | hyperparameters() | {key: value}
    with pytest.raises(CheckpointError) as caught:
        huggingface_config(metadata, ())
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({}, None),
        ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.factor": 1.0}, None),
    ],
)
def test_a_scaling_without_a_type_is_linear_as_in_llama_cpp(keys, scaling):
    metadata = {"general.architecture": "llama"} | hyperparameters()
    metadata |= {f"llama.rope.{key}": value for key, value in keys.items()}
    assert huggingface_config(metadata, ())["rope_scaling"] == scaling


@pytest.mark.parametrize("value", ["x", True, float("nan"), float("inf"), [1.0], None])
@pytest.mark.parametrize(
    "key", ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scale_linear"]
)
def test_numbers_are_numbers(key, value):
    metadata = {"general.architecture": "llama"} | hyperparameters() | {f"llama.{key}": value}
    with pytest.raises(CheckpointError, match=f"metadata llama.{key} is .*expected a number"):
        huggingface_config(metadata, ())


def test_keys_that_describe_change_nothing():
    """As they are in the files of llama.cpp's converter, Unsloth, TheBloke and mradermacher."""
    metadata = {"general.architecture": "llama"} | hyperparameters()
    plain = huggingface_config(metadata, ())
    describing = {
        "general.name": "x",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "general.size_label": "1B",
        "general.base_model.0.name": "y",
        "general.sampling.temp": 0.7,
        "general.type": "model",
        "general.tags": ["a"],
        "tokenizer.ggml.pre": "default",
        "tokenizer.chat_template.tool_use": "x",
        "quantize.imatrix.file": "x.dat",
        "quantize.imatrix.chunks_count": 128,
        "split.count": 1,
        "mradermacher.quantized_by": "x",
        "llama.tensor_data_layout": "Meta AI original pth",
        "llama.rope.scaling.finetuned": True,
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.pooling_type": 0,
        "llama.attention.causal": True,
        "llama.rope.scaling.attn_factor": 1.0,
    }
    assert huggingface_config(metadata | describing, ()) == plain


def test_every_key_of_llama_cpp_is_known_or_refused():
    """None of the keys that the package gguf knows is passed over: each is used, neutral at some value, describing or refused."""
    metadata = {"general.architecture": "llama"} | hyperparameters()
    names, places = set(), [gguf.Keys]
    for place in places:
        for name, value in vars(place).items():
            if isinstance(value, type):
                places.append(value)
            elif isinstance(value, str) and not name.startswith("__"):
                names.add(value.format(arch="llama", id=0, name="x", dense="x"))
    refused = set()
    for key in names - set(metadata):
        try:
            huggingface_config(metadata | {key: object()}, ())
        except CheckpointError:
            refused.add(key)
    passed = {key for key in names - refused if key.startswith("llama.")} - set(metadata)
    assert passed == {
        "llama.decoder_start_token_id",
        "llama.pooling_type",
        "llama.rope.scaling.original_context_length",
        "llama.rope.scaling.finetuned",
        "llama.attention.sliding_window",
    }
    assert len(refused) > 100
