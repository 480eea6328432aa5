"""Checkpoints of safetensors: values against the arrays written, and every refusal with its message."""

import json
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.checkpoints.rotary_layout import unpermute_rotary
from standins.checkpoints import interleaved_rotary

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra [export]")

CONFIG = {"model_type": "llama", "hidden_size": 8}
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {f"layer.{kind}.weight": (rng.normal(size=(3, 5)) * 4).astype(kind) for kind in DTYPES}


def write_folder(folder, tensors, config=CONFIG, file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors_numpy.save_file(tensors, folder / file)
    return folder


def write_shards(folder, shards, places=None):
    for file, tensors in shards.items():
        write_folder(folder, tensors, file=file)
    if places is None:
        places = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def write_raw(folder, header, data):
    """A file with a header of our own making, which the library would not write."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def refusal(source, *words):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("single_file", [False, True])
def test_every_type_comes_back_bit_for_bit(tmp_path, single_file):
    written = arrays()
    folder = write_folder(tmp_path / "model", written)
    with open_checkpoint(folder / "model.safetensors" if single_file else folder) as checkpoint:
        assert set(checkpoint.names()) == set(written)
        assert checkpoint.config == CONFIG
        assert checkpoint.kind == "safetensors"
        for name, array in written.items():
            info = checkpoint.info(name)
            assert (info.shape, info.dtype, info.bytes) == (array.shape, array.dtype.name, array.nbytes)
            assert info.file == folder / "model.safetensors"
            found = checkpoint.read(name, (3, 5))
            assert found.dtype == array.dtype
            assert found.tobytes() == array.tobytes()
    assert written["layer.bfloat16.weight"].dtype == ml_dtypes.bfloat16


def test_shards_are_one_checkpoint(tmp_path):
    first, second = {"a": np.arange(4.0)}, {"b": np.arange(6).reshape(2, 3)}
    folder = write_shards(
        tmp_path / "model", {"m-00001-of-00002.safetensors": first, "m-00002-of-00002.safetensors": second}
    )
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.names() == ("a", "b")
        np.testing.assert_array_equal(checkpoint.read("a"), first["a"])
        np.testing.assert_array_equal(checkpoint.read("b"), second["b"])
        assert checkpoint.info("b").file.name == "m-00002-of-00002.safetensors"


def test_reading_refuses_other_names_and_shapes(tmp_path):
    with open_checkpoint(write_folder(tmp_path / "model", arrays())) as checkpoint:
        with pytest.raises(
            CheckpointError, match=r"no tensor 'layer.float23.weight'; close names are .*layer.float32.weight"
        ):
            checkpoint.read("layer.float23.weight")
        with pytest.raises(CheckpointError, match=r"'layer.int8.weight' has shape \(3, 5\), expected \(5, 3\)"):
            checkpoint.read("layer.int8.weight", (5, 3))
    with pytest.raises(InvalidArgument, match="closed"):
        checkpoint.read("layer.int8.weight")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    folder = write_folder(tmp_path / "model", arrays())
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    message = refusal(folder, str(file), "truncated")
    if kept == -1:
        assert f"{len(whole) - 1} bytes, its header promises {len(whole)}" in message


def test_damaged_headers_are_refused(tmp_path):
    folder = write_folder(tmp_path / "model", arrays())
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[9] = 0xFF
    file.write_bytes(whole)
    refusal(folder, str(file), "header is damaged")
    write_raw(folder, {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8))
    refusal(folder, str(file), "contradicts itself")
    write_raw(folder, {}, b"")
    refusal(folder, "holds no tensors")


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_fp8_is_refused_by_name(tmp_path, kind):
    header = {"model.up.weight": {"dtype": kind, "shape": [2], "data_offsets": [0, 2]}}
    refusal(write_raw(tmp_path / "model", header, b"ab"), "'model.up.weight'", kind, "BF16")


def test_quantised_weights_are_refused_by_name(tmp_path):
    tensors = {"model.layers.0.mlp.up_proj.qweight": np.zeros((2, 2), np.int32)}
    refusal(write_folder(tmp_path / "parts", tensors), "'model.layers.0.mlp.up_proj.qweight'", "GPTQ or AWQ")
    config = CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    refusal(write_folder(tmp_path / "config", arrays(), config), "config.json", "'awq'")


def test_shards_that_do_not_fit_are_refused(tmp_path):
    one, two = "1.safetensors", "2.safetensors"
    folder = write_shards(tmp_path / "missing", {one: {"a": np.zeros(1)}, two: {"b": np.zeros(1)}})
    (folder / two).unlink()
    refusal(folder, str(folder / two), "is missing", "index")
    folder = write_shards(tmp_path / "twice", {one: {"a": np.zeros(1)}, two: {"a": np.zeros(1), "b": np.zeros(1)}})
    places = {"a": one, "b": two}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refusal(folder, "'a' is in both", one, two)
    folder = write_shards(tmp_path / "lost", {one: {"a": np.zeros(1)}}, {"a": one, "c": one})
    refusal(folder, "'c'", one, "does not hold it")
    folder = write_shards(tmp_path / "outside", {one: {"a": np.zeros(1)}}, {"a": "../1.safetensors"})
    refusal(folder, "'a'", "../1.safetensors", "same folder")
    folder = write_shards(tmp_path / "empty", {one: {"a": np.zeros(1)}}, {})
    refusal(folder, "weight_map")


def test_several_files_without_an_index_are_refused(tmp_path):
    folder = write_folder(tmp_path / "model", arrays(), file="a.safetensors")
    write_folder(folder, arrays(), file="b.safetensors")
    refusal(folder, "2 .safetensors files", "index.json")
    with open_checkpoint(folder / "a.safetensors") as checkpoint:
        assert len(checkpoint.names()) == len(DTYPES)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_configurations_that_are_no_json_objects_are_refused(tmp_path, text):
    folder = write_folder(tmp_path / "model", arrays())
    (folder / "config.json").write_text(text)
    refusal(folder, str(folder / "config.json"), "configuration", "download it again")
    (folder / "config.json").unlink()
    refusal(folder / "model.safetensors", str(folder / "config.json"), "is missing")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    refusal(tmp_path / "nowhere", "nothing is there", ".gguf")
    refusal(tmp_path, "an empty folder", "config.json")
    (tmp_path / "notes.txt").write_text("x")
    refusal(tmp_path, "notes.txt")
    refusal(tmp_path / "notes.txt", "no checkpoint")
    (tmp_path / "b.gguf").write_bytes(b"")
    refusal(tmp_path, "name one", "b.gguf")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / name):
        refusal(source, name, "runs whatever code", "safe_serialization=True")


def test_a_tensor_of_another_shape_than_the_header_promised_is_refused(tmp_path):
    with open_checkpoint(write_folder(tmp_path / "model", arrays())) as checkpoint:
        checkpoint._load = lambda name: np.zeros(3)
        with pytest.raises(CheckpointError, match="the header promised"):
            checkpoint.read("layer.int8.weight")


def turn(vector, angles, pairs):
    """Each pair of coordinates turned by its angle: rotary positions from their definition."""
    turned = vector.copy()
    for angle, (first, second) in zip(angles, pairs, strict=True):
        turned[first] = vector[first] * np.cos(angle) - vector[second] * np.sin(angle)
        turned[second] = vector[first] * np.sin(angle) + vector[second] * np.cos(angle)
    return turned


@pytest.mark.parametrize("heads", [1, 3])
def test_rotary_layouts_give_the_same_attention(heads):
    rng = np.random.default_rng(1)
    size, width = 8, 5
    interleaved = [(2 * i, 2 * i + 1) for i in range(size // 2)]
    halves = [(i, i + size // 2) for i in range(size // 2)]
    angles = 100.0 ** (-np.arange(size // 2) / (size // 2))
    query, key = rng.normal(size=(2, heads * size, width))
    x, y = rng.normal(size=(2, width))

    def scores(query, key, pairs):
        split = [(weight @ vector).reshape(heads, size) for weight, vector in ((query, x), (key, y))]
        return [turn(q, 7 * angles, pairs) @ turn(k, 3 * angles, pairs) for q, k in zip(*split, strict=True)]

    expected = scores(query, key, interleaved)
    moved = unpermute_rotary(query, heads), unpermute_rotary(key, heads)
    np.testing.assert_allclose(scores(*moved, halves), expected, atol=1e-12)
    assert not np.allclose(scores(query, key, halves), expected, atol=1e-3)
    np.testing.assert_array_equal(interleaved_rotary(moved[0], heads), query)
    bias = np.arange(heads * size)
    np.testing.assert_array_equal(unpermute_rotary(bias[:, None], heads)[:, 0], unpermute_rotary(bias, heads))


def test_rotary_layout_refuses_odd_heads():
    with pytest.raises(InvalidArgument, match=r"\(6, 2\).*2 heads"):
        unpermute_rotary(np.zeros((6, 2)), 2)


def test_importing_loads_no_reader():
    heavy = "safetensors gguf tokenizers torch onnx"
    code = (
        "import sys, coupled_sampling.export.checkpoints\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
