"""SentencePiece's tokenizers, rebuilt: the tokens that its own rule gives, and SentencePiece itself where it is installed."""

import io
import itertools
import random

import pytest

from coupled_sampling.bundles import TextStream, Tokenizer
from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
from coupled_sampling.export.checkpoints.pieces import Pieces, piece_tokenizer
from coupled_sampling.export.checkpoints.sentencepiece_model import read_pieces
from standins import pieces

pytest.importorskip("tokenizers", reason="needs the extra [export]")

TEXTS = [
    "",
    " ",
    "the cat sat",
    " the  cat\tsat\n\n",
    "naïve 日本語 текст 😀👍🏽",
    "\x00\x01\x7f\r\n",
    "▁low ▁ lo",
    "aaaaaaa baaaab",
    "<0x41> is no byte",
    "\u200b\u202eabc\ufeff e\u0301 𐍈 \u3000x\u00a0y",
    *("x" + " " * count + "y" for count in range(1, 28)),
    *(" " * count for count in range(2, 28)),
]


def random_texts(count, parts="abceilnost  \n\té日本😀▁<>/|0", seed=0):
    chosen = random.Random(seed)
    return ["".join(chosen.choices(parts, k=chosen.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("space_before", [True, False])
@pytest.mark.parametrize("fallback", [True, False])
def test_tokens_are_those_of_the_rule(space_before, fallback):
    columns = pieces.vocabulary(fallback=fallback)
    more = {} if space_before else {"add_space_prefix": False}
    tokenizer = gguf_tokenizer(pieces.metadata(*columns, **more))
    for text in [*TEXTS, *random_texts(400)]:
        expected = pieces.encode(text, *columns, space_before=space_before)
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
        if fallback:
            assert tokenizer.decode(expected) == text.replace("▁", " ")


def test_a_text_begins_and_ends_as_the_file_says_or_llama_cpp_takes_it():
    columns = pieces.vocabulary()
    silent = gguf_tokenizer(pieces.metadata(*columns))
    assert silent.encode("the cat").tokens == ["<s>", "▁the", "▁cat"]
    both = gguf_tokenizer(pieces.metadata(*columns, add_eos_token=True))
    assert both.encode("the").tokens == ["<s>", "▁the", "</s>"]
    assert both.decode(both.encode("the cat").ids) == "the cat"
    other = gguf_tokenizer(pieces.metadata(*columns, bos_token_id=2))
    assert other.encode("the").tokens == ["</s>", "▁the"]
    without = pieces.metadata(*columns)
    del without["tokenizer.ggml.bos_token_id"]
    assert gguf_tokenizer(without).encode("the").tokens == ["<s>", "▁the"]
    assert gguf_tokenizer(without | {"tokenizer.ggml.add_bos_token": False}).encode("the").tokens == ["▁the"]


def test_a_text_goes_on_behind_a_marker_as_it_begins():
    """As in llama.cpp, and in the tokenizer.json of the models' makers: every part between markers is cut for itself."""
    columns = pieces.vocabulary(added=["<|user|>", "▁two▁words"])
    for space_before in (True, False):
        tokenizer = gguf_tokenizer(pieces.metadata(*columns, add_space_prefix=space_before))

        def part(text, space_before=space_before):
            return pieces.encode(text, *columns, space_before=space_before)

        token = columns[0].index("<|user|>")
        expected = [1, *part("the cat"), token, *part("sat"), 2, *part(" low")]
        assert tokenizer.encode("<s>the cat<|user|>sat</s> low", add_special_tokens=False).ids == expected
        words = columns[0].index("▁two▁words")
        found = tokenizer.encode("the two words the", add_special_tokens=False).ids
        assert found == [*part("the"), words, *part(" the")]
        assert "<|user|>" in tokenizer.decode(expected)
        assert "<s>" not in tokenizer.decode(expected)


def test_a_stream_shows_what_decoding_at_once_does(tmp_path):
    (tmp_path / "tokenizer.json").write_text(gguf_tokenizer(pieces.metadata(*pieces.vocabulary(["<|user|>"]))).to_str())
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    for text in [*TEXTS[1:], *random_texts(100), "a<|user|>b<s> c"]:
        tokens = tokenizer.encode(text)
        stream = TextStream(tokenizer)
        assert "".join(stream.feed([token]) for token in tokens) + stream.finish() == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scores": [0.0]}, "1 scores"),
        ({"tokens": ["a"] * 3, "scores": [0.0] * 3, "token_type": [1] * 3}, "3 pieces, 1 of them different"),
        ({"tokens": ["a", "b", "ab"], "scores": [-1.0, -2.0, -0.5], "token_type": [1] * 3}, "unigram model"),
        (
            {"tokens": ["a", "b", "ab", "ba"], "scores": [-1.0, -2.0, 0.0, 0.0], "token_type": [1] * 4},
            "the score 0.0 for 'ab' and 'ba'",
        ),
        ({"tokens": ["a", "a" * 2000], "scores": [0.0, 1.0], "token_type": [1, 1]}, "a piece of 2000 letters"),
        ({"tokens": ["a", "b", "ab"], "scores": [-1.0, -2.0, float("inf")], "token_type": [1] * 3}, "the score inf"),
        (
            {"tokens": ["a:b", "$A:x", "c"], "scores": [-1.0] * 3, "token_type": [1] * 3},
            "cannot be what the tokenizer puts",
        ),
        ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap is set"),
        ({"bos_token_id": 5000}, "bos_token_id is 5000"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'"),
        ({"scores": ["x"] * 3}, "expected a list of float"),
    ],
)
def test_what_is_no_order_of_merges_is_refused_with_the_way_out(change, word):
    with pytest.raises(CheckpointError) as caught:
        gguf_tokenizer(pieces.metadata(*pieces.vocabulary()) | {f"tokenizer.ggml.{k}": v for k, v in change.items()})
    assert word in str(caught.value)
    assert "--tokenizer" in str(caught.value) or "convert the model again" in str(caught.value)


def test_a_file_of_sentencepiece_is_read_without_it():
    columns = pieces.vocabulary()
    found = read_pieces(pieces.model_file(*columns), "x")
    assert [list(found.texts), list(found.scores), list(found.kinds)] == columns
    assert (found.space_before, found.begin, found.end) == (True, 1, None)
    settings = {"add_bos_token": False, "add_eos_token": True}
    assert read_pieces(pieces.model_file(*columns), "x", settings).end == 2
    assert read_pieces(pieces.model_file(*columns), "x", settings).begin is None
    assert read_pieces(pieces.model_file(*columns, trainer={41: -1}), "x").begin is None
    assert read_pieces(pieces.model_file(*columns, trainer={41: 2}), "x").begin == 2
    bare = piece_tokenizer(read_pieces(pieces.model_file(*columns, normaliser={3: 0}), "x"))
    assert bare.encode("the", add_special_tokens=False).ids == pieces.encode("the", *columns, space_before=False)


@pytest.mark.parametrize(
    ("trainer", "normaliser", "word"),
    [
        ({3: 1}, {}, "is a unigram model, expected bpe"),
        ({}, {2: b"map"}, "changes characters of a text"),
    ],
)
def test_other_models_of_sentencepiece_are_refused_by_what_they_do(trainer, normaliser, word):
    with pytest.raises(CheckpointError, match=word):
        read_pieces(pieces.model_file(*pieces.vocabulary(), trainer=trainer, normaliser=normaliser), "x")


def test_damaged_files_are_refused_without_a_word_of_them():
    data = pieces.model_file(*pieces.vocabulary())
    cut = [data[:length] for length in range(1, len(data), 97)]
    for damaged in (b"secret", b"", b"\n\x06\n\x04\xff\xff\xff\xff", *cut):
        try:
            read_pieces(damaged, "x")
        except CheckpointError as error:
            assert "secret" not in str(error)  # noqa: PT017 - some beginnings are whole messages
    with pytest.raises(CheckpointError, match="x is no tokenizer"):
        read_pieces(b"secret", "x")


def trained(**settings):
    """A model of the package ``sentencepiece``, as Llama's are trained."""
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    corpus = ["the cat sat on the mat, and the dog ran home.", "naïve 日本語 текст 😀", "    def f(x):\n\treturn 12 x"]
    made = io.BytesIO()
    usual = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "normalization_rule_name": "identity"}
    usual |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "hard_vocab_limit": False}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus, *random_texts(60, "the cat  x", 1)] * 3),
        model_writer=made,
        minloglevel=2,
        **{**usual, **settings},
    )
    return made.getvalue(), spm.SentencePieceProcessor(model_proto=made.getvalue())


