"""Text while it is made: as by decoding all tokens at once, whatever the commits; stop strings end it and never show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, Request
from coupled_sampling.bundles import StopStrings, TextStream, Tokenizer
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import (
    RationalProvider,
    TableProvider,
    autoregressive_law,
    exact_law,
    random_table,
    rational_table,
    total_variation,
)
from standins.tokenizers_of_text import KINDS, SPECIAL, text_at_once

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [text]")


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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=40, deadline=None)
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


def characters(tmp_path):
    """Three tokens: the two bytes of a character, and a letter."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"Ã": 0, "©": 1, "a": 2}, []))
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.save(str(tmp_path / "characters.json"))
    return Tokenizer(tmp_path / "characters.json"), inner


def generated(model, request, *, noise=None, **decoder):
    """All tokens of all samples, and why they ended."""
    loop = Decoder(model, noise=noise, **decoder)
    loop.add(request)
    tokens, reasons = {}, {}
    while loop.active or loop.waiting:
        for commit in loop.step():
            tokens.setdefault(commit.handle, []).extend(commit.tokens.tolist())
            reasons[commit.handle] = commit.reason
    return [tuple(tokens[handle]) for handle in sorted(tokens)], [reasons[handle] for handle in sorted(reasons)]


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match", "speculative"])
def test_the_law_is_that_of_sampling_until_the_stop_string(method, tmp_path):
    """By enumeration: whole sequences cut where decoding them at once has the stop string, against the decoder's own."""
    tokenizer, inner = characters(tmp_path)
    for stop, prompt in ((["é"], [2]), (["aa"], [2]), (["a", "é"], [0])):
        rule, table = StopStrings(tokenizer, stop, prompt), rational_table(1, 3)
        expected = {}
        for tokens, probability in autoregressive_law(table, prompt, 3).items():
            kept = tokens[: text_at_once(inner, tokens, stop, prompt)[1]]
            expected[kept] = expected.get(kept, 0) + probability

        def run(noise, rule=rule, prompt=prompt, table=table):
            request = Request(prompt, 3, stop_rule=rule)
            model = RationalProvider(table, 3)
            return generated(model, request, noise=noise, method=method, window=3, drafting=Repeat(fill=0))[0][0]

        law = exact_law(run, arithmetic="rational")
        assert total_variation(law, expected) == 0
        assert len(expected) < 27, "no sequence was cut"


@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_samples_of_one_request_end_each_at_its_own_stop_string(opened, method):
    inner, tokenizer = KINDS["words"](), opened["words"]
    model = TableProvider(random_table(0, inner.get_vocab_size()), inner.get_vocab_size(), batch_size=2)
    prompt, stop = [4, 5], ["the cat", "END"]
    rule = StopStrings(tokenizer, stop, prompt)
    request = Request(prompt, 40, samples=4, stop_rule=rule)
    every, reasons = generated(model, request, method=method, window=6, drafting="repeat")
    whole, _ = generated(model, Request(prompt, 40, samples=4), method="ar", window=1)
    ends = set()
    for tokens, reason, full in zip(every, reasons, whole, strict=True):
        _, count, stopped = text_at_once(inner, tokens, stop, prompt)
        assert (count, reason) == (len(tokens), "stop" if stopped else "length")
        ends.add(count)
        if method == "scd-match":
            assert tokens == full[: text_at_once(inner, full, stop, prompt)[1]]
    assert len(ends) > 1, "all ended at once"


def test_a_stop_string_that_is_a_special_token_is_that_token(opened):
    tokenizer, token = opened["words"], KINDS["words"]().token_to_id("<|im_end|>")
    stream = TextStream(tokenizer, ["<|im_end|>"])
    assert stream.feed([4, 5, token, 6]) + stream.finish() == "the cat"
    assert stream.stopped == "<|im_end|>"
    assert StopStrings(tokenizer, ["<|im_end|>"])(np.array([4, token, 5, token]), 3) == 2


def test_a_long_text_is_told_as_it_comes_and_costs_the_same_per_token(opened, monkeypatch):
    """Tokens that are decoded for a token do not grow with the text."""
    inner, tokenizer = KINDS["byte_level"](), opened["byte_level"]
    tokens = inner.encode("the cat sat on the mat 日本語 😀. " * 60).ids
    decode, widths = Tokenizer.decode, []

    def counted(self, ids):
        widths.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    stream, rule = TextStream(tokenizer, ["nowhere to be found"]), StopStrings(tokenizer, ["nowhere to be found"])
    shown = ""
    for n, token in enumerate(tokens, start=1):
        shown += stream.feed([token])
        assert rule(np.array(tokens[:n]), 1) is None
    assert shown + stream.finish() == inner.decode(tokens)
    assert max(widths) < 20
    assert len(widths) < 100 * len(tokens)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "metaspace"])
def test_a_long_stop_string_is_found_however_slowly_it_comes(opened, kind):
    inner, tokenizer = KINDS[kind](), opened[kind]
    tokens = inner.encode("the mat, the dog ran home. the cat sat on the mat, the dog ran home. END").ids
    stop = "the cat sat on the mat, the dog ran home."
    _, count, stopped = text_at_once(inner, tokens, [stop])
    assert stopped == stop
    rule = StopStrings(tokenizer, [stop])
    assert [rule(np.array(tokens[:n]), 1) for n in range(1, count + 1)] == [None] * (count - 1) + [count]


def test_what_may_begin_a_stop_string_waits_and_is_shown_when_it_does_not(opened):
    tokenizer = opened["byte_level"]
    stream = TextStream(tokenizer, ["stop!"])

    def told(text):
        return stream.feed(KINDS["byte_level"]().encode(text).ids)

    assert [told("don't "), told("st"), told("o"), told("at")] == ["don't ", "", "", "stoat"]
    assert [told(" sto"), told("stop"), stream.finish()] == [" ", "sto", "stop"]
    assert stream.stopped is None


def test_what_is_no_stop_string_is_refused(opened):
    tokenizer = opened["words"]
    for wrong, words in (
        ("END", "expected a sequence of texts"),
        ([""], "at least one character"),
        ([3], "at least one character"),
        (["a\ufffd"], "without U.FFFD"),
        (["END</s>"], "holds the special token '</s>'"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            StopStrings(tokenizer, wrong)
        with pytest.raises(InvalidArgument, match=words):
            TextStream(tokenizer, wrong)


def test_an_interrupted_text_ends_where_it_would_have_ended(opened):
    """What was there before the new tokens did not end it; an end across the border does."""
    rule = StopStrings(opened["words"], ["cat sat"])
    assert rule(np.array([4, 5, 6]), 1) == 3
    assert rule(np.array([4, 5, 6, 4]), 1) is None
