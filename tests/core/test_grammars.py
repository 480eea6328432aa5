"""Structured output: the engine's masks against oracles in Python, and what is decoded under them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import METHODS, Decoder, Request, Sampling, generate
from coupled_sampling.bundles import Tokenizer
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.grammars import Grammar, GrammarDrafts
from coupled_sampling.testing import TableProvider, random_table
from standins.grammar_worlds import (
    END,
    JACOBI,
    JSON,
    SCHEMA,
    SPELLED,
    STOP,
    WORDS,
    Babble,
    spell,
    tokenizer_of,
    words_allow,
)

llguidance = pytest.importorskip("llguidance", reason="grammars need the extra [grammar]")


@pytest.fixture(scope="module")
def words():
    return Grammar.regex("|".join(WORDS), tokenizer_of(SPELLED))


@pytest.mark.parametrize("method", JACOBI)
def test_greedy_texts_are_those_of_ar(words, method):
    for seed in range(8):
        model = TableProvider(random_table(seed, 4), 4)
        given = {
            "length": 6,
            "sampling": Sampling(temperature=0, processors=(words,)),
            "stop": words.stop,
            "drafting": "random",
        }
        assert np.array_equal(
            generate(model, [[0]], method=method, window=4, **given).tokens[0],
            generate(model, [[0]], method="ar", **given).tokens[0],
        )


def nested_allow(generated, size):
    """Which tokens may follow in a^n b^n, n >= 1, spelled by SPELLED, of a model with ``size`` tokens."""
    whole = np.zeros(size, bool)
    tokens = list(generated)
    ended = STOP in tokens
    alive = all(token < len(SPELLED) for token in tokens)
    text = spell(tokens[: tokens.index(STOP)] if ended else tokens) if alive else ""

    def begins(some):
        opened = len(some) - len(some.lstrip("a"))
        return some[opened:].strip("b") == "" and len(some) - opened <= opened

    def complete(some):
        return bool(some) and begins(some) and 2 * some.count("a") == len(some)

    if not alive or not begins(text):
        return whole
    if ended:
        whole[STOP] = complete(text) and all(token == STOP for token in tokens[tokens.index(STOP) :])
        return whole
    whole[:STOP] = [begins(text + more) for more in SPELLED[:STOP]]
    whole[STOP] = complete(text)
    return whole


@pytest.fixture(scope="module")
def nested():
    return Grammar.lark('start: "a" start? "b"', tokenizer_of(SPELLED))


TOKENS = st.integers(0, 5)
QUESTION = st.tuples(st.lists(TOKENS, max_size=7), st.integers(0, 3))
LIKELY = st.integers(0, 3).map(lambda n: [0] * n + [1] * n + [3])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.one_of(QUESTION, st.tuples(LIKELY, st.integers(0, 5))), min_size=1, max_size=6))
def test_any_contexts_in_any_order(nested, questions):
    """The walk goes forward and back, through dead states, ends and tokens that the tokenizer has not, and forgets nothing."""
    prompt = [1, 5]
    walk = nested.begin(np.array(prompt))
    for generated, first in questions:
        tokens = np.array(prompt + generated)
        positions = np.arange(len(prompt) + min(first, len(generated)), len(tokens) + 1)
        logits = np.arange(6.0) + np.zeros((len(positions), 1))
        out = walk(logits, tokens, positions)
        for j, position in enumerate(positions):
            expected = np.where(nested_allow(generated[: position - len(prompt)], 6), logits[j], -np.inf)
            assert np.array_equal(out[j], expected), (generated, position)


def test_behind_a_draft_that_breaks_the_grammar_nothing_is_allowed(words):
    walk = words.begin(np.array([0]))
    tokens = np.array([0, 0, 0, 1, 3])  # "a", then "aa", which no word begins with
    allowed = np.isfinite(walk(np.zeros((5, 4)), tokens, np.arange(1, 6)))
    assert allowed.any(axis=1).tolist() == [True, True, False, False, False]
    assert np.array_equal(allowed[:2], [words_allow([]), words_allow([0])])
    assert np.array_equal(walk(np.zeros((1, 4)), tokens, np.array([2]))[0] == 0, words_allow([0])), (
        "it is dead for ever"
    )


def test_a_walk_asks_little_of_the_engine(words):
    """A context that goes on from the last one costs its new tokens, not all of them again."""
    walk = words.begin(np.array([0]))
    calls = []

    class Counted:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def try_consume_tokens(self, tokens):
            calls.append(len(tokens))
            return self.inner.try_consume_tokens(tokens)

    walk._matcher = Counted(walk._matcher)
    tokens = np.array([0, 2, 2, 3])
    walk(np.zeros((4, 4)), tokens, np.arange(1, 5))
    walk(np.zeros((2, 4)), tokens, np.arange(3, 5))
    assert sum(calls) <= 4
    assert isinstance(walk._matcher, Counted)


def fits(value):
    assert list(value) == ["a", "e"]
    assert 1 <= len(value["a"]) <= 2
    assert all(item is True or item is None or item == 7 for item in value["a"])
    assert len(value["e"]) <= 2
    assert set(value["e"]) <= {"a", "e"}


@pytest.fixture(scope="module")
def schema():
    return Grammar.json_schema(SCHEMA, tokenizer_of(JSON), stop=[JSON.index(END)], whitespace=False)


@pytest.mark.parametrize("drafting", ["random", GrammarDrafts()], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_every_output_fits_the_schema(schema, method, drafting):
    size, prompts = len(JSON) + 2, [[3], [0, 0, 1], [5], [6, 2], [1]]
    sampling = Sampling(processors=(schema,))
    given = {"length": 60, "sampling": sampling, "stop": schema.stop, "seed": 4}
    made = generate(Babble(size), prompts, method=method, window=6, drafting=drafting, **given)
    texts = [spell(tokens, JSON) for tokens in made.tokens]
    assert all(tokens[-1] == schema.stop[0] for tokens in made.tokens)
    for text in texts:
        fits(json.loads(text))
    assert len(set(texts)) >= 3
    if METHODS[method].acceptance == "match":
        plain = generate(Babble(size), prompts, method="ar", **given)
        assert [tokens.tolist() for tokens in made.tokens] == [tokens.tolist() for tokens in plain.tokens]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_text_goes_on(schema, method):
    """Generated tokens of a resumed request belong to the text; where noise is the position's own, nothing changes at all."""
    request = Request([0], 60, seed=3, stop=schema.stop, sampling=Sampling(processors=(schema,)))
    model = Babble(len(JSON), 1)

    def run(asked, steps=None):
        decoder = Decoder(model, method=method, window=4, drafting="random")
        decoder.add(asked)
        tokens = []
        while decoder.active + decoder.waiting and steps != 0:
            for commit in decoder.step():
                tokens += commit.tokens.tolist()
            steps = None if steps is None else steps - 1
        return tokens

    whole = run(request)
    for steps in (1, 3, 5):
        begun = run(request, steps)
        assert STOP not in begun[:-1]
        assert len(begun) < len(whole)
        rest = run(request.resumed(begun))
        fits(json.loads(spell(begun + rest, JSON)))
        if method in ("ar", "scd-match", "speculative-match"):
            assert begun + rest == whole