def test_several_spaces_count_as_one_where_the_file_says_so():
    columns = pieces.vocabulary()
    in_gguf = gguf_tokenizer(pieces.metadata(*columns, remove_extra_whitespaces=True, add_bos_token=False))
    in_a_file = piece_tokenizer(
        read_pieces(pieces.model_file(*columns, normaliser={4: 1}), "x", {"add_bos_token": False})
    )
    for text, same in {"  the   cat \n x ": "the cat \n x", "   ": "", "\n the\n  ": "\n the\n", "sat▁": "sat"}.items():
        expected = pieces.encode(same, *columns)
        assert in_gguf.encode(text).ids == in_a_file.encode(text).ids == expected, text


@pytest.mark.parametrize("vocab_size", ["given", "more"])
def test_pieces_of_endless_letters_are_refused(monkeypatch, vocab_size):
    columns = pieces.vocabulary()
    letters = sum(len(text) for text, kind in zip(columns[0], columns[2], strict=True) if kind == pieces.NORMAL)
    monkeypatch.setattr("coupled_sampling.export.checkpoints.pieces._MOST_LETTERS", letters - (vocab_size == "more"))
    if vocab_size == "more":
        with pytest.raises(CheckpointError, match="letters in its pieces"):
            gguf_tokenizer(pieces.metadata(*columns))
    else:
        gguf_tokenizer(pieces.metadata(*columns))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "vocab_size": 120},
        {"remove_extra_whitespaces": True},
        {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
    ],
)
def test_tokens_are_those_of_sentencepiece(settings):
    data, theirs = trained(**settings)
    kinds = [(theirs.is_unknown, 2), (theirs.is_control, 3), (theirs.is_unused, 5), (theirs.is_byte, 6)]
    numbers = range(theirs.get_piece_size())
    columns = (
        [theirs.id_to_piece(i) for i in numbers],
        [theirs.get_score(i) for i in numbers],
        [next((kind for test, kind in kinds if test(i)), 1) for i in numbers],
    )
    keys = {"add_bos_token": False, "add_space_prefix": settings.get("add_dummy_prefix", True)}
    keys["remove_extra_whitespaces"] = settings.get("remove_extra_whitespaces", False)
    in_gguf = gguf_tokenizer(pieces.metadata(*columns, **keys))
    in_a_file = piece_tokenizer(read_pieces(data, "x", keys))
    for text in [*TEXTS, *random_texts(400), *random_texts(200, "the cat  ", 2)]:
        expected = theirs.encode(text)
        assert in_gguf.encode(text).ids == expected, text
        assert in_a_file.encode(text).ids == expected, text
        # SentencePiece writes the unknown as a question mark, others not at all; where it squeezes, it takes every leading space
        # away, which only the letter that stands for one can make.
        if 0 not in expected and not (keys["remove_extra_whitespaces"] and text.startswith("▁")):
            assert in_gguf.decode(expected) == theirs.decode(expected)


def test_words_of_its_own_are_found_as_sentencepiece_finds_them():
    data, theirs = trained(user_defined_symbols=["<|user|>"], add_dummy_prefix=False)
    tokenizer = piece_tokenizer(read_pieces(data, "x", {"add_bos_token": False}))
    for text in [
        "<|user|>the cat<|user|><|user|> x",
        *("<|user|>".join(pair) for pair in itertools.pairwise(TEXTS)),
    ]:
        assert tokenizer.encode(text).ids == theirs.encode(text)
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def test_pieces_that_are_not_used_make_no_merges():
    made = piece_tokenizer(Pieces("x", ["<unk>", "a", "b", "ab"], [0, -1, -2, -3], [2, 1, 1, 5], space_before=False))
    assert made.encode("ab").tokens == ["a", "b"]
