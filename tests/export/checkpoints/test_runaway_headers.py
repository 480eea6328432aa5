"""Headers that promise more than is there: refused before anything is made for each of what they promise."""

import struct
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from coupled_sampling.bundles.json_files import SmallFile
from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.bundles import export_checkpoint
from coupled_sampling.export.checkpoints import contract, gguf_file, open_checkpoint, safetensors_reader
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
from coupled_sampling.export.checkpoints.gguf_file import GgufFile

pytest.importorskip("gguf", reason="needs the extra [export]")
save = pytest.importorskip("safetensors.numpy", reason="needs the extra [export]").save

LLAMA = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": 16,
    "llama.feed_forward_length": 16, "llama.attention.head_count": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 8,
}  # fmt: skip


def text(content):
    return struct.pack("<Q", len(content)) + content.encode()


def number(key, value):
    return text(key) + struct.pack("<II", 4, value)


def gguf(path, *entries, tensors=0, keys=None, after=b""):
    counts = struct.pack("<QQ", tensors, len(entries) if keys is None else keys)
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + counts + b"".join(entries) + after)
    return path


@contextmanager
def little_memory(most=4_000_000):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def refusal(path, *words):
    with little_memory(), pytest.raises(CheckpointError) as caught:
        GgufFile(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_counts_are_held_against_the_bytes_that_are_there(tmp_path):
    path = tmp_path / "a.gguf"
    refusal(gguf(path, tensors=2**40), f"announces {2**40} tensors, and has room for 0")
    refusal(gguf(path, keys=2**63, after=bytes(13_000)), f"announces {2**63} metadata keys, and has room for 1001")
    refusal(gguf(path, tensors=200_000, after=bytes(32 * 200_000)), "200000 tensors, and 100000 are the most")
    refusal(gguf(path, keys=20_000, after=bytes(13 * 20_000)), "20000 metadata keys, and 10000 are the most")


def test_a_header_may_be_as_long_as_any_models(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "GGUF_HEADER", SmallFile("a GGUF header", 400))
    path = gguf(tmp_path / "a.gguf", text("general.name") + struct.pack("<I", 8) + text("x" * 300))
    GgufFile(path).close()
    path = gguf(tmp_path / "a.gguf", text("general.name") + struct.pack("<I", 8) + text("x" * 400))
    refusal(path, "bytes of GGUF header, and 400 are the most")


def test_lists_may_have_as_many_entries_as_any_models(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "MOST_ENTRIES", 10)
    lists = [text(name) + struct.pack("<IIQ", 9, 0, 5) + bytes(5) for name in "abc"]
    GgufFile(gguf(tmp_path / "a.gguf", *lists[:2])).close()
    refusal(gguf(tmp_path / "a.gguf", *lists), "15 entries up to 'c', and 10 are the most")
    texts = text("a") + struct.pack("<IIQ", 9, 8, 2**62)
    refusal(gguf(tmp_path / "a.gguf", texts), f"{2**62} entries")


@pytest.mark.parametrize("layers", [8_388_610, 2**32 - 1])
def test_one_integer_keeps_nobody_busy(tmp_path, layers):
    """A file of some kilobytes with the right kinds of keys."""
    sizes = {**LLAMA, "llama.block_count": layers}
    entries = [number(key, value) for key, value in sizes.items() if isinstance(value, int)]
    entries += [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    entries += [text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 16, 8, 0, 0)
    path = gguf(tmp_path / "a.gguf", *entries, tensors=1, after=tensor + bytes(1024))
    with little_memory(), pytest.raises(CheckpointError, match=r"holds only 1 tensors|num_hidden_layers is 4294967295"):
        export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("general.architecture", ["llama"], "general.architecture is ['llama']"),
        ("general.architecture", 3, "general.architecture is 3"),
        ("llama.attention.head_count", [2, 2], "same for all layers"),
        ("llama.attention.head_count", True, "positive integer"),
        ("llama.attention.layer_norm_rms_epsilon", "small", "a number that float32 has"),
        ("llama.attention.layer_norm_rms_epsilon", [1e-5], "a number that float32 has"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "a number that float32 has"),
        ("llama.rope.freq_base", 1e300, "a number that float32 has"),
        ("llama.rope.scale_linear", "2", "a number that float32 has"),
        ("llama.rope.scaling.type", ["yarn"], "rope.scaling.type is ['yarn']"),
        ("llama.expert_count", [0], "expert_count is [0]"),
    ],
)
def test_metadata_of_another_type_is_refused_by_name(key, value, word):
    huggingface_config(LLAMA, ())
    with pytest.raises(CheckpointError) as caught:
        huggingface_config({**LLAMA, key: value}, ())
    assert word in str(caught.value)


def test_parts_and_factors_of_another_type_are_refused(tmp_path):
    kind = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    path = gguf(tmp_path / "a.gguf", *kind, text("split.count") + struct.pack("<I", 8) + text("two"))
    with pytest.raises(CheckpointError, match="one of 'two' parts"):
        open_checkpoint(path)
    factors = text("rope_freqs.weight") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    path = gguf(tmp_path / "a.gguf", *kind, tensors=1, after=factors + bytes(64))
    with pytest.raises(CheckpointError, match=r"'rope_freqs.weight' has shape \(2, 2\), expected a factor"):
        open_checkpoint(path)


def test_a_safetensors_header_may_be_as_long_as_any_models(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    content = save({"a": np.zeros(3, np.float32)}, metadata={"note": "x" * 500})
    (tmp_path / "model.safetensors").write_bytes(content)
    length = int.from_bytes(content[:8], "little")
    open_checkpoint(tmp_path).close()
    monkeypatch.setattr(safetensors_reader, "SAFETENSORS_HEADER", SmallFile("a safetensors header", length - 1))
    with pytest.raises(CheckpointError, match=f"{length} bytes of safetensors header, and {length - 1} are the most"):
        open_checkpoint(tmp_path)


def test_a_missing_name_is_not_compared_with_a_million_others(monkeypatch):
    monkeypatch.setattr(contract, "_NAMES_COMPARED", 3)
    names = {f"blocks.{i}.weight": None for i in range(9)}
    checkpoint = Checkpoint("model", "safetensors", {}, names, lambda name: np.zeros(1))
    with pytest.raises(CheckpointError, match=r"close names are blocks\.0"):
        checkpoint.info("blocks.0.weights")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.info("blocks.8.weights")
    assert "blocks.8.weight," not in str(caught.value)
