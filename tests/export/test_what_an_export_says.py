"""What an export says beside that it is done: what was checked of the tokenizer, and what is not as everybody expects."""

import json

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import Tokenizer
from coupled_sampling.cli import main
from coupled_sampling.errors import CheckpointError
from coupled_sampling.export import CheckedText
from coupled_sampling.export.check_text import check_text
from coupled_sampling.export.checkpoints import open_checkpoint
from standins import pieces
from standins.text_bundles import write_text_checkpoint
from standins.tokenizers_of_text import KINDS, begins_and_ends

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [export]")
gguf = pytest.importorskip("gguf", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [cpu]")


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def write_gguf(path, metadata, vocab_size, architecture="llama", **more):
    """A small Llama in a file as llama.cpp's converter writes it."""
    width = 16
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": width, "feed_forward_length": width}
    sizes |= {
        "attention.head_count": 2,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 8,
        "vocab_size": vocab_size,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in {**metadata, **more}.items():
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds[list] = writer.add_array
        kinds[type(value)](key, value)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (vocab_size, width), "output": (vocab_size, width), "output_norm": (width,)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (width, width) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.4, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def columns():
    return pieces.vocabulary(["<|user|>"])


def test_a_gguf_file_with_sentencepiece_becomes_a_bundle_that_writes_text(tmp_path, capsys, columns):
    path = write_gguf(tmp_path / "a.gguf", pieces.metadata(*columns, add_bos_token=True), len(columns[0]))
    code, told = run(capsys, "export", path, tmp_path / "bundle", "--check")
    assert code == 0, told.err
    assert "6 of 6 texts come back from their tokens as they were, and a prompt begins after <s>" in told.out
    assert told.err == ""
    trace = tmp_path / "trace.json"
    code, told = run(
        capsys,
        "generate",
        tmp_path / "bundle",
        "--prompt",
        "the cat sat",
        "--length",
        8,
        "--trace",
        trace,
        "--method",
        "ar",
    )
    assert code == 0, told.err
    (sequence,) = json.loads(trace.read_text())["sequences"]
    assert sequence["prompt"] == [1, *pieces.encode("the cat sat", *columns)]
    inner = open_bundle(tmp_path / "bundle").tokenizer()
    text = inner.decode([*sequence["prompt"], *sequence["tokens"]])
    assert text == "the cat sat" + told.out[: len(text) - len("the cat sat")]


def test_a_checkpoint_without_a_tokenizer_says_what_that_means(tmp_path, capsys):
    source = write_text_checkpoint(tmp_path / "a", vocab_size=len(KINDS["words"]().get_vocab()))
    code, told = run(capsys, "export", source, tmp_path / "bundle", "--check", "--json")
    assert code == 0
    assert "has no tokenizer" in told.err
    assert "--tokens" in told.err
    assert "--tokenizer FILE" in told.err
    done = json.loads(told.out)
    assert (done["text"], len(done["notes"])) == (None, 1)
    KINDS["words"]().save(str(tmp_path / "other.json"))
    code, told = run(
        capsys, "export", source, tmp_path / "with", "--tokenizer", tmp_path / "other.json", "--check", "--json"
    )
    assert (code, told.err) == (0, "")
    done = json.loads(told.out)
    assert done["text"]["texts"] == 6
    assert done["notes"] == []
    assert open_bundle(tmp_path / "with").tokenizer().encode("the cat") == [4, 5]


def test_a_gguf_tokenizer_that_cannot_be_built_can_be_replaced(tmp_path, capsys, columns):
    metadata = pieces.metadata(*columns) | {"tokenizer.ggml.model": "t5"}
    path = write_gguf(tmp_path / "a.gguf", metadata, len(columns[0]))
    code, told = run(capsys, "export", path, tmp_path / "bundle")
    assert code == 2
    assert "--tokenizer" in told.err
    (tmp_path / "x.model").write_bytes(pieces.model_file(*columns))
    code, told = run(capsys, "export", path, tmp_path / "bundle", "--tokenizer", tmp_path / "x.model")
    assert (code, told.err) == (0, "")
    assert open_bundle(tmp_path / "bundle").tokenizer().encode("the cat") == [1, *pieces.encode("the cat", *columns)]
    code, told = run(capsys, "export", path, tmp_path / "without", "--tokenizer", "none")
    assert (code, told.err) == (0, "")
    assert open_bundle(tmp_path / "without").tokenizer() is None


def test_code_that_a_checkpoint_brings_is_named_as_not_run(tmp_path, capsys):
    config = {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    source = write_text_checkpoint(tmp_path / "a", KINDS["words"](), config=config)
    code, told = run(capsys, "export", source, tmp_path / "bundle")
    assert code == 0
    assert "auto_map in config.json), which is not run" in told.err
    source = write_text_checkpoint(tmp_path / "b", KINDS["words"](), config={"auto_map": None})
    assert run(capsys, "export", source, tmp_path / "other")[1].err == ""


def test_an_unknown_family_is_said_before_a_truncated_file(tmp_path, capsys, columns):
    source = write_text_checkpoint(tmp_path / "a", KINDS["words"](), config={"model_type": "mamba"})
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    code, told = run(capsys, "export", source, tmp_path / "bundle")
    assert code == 2
    assert "of no family that can be exported: model_type is 'mamba'" in told.err
    code, told = run(capsys, "export", source, tmp_path / "bundle", "--family", "llama")
    assert code == 2
    assert "truncated" in told.err
    for architecture, word in (("mamba", "general.architecture is 'mamba'"), ("llama", "truncated")):
        path = write_gguf(tmp_path / f"{architecture}.gguf", pieces.metadata(*columns), len(columns[0]), architecture)
        data = path.read_bytes()
        for length in (len(data) - 100, 200):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=word):
                open_checkpoint(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_tried_on_texts(tmp_path, kind):
    begins_and_ends(KINDS[kind]()).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    vocab_size = KINDS[kind]().get_vocab_size()
    found = check_text(tokenizer, vocab_size)
    assert (found.texts, found.before) == (6, ("<s>",))
    assert found.unchanged == {"byte_level": 6, "sentencepiece": 6}.get(kind, found.unchanged)
    assert found.unchanged < 6 or kind in ("byte_level", "sentencepiece")


class Wrong:
    """A tokenizer that makes some mistake."""

    def __init__(self, inner, **methods):
        self._inner = inner
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    KINDS["byte_level"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"makes the token \d+ of a text, but the model has 100 tokens"):
        check_text(tokenizer, 100)
    once = Wrong(tokenizer, decode=lambda tokens: tokenizer.decode(tokens) + "." * (len(tokens) > 5))
    with pytest.raises(CheckpointError, match="token by token, expected the same"):
        check_text(once, 1000)
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({"\x07": 0}, []))
    bare.save(str(tmp_path / "bare.json"))
    with pytest.raises(CheckpointError, match="makes no tokens of any text"):
        check_text(Wrong(Tokenizer(tmp_path / "bare.json"), decode=lambda tokens: "x"), 1)


def test_a_bundle_with_a_wrong_tokenizer_is_not_made_when_it_is_checked(tmp_path, capsys):
    source = write_text_checkpoint(tmp_path / "a", KINDS["byte_level"](), vocab_size=100)
    code, told = run(capsys, "export", source, tmp_path / "bundle", "--check")
    assert code == 2
    assert "another model's" in told.err
    assert not (tmp_path / "bundle").exists()
    assert CheckedText(6, 6, ()).unchanged == 6
