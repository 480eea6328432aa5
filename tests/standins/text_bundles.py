"""A small random Llama with a tokenizer, as a checkpoint of Hugging Face and as a bundle."""

import json

import numpy as np
import pytest

from coupled_sampling.export import ExportSettings, export_checkpoint

save_file = pytest.importorskip("safetensors.numpy", reason="needs the extra [export]").save_file

WIDTH = 16


def write_text_checkpoint(folder, inner=None, *, config=None, vocab_size=None, **files):
    """A checkpoint in ``folder``; ``inner`` is its tokenizer, ``files`` are JSON files beside it, by name without ending."""
    folder.mkdir()
    vocab_size = vocab_size or inner.get_vocab_size()
    sizes = {"vocab_size": vocab_size, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1}
    plain = {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({**sizes, **plain, **(config or {})}))
    shapes = {"embed_tokens": (vocab_size, WIDTH), "norm": (WIDTH,), "layers.0.input_layernorm": (WIDTH,)}
    shapes |= {"layers.0.post_attention_layernorm": (WIDTH,)}
    shapes |= {f"layers.0.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {f"layers.0.mlp.{name}_proj": (WIDTH, WIDTH) for name in ("gate", "up", "down")}
    random = np.random.default_rng(0)
    weights = {
        f"model.{name}.weight": random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    weights["lm_head.weight"] = random.normal(0, 0.3, (vocab_size, WIDTH)).astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    if inner is not None:
        inner.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_text_bundle(folder, inner=None, *, settings=None, **checkpoint):
    """Its bundle, in ``folder / "bundle"``."""
    source = write_text_checkpoint(folder / "checkpoint", inner, **checkpoint)
    export_checkpoint(source, folder / "bundle", settings or ExportSettings(windows=(1, 8)))
    return folder / "bundle"
