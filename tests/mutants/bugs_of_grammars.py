"""Bugs of structured output: of the walk along a sequence, of what ends a text, and of guesses that the grammar forces."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

GRAMMARS = ("test_grammars", "test_grammar_drafts")

BUGS = (
    Bug(
        "grammar-rolled-back-one-too-few",
        "GrammarWalk._follow",
        "self._matcher.rollback(len(self._path) - kept)",
        "self._matcher.rollback(len(self._path) - kept - 1)",
        "The token before the place where contexts part is taken twice.",
        GRAMMARS,
    ),
    Bug(
        "grammar-walks-from-the-start-each-time",
        "GrammarWalk._follow",
        "int(parted[0]) if parted.size else shorter",
        "0",
        "Every slot costs all tokens before it.",
        GRAMMARS,
    ),
    Bug(
        "grammar-remembers-a-view",
        "GrammarWalk._follow",
        "generated[: kept + taken].copy()",
        "generated[: kept + taken]",
        "What the matcher is behind changes with the row's drafts, and is not rolled back.",
        GRAMMARS,
    ),
    Bug(
        "grammar-ends-in-the-middle",
        "GrammarWalk._follow",
        "np.isin(rest[taken:], self._grammar.stop).all() and self._matcher.is_stopped()",
        "np.isin(rest[taken:], self._grammar.stop).all()",
        "Behind a stop token in the middle of a text, the text goes on as if there were none.",
        GRAMMARS,
    ),
    Bug(
        "grammar-goes-on-behind-its-end",
        "GrammarWalk._follow",
        "np.isin(rest[taken:], self._grammar.stop).all() and self._matcher.is_stopped()",
        "self._matcher.is_stopped()",
        "Behind a whole text any token may stand, as long as a stop token follows.",
        GRAMMARS,
    ),
    Bug(
        "grammar-given-tokens-it-has-not",
        "GrammarWalk._follow",
        "rest[: foreign[0]] if foreign.size else rest",
        "rest",
        "A draft outside the tokenizer breaks the engine.",
        GRAMMARS,
    ),
    Bug(
        "grammar-of-the-prompt-too",
        "GrammarWalk.__call__",
        "self._allowed(tokens[self._first : position])",
        "self._allowed(tokens[:position])",
        "The prompt must fit the grammar.",
        GRAMMARS,
    ),
    Bug(
        "grammar-revives-behind-a-wrong-draft",
        "GrammarWalk._allowed",
        """\
if not self._follow(generated):
    return None
""",
        "self._follow(generated)",
        "A slot behind a draft that breaks the grammar has the law of the slot before the break.",
        GRAMMARS,
    ),
    Bug(
        "grammar-broken-for-ever",
        "GrammarWalk._follow",
        "self._restart()",
        "",
        "After an error of the engine behind a draft, the sequence fails at its next step.",
        GRAMMARS,
    ),
    Bug(
        "grammar-mask-backwards",
        "GrammarWalk._allowed",
        'np.unpackbits(bits, count=self._grammar.vocab_size, bitorder="little")',
        "np.unpackbits(bits, count=self._grammar.vocab_size)",
        "Of every eight tokens the wrong ones are allowed.",
        GRAMMARS,
    ),
    Bug(
        "grammar-walked-by-all-sequences",
        "GrammarWalk._restart",
        "self._grammar._matcher.deep_copy()",
        "self._grammar._matcher",
        "Sequences under one grammar move one matcher.",
        GRAMMARS,
    ),
    Bug(
        "grammar-end-token-taken-from-nowhere",
        "vocabulary_of",
        "not stop and not vocabulary.is_special_token(vocabulary.eos_token)",
        "False",
        "Where the tokenizer names no end token, token 0 ends texts.",
        GRAMMARS,
    ),
    Bug(
        "forced-guesses-raise",
        "GrammarWalk.forced",
        """\
try:
    alive = self._follow(tokens[self._first :])
except InvalidArgument:
    alive = False
""",
        "alive = self._follow(tokens[self._first :])",
        "A text that cannot go on stops the guesses of all requests, and so the others.",
        GRAMMARS,
    ),
    Bug(
        "forced-guesses-of-one-place",
        "GrammarDrafts._propose",
        "walk.forced(tokens, vocab_size)",
        "walk.forced(context.tokens, vocab_size)",
        "What is forced at the first guess is guessed again and again.",
        GRAMMARS,
    ),
)
