"""Prompts that are text: the special tokens that the tokenizer itself puts before one, once, and nothing behind it."""

import json
import os

import numpy as np
import pytest

from coupled_sampling.bundles import Tokenizer, text
from coupled_sampling.bundles.json_files import SmallFile
from coupled_sampling.errors import BundleError, InvalidArgument
from standins.tokenizers_of_text import KINDS, begins_and_ends

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [text]")


def saved(inner, tmp_path):
    inner.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_as_the_tokenizer_says_and_does_not_end(kind, tmp_path):
    inner = begins_and_ends(KINDS[kind]())
    tokenizer = saved(inner, tmp_path)
    ids = inner.encode("the cat sat").ids
    begin, end = inner.token_to_id("<s>"), inner.token_to_id("</s>")
    assert (ids[0], ids[-1]) == (begin, end)
    assert tokenizer.encode("the cat sat") == ids[:-1]
    assert tokenizer.encode("the cat sat", special_tokens=False) == ids[1:-1]
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == inner.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_post_processor_nothing_is_added(kind, tmp_path):
    inner = KINDS[kind]()
    assert saved(inner, tmp_path).encode("the cat sat") == inner.encode("the cat sat").ids


def test_every_kind_of_post_processor_is_followed(tmp_path):
    made = tokenizers.processors
    for processor in (
        made.BertProcessing(("</s>", 2), ("<s>", 1)),
        made.RobertaProcessing(("</s>", 2), ("<s>", 1)),
        made.Sequence(
            [made.ByteLevel(), made.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])]
        ),
    ):
        inner = tokenizers.Tokenizer.from_str(KINDS["words"]().to_str())
        inner.post_processor = processor
        assert saved(inner, tmp_path).encode("the cat") == [1, 4, 5]


def test_several_tokens_before_a_text_are_put_there_once(tmp_path):
    inner = tokenizers.Tokenizer.from_str(KINDS["words"]().to_str())
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_end|> <s> $A </s>", special_tokens=[("<|im_end|>", 3), ("<s>", 1), ("</s>", 2)]
    )
    tokenizer = saved(inner, tmp_path)
    assert tokenizer.encode("the") == [3, 1, 4]
    assert tokenizer.encode("<|im_end|> <s> the") == [3, 1, 4]  # written out by the user
    assert tokenizer.encode("<s> the") == [3, 1, 1, 4]  # which is not the beginning
    assert tokenizer.encode("the </s>") == [3, 1, 4, 2]  # an end that was written is kept


def test_an_empty_text_is_a_prompt_where_texts_have_a_beginning(tmp_path):
    assert saved(begins_and_ends(KINDS["byte_level"]()), tmp_path).encode("") == [0]
    with pytest.raises(InvalidArgument, match="expected a text of at least one token"):
        saved(KINDS["byte_level"](), tmp_path).encode("")


def test_truncation_and_padding_for_training_are_not_done(tmp_path):
    inner = begins_and_ends(KINDS["words"]())
    inner.enable_truncation(max_length=4)
    inner.enable_padding(length=9, pad_id=0, pad_token="<unk>")
    assert saved(inner, tmp_path).encode("the cat sat on the cat") == [1, 4, 5, 6, 7, 4, 5]


def test_what_is_no_text_is_refused(tmp_path):
    tokenizer = saved(KINDS["byte_level"](), tmp_path)
    for wrong in (None, b"the", 3):
        with pytest.raises(InvalidArgument, match="expected a text"):
            tokenizer.encode(wrong)
    with pytest.raises(InvalidArgument, match=r"is no text.*UTF-8"):
        tokenizer.encode("the \udcff")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(BundleError, match="no file of the tokenizers library"):
        Tokenizer(tmp_path / "broken.json")


def test_which_tokens_have_a_text(tmp_path):
    tokenizer = saved(KINDS["sentencepiece"](), tmp_path)
    assert dict(tokenizer.special_tokens) == {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<|im_end|>"}
    assert [tokenizer.shows(token) for token in (0, 1, 4, np.int64(5), 100_000)] == [False, False, True, True, False]
    assert [tokenizer.is_byte(token) for token in (3, 4, 259, 260)] == [False, True, True, False]


def test_what_makes_the_library_panic_is_refused_and_nothing_else_is_printed(tmp_path, capfd):
    """A panic of Rust is no `Exception`, and writes pages to standard error by itself."""
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]], "continuing_subword_prefix": "##"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(BundleError, match=r"tokenizer\.json is no file of the tokenizers library"):
        Tokenizer(tmp_path / "tokenizer.json")
    assert capfd.readouterr() == ("", "")


def test_standard_error_is_itself_again(tmp_path, capfd):
    saved(KINDS["byte_level"](), tmp_path)
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


EMPTIES = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}


@pytest.mark.parametrize(
    ("part", "panicking"),
    [
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
        (
            "decoder",
            {"type": "Sequence", "decoders": [EMPTIES, {"type": "Strip", "content": " ", "start": 0, "stop": 5}]},
        ),
    ],
)
def test_a_tokenizer_that_panics_when_it_is_used_is_refused_when_it_is_opened(part, panicking, tmp_path):
    saved(KINDS["byte_level"](), tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document[part] = panicking
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="tokenizers library"):
        Tokenizer(path)


def test_a_vocabulary_may_lack_what_the_trial_has(tmp_path):
    saved(tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0), ("b", -1.0)])), tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(BundleError, match="cannot encode a text"):
        tokenizer.encode("c")


def test_a_token_of_thousands_of_millions_is_refused(tmp_path):
    """The library would count up to it when it writes the vocabulary down, and keep what it did not find."""
    model = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 2**22 - 1}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    Tokenizer(tmp_path / "tokenizer.json")
    model["vocab"]["b"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(BundleError, match="has the token 4294967295, expected tokens below 4194304"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_may_be_as_large_as_its_kind(tmp_path, monkeypatch):
    saved(KINDS["byte_level"](), tmp_path)
    path = tmp_path / "tokenizer.json"
    size = path.stat().st_size
    monkeypatch.setattr(text, "TOKENIZER", SmallFile("a tokenizer", size))
    Tokenizer(path)
    monkeypatch.setattr(text, "TOKENIZER", SmallFile("a tokenizer", size - 1))
    with pytest.raises(BundleError, match=f"{size} bytes of tokenizer, and {size - 1} are the most"):
        Tokenizer(path)


def test_pairs_that_end_the_process_are_refused_before_the_library_sees_them(tmp_path):
    saved(KINDS["byte_level"](), tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["continuing_subword_prefix"] = "x"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="tokenizers library"):
        Tokenizer(path)