@pytest.mark.parametrize("drafting", ["random", GrammarDrafts()], ids=repr)
def test_a_text_that_cannot_be_spelled_ends_its_request_and_no_other(words, drafting):
    grammar = Grammar.regex("abd|ba", tokenizer_of(SPELLED))  # nothing spells d
    decoder = Decoder(TableProvider(random_table(0, 4), 4, 2), method="scd-match", window=3, drafting=drafting)
    first = np.array([99.0, 0, 0, 0])
    push = Sampling(processors=(grammar, lambda logits, tokens, positions: logits + first))
    good = decoder.add(Request([0], 5, stop=words.stop, sampling=Sampling(processors=(words,))))
    bad = decoder.add(Request([0], 5, sequence=1, stop=words.stop, sampling=push))
    ended = {}
    while decoder.active + decoder.waiting:
        ended |= {commit.handle: commit for commit in decoder.step() if commit.finished}
    assert ended[good].reason == "stop"
    assert ended[bad].reason == "error"
    assert "regex 'abd|ba' cannot go on after 2 generated tokens: the text is not whole" in str(ended[bad].error)
    assert str(bad) in str(ended[bad].error)


def test_after_an_error_of_the_engine_a_walk_goes_on():
    walk = Grammar.regex("abd|ba", tokenizer_of(SPELLED)).begin(np.array([0]))
    for tokens in ([0, 2], [0, 2], [0, 2, 1]):
        with pytest.raises(InvalidArgument, match="cannot go on after 1 generated tokens: the text is not whole"):
            walk(np.zeros((1, 4)), np.array(tokens), np.array([len(tokens)]))
        assert walk.forced(np.array(tokens), 4) == [], "guesses must not fail: they are made for all rows together"
    out = walk(np.zeros((3, 4)), np.array([0, 1, 0]), np.array([1, 2, 3]))
    assert np.isfinite(out).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_several_tokens_may_end_a_text():
    spelled = ["a", "b", END, "<|im_end|>"]
    grammar = Grammar.regex("ab?", tokenizer_of(spelled), stop=np.array([2, 3]))
    assert grammar.stop == (2, 3)
    walk = grammar.begin(np.array([0]))
    out = walk(np.zeros((4, 4)), np.array([0, 0, 3, 2, 1]), np.arange(1, 5))
    assert np.isfinite(out).tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    whole = walk(np.zeros((2, 4)), np.array([0, 0, 1, 3]), np.array([3, 4]))
    assert np.isfinite(whole).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]], "a text that cannot go on ends by any of them"


def test_white_space_is_a_choice():
    spelled = [*"[]7 \u0120", END]
    texts = {
        flexible: Grammar.json_schema(
            {"type": "array", "items": {"const": 7}, "minItems": 1}, tokenizer_of(spelled), whitespace=flexible
        )
        for flexible in (True, False)
    }
    blank = spelled.index("\u0120")  # how byte-level tokenizers write a space
    for flexible, grammar in texts.items():
        out = grammar.begin(np.array([0]))(np.zeros((1, 6)), np.array([0, 0]), np.array([2]))
        assert np.isfinite(out[0, blank]) == flexible


