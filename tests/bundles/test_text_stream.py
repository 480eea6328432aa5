"""Text while it is made: the same as decoding all tokens at once, whatever the commits; stop strings end it, and nothing of them shows."""

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra [text]")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, Request
from coupled_sampling.bundles import StopStrings, TextStream, Tokenizer
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from standins.tokenizers_of_text import KINDS, SPECIAL, text_at_once


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Every kind of tokenizer, from a file as a bundle has it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for name, made in KINDS.items():
        made().save(str(folder / f"{name}.json"))
        found[name] = Tokenizer(folder / f"{name}.json")
    return found


@st.composite
def sequences(draw, kind):
    """Tokens of texts, of pieces of them, and any at all: characters in pieces, special tokens, tokens without a text."""
    inner = KINDS[kind]()
    some = st.integers(0, inner.get_vocab_size() + 1)  # a model's vocabulary may be larger than its tokenizer's
    texts = st.text("thecatsEND .\n!日本語😀👍½é▁", max_size=8).map(lambda text: inner.encode(text).ids)
    parts = draw(st.lists(st.one_of(texts, st.lists(some, max_size=5)), max_size=6))
    return [token for part in parts for token in part]


@st.composite
def cases(draw, kind):
    """A kind's tokens, what they go on from, stop strings that are often in their text, and a way to split them."""
    inner, tokens = KINDS[kind](), draw(sequences(kind))
    after = draw(st.one_of(st.just([]), sequences(kind)))
    text = inner.decode(tokens).replace("\ufffd", "")
    cuts = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda cut: text[cut[0] : cut[0] + cut[1]])
    some = st.one_of(cuts, st.sampled_from(["END", "\n\n", "日本", " the", *SPECIAL]))
    stop = [
        string for string in draw(st.lists(some, max_size=3)) if string and (string in SPECIAL or "<" not in string)
    ]
    ends = sorted({end for end in draw(st.sets(st.integers(1, 30), max_size=5)) if end < len(tokens)} | {len(tokens)})
    return tokens, after, stop, ends


def split(tokens, ends):
    return [tokens[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_text_of_all_tokens_up_to_the_stop(opened, kind, data):
    tokens, after, stop, ends = data.draw(cases(kind))
    text, _, stopped = text_at_once(KINDS[kind](), tokens, stop, after)
    stream, shown = TextStream(opened[kind], stop, after), ""
    for part in split(tokens, ends):
        shown += stream.feed(part)
        assert text.startswith(shown), "what was shown is taken back"
    assert shown + stream.finish() == text
    assert stream.stopped == stopped


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_rule_keeps_the_tokens_that_complete_the_stop_string(opened, kind, data):
    tokens, after, stop, ends = data.draw(cases(kind))
    _, count, stopped = text_at_once(KINDS[kind](), tokens, stop, after)
    rule = StopStrings(opened[kind], stop, after)
    known = 0
    for end in ends:
        kept = rule(np.array(tokens[:end], np.int64), end - known)
        if kept is not None:
            assert (kept, stopped is not None) == (count, True)
            return
        known = end
    assert stopped is None
