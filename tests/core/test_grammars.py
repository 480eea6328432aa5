"""Structured output: the engine's masks against oracles in Python, and exact laws of everything decoded under them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import METHODS, Decoder, DraftModel, Request, Sampling, generate
from coupled_sampling.bundles import Tokenizer
from coupled_sampling.drafting import NGram, Proposal, Random, Repeat
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.grammars import Grammar, GrammarDrafts
from coupled_sampling.testing import TableProvider, assert_lossless_exactly, random_table, shipped_decoder

llguidance = pytest.importorskip("llguidance", reason="grammars need the extra [grammar]")
tokenizers = pytest.importorskip("tokenizers", reason="grammars need the extra [text]")

END = "</s>"
SPELLED = ["a", "b", "ab", END]
"""The tokens of the small world; two of them spell what one does."""
STOP = SPELLED.index(END)
WORDS = ("a", "ab", "abab", "bab", "bb")
JACOBI = [name for name in METHODS if name != "ar"]


def tokenizer_of(spelled):
    """A byte-level tokenizer whose tokens are spelled so; those in angle brackets are special."""
    vocabulary = {text: token for token, text in enumerate(spelled) if not text.startswith("<")}
    special = [text for text in spelled if text.startswith("<")]
    letters = sorted(set("".join(vocabulary)))
    # Special tokens are numbered behind the others, so they must stand behind them.
    assert spelled[len(vocabulary) :] == special
    assert set(letters) <= set(vocabulary)
    merges = [(text[:1], text[1:]) for text in vocabulary if len(text) == 2]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(special)
    return made


def spell(tokens, spelled=SPELLED):
    return "".join(spelled[token] for token in tokens if spelled[token] != END)


def words_allow(generated):
    """Which tokens may follow in a text of WORDS; by the list alone."""
    if STOP in generated:
        return np.arange(4) == STOP
    text = spell(generated)
    continues = [any(word.startswith(text + more) for word in WORDS) for more in SPELLED[:STOP]]
    return np.array([*continues, text in WORDS])


def restricted(next_law, prompt_length=1):
    """The law of the next token under WORDS."""

    def law(context):
        kept = next_law(context) * words_allow(context[prompt_length:])
        return kept / kept.sum()

    return law


@pytest.fixture(scope="module")
def words():
    return Grammar.regex("|".join(WORDS), tokenizer_of(SPELLED))


def under(grammar, next_law, **settings):
    """The shipped decoder of a model that knows nothing of the grammar."""
    decode = shipped_decoder(sampling=Sampling(processors=(grammar,)), **settings)

    def run(model, noise, prompts, lengths):
        rows = model.batch_size
        return decode(TableProvider(next_law, 4, rows, model.max_length), noise, prompts, lengths)

    return run


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


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"enum": [True, None, 7]}, "minItems": 1, "maxItems": 2},
        "e": {"type": "string", "pattern": "^[ae]{0,2}$"},
    },
    "required": ["a", "e"],
    "additionalProperties": False,
}
JSON = [*'{}[]":,0127aelnrstu', '":', '{"', "tr", "ae", "<pad>", END]


def fits(value):
    assert list(value) == ["a", "e"]
    assert 1 <= len(value["a"]) <= 2
    assert all(item is True or item is None or item == 7 for item in value["a"])
    assert len(value["e"]) <= 2
    assert set(value["e"]) <= {"a", "e"}


@pytest.fixture(scope="module")
def schema():
    return Grammar.json_schema(SCHEMA, tokenizer_of(JSON), stop=[JSON.index(END)], whitespace=False)


class Babble:
    """A model of flat laws with a little of everything, a pure function of the last three tokens."""

    def __init__(self, vocab_size, batch_size=3):
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, 96
        self._held = np.zeros((batch_size, 96), np.int64)

    def forward(self, tokens, start):
        logits = np.empty((*tokens.shape, self.vocab_size))
        for b, j in np.ndindex(tokens.shape):
            self._held[b, start[b] + j] = tokens[b, j]
            last = self._held[b, max(0, start[b] + j - 2) : start[b] + j + 1]
            logits[b, j] = np.random.default_rng([7, *last.tolist()]).normal(size=self.vocab_size)
        return logits


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


def test_guesses_of_what_the_grammar_forces(nested):
    class Asked:
        """The rule for what is not forced; it remembers what it was asked."""

        def __init__(self):
            self.contexts = []

        def propose(self, contexts, noise, *, vocab_size, shared):
            self.contexts += contexts
            return [Proposal(np.zeros(c.wanted, np.int64)) for c in contexts]

    grammar = Grammar.regex("abb(a|b)aab", tokenizer_of(SPELLED))
    asked, model = Asked(), TableProvider(random_table(1, 4), 4)
    settings = {"length": 9, "window": 8, "method": "scd-match", "stop": grammar.stop}
    made = generate(
        model, [[0]], drafting=GrammarDrafts(asked), sampling=Sampling(processors=(grammar,)), **settings
    ).tokens[0]
    assert spell(made) in ("abbaaab", "abbbaab")
    assert asked.contexts[0].tokens.tolist() == [0, 2, 1]
    assert all(context.wanted == 1 for context in asked.contexts)

    asked = Asked()
    generate(model, [[0]], drafting=GrammarDrafts(asked), **settings)
    assert asked.contexts[0].wanted > 1, "without a grammar the rule is asked as ever"


def test_forced_guesses_save_passes(schema):
    sampling = Sampling(processors=(schema,))
    given = {"length": 60, "window": 6, "sampling": sampling, "stop": schema.stop, "method": "scd-match"}
    passes = [
        generate(Babble(len(JSON)), [[0], [1], [2]], drafting=drafting, **given).traces
        for drafting in (NGram(3), GrammarDrafts())
    ]
    plain, forced = (sum(trace.nfe for trace in traces) for traces in passes)
    assert forced < 0.8 * plain


def test_rules_that_cannot_guess_for_the_rest():
    with pytest.raises(InvalidArgument, match="otherwise is 'ngram'"):
        GrammarDrafts("ngram")
    with pytest.raises(InvalidArgument, match="expected a drafting rule that is no draft model"):
        GrammarDrafts(DraftModel(TableProvider(random_table(0, 4), 4)))
    assert "leaves the vocabulary" in GrammarDrafts(Random(0, 99)).takes(Request([0], 1), 4, 1)
    assert GrammarDrafts().takes(Request([0], 1), 4, 1) is None

    class WithLaws:
        def propose(self, contexts, noise, *, vocab_size, shared):
            return [Proposal(np.zeros(c.wanted, np.int64), np.full((c.wanted, 4), 0.25)) for c in contexts]

    with pytest.raises(InvalidArgument, match="whose guesses have laws"):
        generate(
            TableProvider(random_table(0, 4), 4),
            [[0]],
            length=4,
            window=3,
            method="sjd",
            drafting=GrammarDrafts(WithLaws()),
        )


@pytest.mark.parametrize(
    ("drafting", "window", "stop"),
    [
        ("random", 2, (STOP,)),
        ("repeat", 3, ()),
        (Repeat(fill=0), 3, ()),
        (GrammarDrafts(), 3, ()),
        (GrammarDrafts(Random()), 2, (STOP,)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_is_the_model_restricted_to_the_grammar(words, method, drafting, window, stop):
    """Exactly, through drafts that break it, whole texts that may go on, and stop tokens that do not end the sequence."""
    table = random_table(len(stop), 4)
    law = assert_lossless_exactly(
        under(words, table, method=method, drafting=drafting, stop=stop, window=window),
        restricted(table),
        [[0]],
        vocab_size=4,
        length=3,
        stop=stop,
    )
    assert len(law) >= 5
    assert any(output[-2:] == (STOP, STOP) for (output,) in law) == (not stop)


@pytest.mark.parametrize("method", JACOBI)
def test_sequences_that_share_a_row_and_a_grammar(words, method):
    """The second sequence takes over the first one's row, with a longer prompt that is itself no text of the grammar."""
    table, first, second = random_table(2, 4), [0], [1, 1]
    decode = under(words, table, method=method, drafting="random", stop=(STOP,), window=2)

    def law(context):
        return restricted(table, len(second) if context[: len(second)] == tuple(second) else len(first))(context)

    assert_lossless_exactly(decode, law, [first, second], vocab_size=4, length=2, stop=(STOP,), rows=1)
