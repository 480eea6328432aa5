"""Small GGUF files, written by the package gguf as llama.cpp's converter does."""

import pytest

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")

HIDDEN, HEADS, KEY_HEADS, LAYERS, VOCABULARY = 32, 4, 2, 2, 8
HEAD_SIZE = HIDDEN // HEADS


def hyperparameters(architecture="llama"):
    heads = {"attention.head_count": HEADS} | ({} if architecture == "gpt2" else {"attention.head_count_kv": KEY_HEADS})
    sizes = {"block_count": LAYERS, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": 64}
    epsilon = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    values = sizes | heads | {f"attention.{epsilon}": 1e-5, "vocab_size": VOCABULARY}
    return {f"{architecture}.{key}": value for key, value in values.items()}


def write_gguf(path, tensors, architecture="llama", metadata=None, raw_types=None):
    """A small file; ``tensors`` are floats, or bytes of the block type in ``raw_types``."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (hyperparameters(architecture) | (metadata or {})).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, (list, tuple)):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, array in tensors.items():
        kind = (raw_types or {}).get(name)
        writer.add_tensor(name, array, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
