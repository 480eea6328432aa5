"""Small tokenizers of the kinds that language models have, and the text of tokens by decoding all of them at once."""

import functools

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [text]")
decoders, models, normalizers = tokenizers.decoders, tokenizers.models, tokenizers.normalizers
pre_tokenizers, processors, trainers = tokenizers.pre_tokenizers, tokenizers.processors, tokenizers.trainers

CORPUS = [
    "the cat sat on the mat, the dog ran home.",
    "naïve 日本語 текст 😀👍🏽 — ½",
    "one\ntwo\n\nthree  END end. stop! stop?",
] * 3
SPECIAL = ["<s>", "</s>", "<|im_end|>"]


def byte_level():
    """GPT-2's and Llama 3's: bytes as letters, so that tokens cut characters in pieces."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def sentencepiece():
    """Llama 2's and Mistral's: spaces are letters, unknown characters are bytes, the first space is none."""
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set("".join(CORPUS).replace(" ", "▁")) - set("日😀👍\n"))
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("▁", "▁"),
        ("a", "t"),
        ("▁", "s"),
        ("E", "N"),
        ("EN", "D"),
        ("▁", "E"),
    ]
    words = dict.fromkeys([*pieces, *letters, *("".join(pair) for pair in merges)])
    made = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", *SPECIAL])
    return made


def metaspace():
    """T5's and Gemma's older files: one rule for spaces."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
        ),
    )
    return made


def wordpiece():
    """BERT's: words, and pieces that go on."""
    words = [
        "[UNK]",
        *SPECIAL,
        "the",
        "cat",
        "##s",
        "sat",
        ".",
        "do",
        "##n",
        "'",
        "##t",
        "END",
        "E",
        "##ND",
        "stop",
        "!",
    ]
    made = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(SPECIAL)
    return made


def words():
    """No decoder at all: tokens with spaces between them."""
    names = ["<unk>", *SPECIAL, "the", "cat", "sat", "on", "END", "E", "ND"]
    made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    return made


KINDS = {made.__name__: functools.cache(made) for made in (byte_level, sentencepiece, metaspace, wordpiece, words)}


def begins_and_ends(inner):
    """The same tokenizer with a post-processor that begins texts with ``<s>`` and ends them with ``</s>``."""
    copy = tokenizers.Tokenizer.from_str(inner.to_str())
    marks = [(name, copy.token_to_id(name)) for name in ("<s>", "</s>")]
    copy.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=marks
    )
    return copy


def text_at_once(inner, tokens, stop=(), after=()):
    """By decoding everything at every token: the text, how many tokens it takes, and the stop string that ended it."""
    begin = len(inner.decode(list(after)).rstrip("\ufffd"))
    for n in range(1, len(tokens) + 1):
        text = inner.decode([*after, *tokens[:n]])[begin:]
        found = [(text.find(string), string) for string in stop if string in text]
        special = inner.id_to_token(tokens[n - 1])
        if found:
            at, string = min(found)
            return text[:at], n, string
        if special in stop and special in SPECIAL:
            return text, n, special
    return inner.decode([*after, *tokens])[begin:], len(tokens), None
