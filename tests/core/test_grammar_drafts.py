"""Drafts under grammars: guesses of what a grammar forces, and exact laws of everything decoded under one."""

import numpy as np
import pytest

from coupled_sampling import METHODS, DraftModel, Request, Sampling, generate
from coupled_sampling.drafting import NGram, Proposal, Random, Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.grammars import Grammar, GrammarDrafts
from coupled_sampling.testing import TableProvider, assert_lossless_exactly, random_table
from standins.grammar_worlds import (
    END,
    JACOBI,
    JSON,
    SCHEMA,
    SPELLED,
    STOP,
    WORDS,
    Babble,
    restricted,
    spell,
    tokenizer_of,
    under,
)

llguidance = pytest.importorskip("llguidance", reason="grammars need the extra [grammar]")


@pytest.fixture(scope="module")
def words():
    return Grammar.regex("|".join(WORDS), tokenizer_of(SPELLED))


@pytest.fixture(scope="module")
def schema():
    return Grammar.json_schema(SCHEMA, tokenizer_of(JSON), stop=[JSON.index(END)], whitespace=False)


def test_guesses_of_what_the_grammar_forces():
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


@pytest.mark.cases(12)
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


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", JACOBI)
def test_sequences_that_share_a_row_and_a_grammar(words, method):
    """The second sequence takes over the first one's row, with a longer prompt that is itself no text of the grammar."""
    table, first, second = random_table(2, 4), [0], [1, 1]
    decode = under(words, table, method=method, drafting="random", stop=(STOP,), window=2)

    def law(context):
        return restricted(table, len(second) if context[: len(second)] == tuple(second) else len(first))(context)

    assert_lossless_exactly(decode, law, [first, second], vocab_size=4, length=2, stop=(STOP,), rows=1)
