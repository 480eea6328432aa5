"""The tokenizer in a GGUF file: texts come back whole, and rules that are not known are refused."""

import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")
quants = pytest.importorskip("gguf.quants")


def printable(text):
    """GPT-2's alphabet: bytes that print stand for themselves, the others follow from 256 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return "".join(chr(byte) if byte in kept else chr(256 + others.index(byte)) for byte in text.encode("latin-1"))


def tokenizer_metadata(pre="smollm"):
    alphabet = [printable(chr(byte)) for byte in range(256)]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ h", "1 2"]
    tokens = ["<end>", "<user>", *alphabet, *(pair.replace(" ", "") for pair in merges), "new word"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 3), 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }


TEXTS = ["hello hello", "12 2024", "naïve 日本 😀\n\n\t x", " <user>hello<end>", "a new word", "١٢ ½", "it's WE'LL"]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_a_tokenizer_round_trips(pre):
    pytest.importorskip("tokenizers", reason="needs the extra [export]")
    metadata = tokenizer_metadata(pre)
    tokenizer, tokens = gguf_tokenizer(metadata), metadata["tokenizer.ggml.tokens"]
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        assert [tokens[i] for i in encoded.ids] == encoded.tokens
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.encode("hello<user>new word").tokens == ["hello", "<user>", "new word"]
    assert tokenizer.decode(tokenizer.encode("<user>hello").ids) == "hello"
    apart = {"smollm", "qwen2"}
    assert tokenizer.encode("12").tokens == (["1", "2"] if pre in apart else ["12"])


def test_a_tokenizer_begins_texts_where_the_file_says_so():
    pytest.importorskip("tokenizers", reason="needs the extra [export]")
    metadata = tokenizer_metadata() | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}
    assert gguf_tokenizer(metadata).encode("h").tokens == ["<user>", "h"]
    assert gguf_tokenizer(metadata).encode("h", add_special_tokens=False).tokens == ["h"]
    metadata["tokenizer.ggml.add_bos_token"] = False
    assert gguf_tokenizer(metadata).encode("h").tokens == ["h"]


def test_a_tokenizer_ends_texts_where_the_file_says_so():
    pytest.importorskip("tokenizers", reason="needs the extra [export]")
    metadata = tokenizer_metadata() | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_eos_token": True}
    assert gguf_tokenizer(metadata).encode("h").tokens == ["h", "<end>"]
    metadata |= {"tokenizer.ggml.add_bos_token": True}
    assert gguf_tokenizer(metadata).encode("h").tokens == ["<user>", "h", "<end>"]
    assert gguf_tokenizer(metadata).encode("h", "h").tokens == ["<user>", "h", "<end>", "h", "<end>"]
    with pytest.raises(CheckpointError, match=r"bos_token_id is 5000, expected a token in \[0, "):
        gguf_tokenizer(metadata | {"tokenizer.ggml.bos_token_id": 5000})


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("tokenizer.ggml.model", "t5", "'t5'"),
        ("tokenizer.ggml.model", "llama", "0 scores"),
        ("tokenizer.ggml.merges", "h e", "expected a list of str"),
        ("tokenizer.ggml.pre", "viking", "'viking', expected one of gpt-2, smollm"),
        ("tokenizer.ggml.tokens", ["a", "a"], "2 entries and 1 different"),
        ("tokenizer.ggml.merges", ["h q"], "'h q'"),
    ],
)
def test_other_tokenizers_are_refused_by_name(key, value, word):
    pytest.importorskip("tokenizers", reason="needs the extra [export]")
    with pytest.raises(CheckpointError) as caught:
        gguf_tokenizer(tokenizer_metadata() | {key: value})
    assert word in str(caught.value)