@pytest.mark.parametrize("library", ["array_api_strict", "torch", "jax.numpy"])
def test_logits_of_any_library_stay_there_and_are_not_written_to(words, library):
    xp = pytest.importorskip(library)
    logits = xp.asarray(np.zeros((2, 4), np.float32))
    out = words.begin(np.array([0]))(logits, np.array([0, 0]), np.array([1, 2]))
    assert type(out) is type(logits)
    assert out.dtype == logits.dtype
    assert np.array_equal(np.isfinite(np.asarray(out)), [words_allow([]), words_allow([0])])
    assert bool(xp.all(logits == 0))


def test_a_model_may_have_more_tokens_than_the_tokenizer_and_nothing_is_printed(words, capfd):
    sampling = Sampling(processors=(words,))
    made = generate(Babble(9), [[8]] * 4, length=6, method="sjd", window=4, drafting="random", sampling=sampling)
    assert all(spell([t for t in tokens if t != STOP]) in WORDS for tokens in made.tokens)
    assert capfd.readouterr() == ("", "")


def test_a_model_without_the_stop_token_is_told_so(words):
    with pytest.raises(InvalidArgument, match=r"stop of the grammar holds 3, the model's tokens are \[0, 3\)"):
        words.begin(np.array([0]))(np.zeros((1, 3)), np.array([0]), np.array([1]))


GOOD = tokenizer_of(SPELLED)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Grammar.regex("a(b", GOOD), r"^regex is 'a\(b', which llguidance refuses: .*unclosed group"),
        (lambda: Grammar.regex(7, GOOD), "^regex is 7, expected a text"),
        (lambda: Grammar.regex("(?=a)b", GOOD), "^regex is .*look-around"),
        (lambda: Grammar.regex("d", GOOD), "^regex is 'd', which cannot begin: .*no token continues it"),
        (lambda: Grammar.lark("start: other", GOOD), '^grammar is .*unknown name: "other"'),
        (lambda: Grammar.lark(None, GOOD), "^grammar is None, expected a text"),
        (lambda: Grammar.json_schema("no JSON", GOOD), "^schema is 'no JSON', expected a mapping"),
        (lambda: Grammar.json_schema({"type": {1, 2}}, GOOD), "^schema is .*, expected a mapping"),
        (lambda: Grammar.json_schema({"type": "foo"}, GOOD), "^schema is .*Invalid type: foo"),
        (lambda: Grammar.json_schema({"type": "string", "format": "nix"}, GOOD), "^schema is .*Unknown format: nix"),
        (lambda: Grammar.regex("a", GOOD, stop=[]), r"^stop is \[\], expected at least one"),
        (lambda: Grammar.regex("a", GOOD, stop=[-1]), r"^stop is \[-1\], expected at least one"),
        (lambda: Grammar.regex("a", GOOD, stop=3), "^stop is 3, expected at least one"),
        (lambda: Grammar.regex("a", GOOD, stop=[9]), "EOS token ID 9 is out of range"),
        (lambda: Grammar.regex("a", GOOD, stop=[2**40]), "^tokenizer or stop cannot be used"),
        (lambda: Grammar.regex("a", tokenizer_of(["a"])), "^stop is None, and the tokenizer names no end token"),
        (lambda: Grammar.regex("a", "nowhere.json"), "^tokenizer is nowhere.json, which cannot be read"),
        (lambda: Grammar.regex("a", 7), "^tokenizer is 7, expected a bundle"),
        (lambda: Grammar.regex("a", SimpleNamespace(to_str=lambda: "{}")), "^tokenizer or stop cannot be used"),
        (lambda: Grammar.regex("a", SimpleNamespace(to_str=lambda: "[]")), "^tokenizer or stop cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_at_once(make, said):
    with pytest.raises(InvalidArgument, match=f"(?s){said}") as caught:
        make()
    assert "<state>" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_can_tell_the_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    GOOD.save(str(path))
    for tokenizer in (GOOD, path, str(path), Tokenizer(path)):
        grammar = Grammar.regex("ab", tokenizer)
        assert (grammar.kind, grammar.text, grammar.stop, grammar.vocab_size) == ("regex", "ab", (STOP,), 4)


def test_settings_of_a_tokenizer_that_cut_or_fill_texts_are_left_out():
    cutting = tokenizer_of(SPELLED)
    cutting.enable_truncation(1)
    cutting.enable_padding(length=5)
    walk = Grammar.regex("abbb", cutting).begin(np.array([0]))
    assert walk.forced(np.array([0]), 4) == [2, 1, 1]
    assert walk.forced(np.array([0]), 2) == [], "the model has no token 2"


def test_without_the_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (Grammar.regex, Grammar.lark, Grammar.json_schema):
        with pytest.raises(MissingDependency, match=r"coupled-sampling\[grammar\]"):
            make("{}", GOOD)
