"""Structured output: a grammar that every generated text keeps to, token by token.

A grammar says which texts are allowed: those of a regular expression, of a JSON schema, or of a context-free grammar in
Lark's notation. After every token it allows some next ones and forbids the rest, so it is a processor like any other: logits
of forbidden tokens become -inf. The target law is thus the model's own law at each position, restricted to the allowed tokens
and renormalised, and every method keeps it exactly. (It is *not* the model's law of whole texts given that they are
valid, which would weigh a token by all that can follow it. No decoder that masks tokens has that law.)

The engine is ``llguidance`` (an Earley parser over derivatives of regular expressions, in Rust), which reads a tokenizer's
vocabulary and answers in microseconds. Its matcher walks along the tokens of one sequence: forward along drafts, back to where the
next context parts from the last one.

=================================== ================================================================================
state after the generated tokens    allowed
=================================== ================================================================================
in the middle of a text             what continues it
a whole text that could go on       what continues it, and stop tokens
a whole text that cannot go on      stop tokens
behind a stop token                 stop tokens
dead: a draft broke the grammar     nothing; the row's drafts end there
=================================== ================================================================================

`GrammarDrafts` makes first guesses of the text that a grammar leaves no choice about, such as the keys of a JSON object.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import filled, from_host, namespace
from coupled_sampling.draft_model import DraftModel
from coupled_sampling.drafting import DraftContext, Drafting, NGram, Proposal, SelectiveDrafting, WaitsForTokens
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.grammar_engine import (
    TokenizerSource,
    check_text,
    checked_stop,
    first_lines,
    require_llguidance,
    shortened,
    source_of,
    trouble_of,
    vocabulary_of,
)
from coupled_sampling.noise import Noise
from coupled_sampling.requests import Request
from coupled_sampling.sampling import Array, Integers

__all__ = ["Grammar", "GrammarDrafts"]


@dataclass(frozen=True, eq=False)
class Grammar:
    """What generated texts must be: made by `json_schema`, `regex` or `lark`, and given to a request as a processor.

    It is about the generated tokens only; those of the prompt are free. One grammar serves any number of requests. Give a request
    the same ``stop`` tokens, and enough ``length`` for the longest text: one that is cut off is no text of the grammar.

    Parameters
    ----------
    kind
        ``"schema"``, ``"regex"`` or ``"grammar"``.
    text
        What it was made of.
    stop
        Tokens that end a text; allowed where a text is whole, and nowhere else.
    vocab_size
        Tokens of the tokenizer. A model may have more: none of those is allowed.

    Notes
    -----
    A request that ends by length, error or removal leaves a part of a text. A request fails where its text is not whole and no
    token continues it; that takes a tokenizer that cannot spell the text. Any tokens that spell an allowed text are allowed, not
    only those that the tokenizer would choose.

    Examples
    --------
    A tokenizer of four tokens, and a model that likes all of them:

    >>> import numpy as np, tokenizers
    >>> from coupled_sampling import Sampling, generate
    >>> from coupled_sampling.grammars import Grammar
    >>> tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    >>> tokenizer.decoder = tokenizers.decoders.ByteLevel()
    >>> tokenizer.add_special_tokens(["</s>"])
    1
    >>> grammar = Grammar.regex("ab{2,3}c", tokenizer)
    >>> grammar.stop
    (3,)
    >>> class Flat:
    ...     vocab_size, batch_size, max_length = 4, 1, 64
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 4))
    >>> sampling = Sampling(processors=(grammar,))
    >>> made = generate(Flat(), [[2]], length=9, method="scd-match", sampling=sampling, stop=grammar.stop, seed=1)
    >>> tokenizer.decode(made.tokens[0].tolist())
    'abbbc'

    What is no grammar is refused at once:

    >>> Grammar.regex("a(b", tokenizer)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: regex is 'a(b', which llguidance refuses: ...
    """

    kind: str
    text: str
    stop: tuple[int, ...]
    vocab_size: int
    _matcher: Any = field(repr=False)
    """llguidance's, at the beginning of a text; copied for every sequence."""

    @classmethod
    def json_schema(
        cls,
        schema: Mapping[str, Any] | str,
        tokenizer: TokenizerSource,
        stop: Sequence[int] | None = None,
        *,
        whitespace: bool = True,
    ) -> Grammar:
        """JSON values of a schema.

        Parameters
        ----------
        schema
            A JSON schema, as a mapping or as its text. Keywords that the engine does not implement are refused, not ignored.
        tokenizer
            Whose tokens spell the text: a bundle, a tokenizer, or the path of a ``tokenizer.json``. Byte-level or with byte
            fallback.
        stop
            Tokens that end a text. By default those of the bundle; for other tokenizers, the end token that llguidance finds.
        whitespace
            Whether spaces and new lines may stand between the parts of a value, as many as the model likes. Without, a schema whose
            strings and arrays are bounded has texts of bounded length.

        Raises
        ------
        InvalidArgument
            One of them cannot work.
        MissingDependency
            The package ``llguidance`` is not installed.

        Examples
        --------
        >>> import tokenizers
        >>> from coupled_sampling.grammars import Grammar
        >>> letters = {letter: token for token, letter in enumerate('{}":0123456789aeg')}
        >>> tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
        >>> tokenizer.decoder = tokenizers.decoders.ByteLevel()
        >>> tokenizer.add_special_tokens(["</s>"])
        1
        >>> schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}}}
        >>> schema |= {"required": ["age"], "additionalProperties": False}
        >>> Grammar.json_schema(schema, tokenizer, whitespace=False).kind
        'schema'
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            options = {} if whitespace else {"whitespace_flexible": False}
            written = require_llguidance().LLMatcher.grammar_from_json_schema(text, overrides=options)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"schema is {shortened(schema)}, expected a mapping of a JSON schema or its text: {error}"
            ) from error
        return cls._made("schema", text, written, tokenizer, stop)

    @classmethod
    def regex(cls, pattern: str, tokenizer: TokenizerSource, stop: Sequence[int] | None = None) -> Grammar:
        """Texts that a regular expression matches as a whole.

        Parameters
        ----------
        pattern
            The expression, in the syntax of Rust's ``regex``: no look-around, no back-references.
        tokenizer, stop
            As for `json_schema`.

        Raises
        ------
        InvalidArgument, MissingDependency
            As for `json_schema`.
        """
        check_text("regex", pattern)
        return cls._made("regex", pattern, require_llguidance().LLMatcher.grammar_from_regex(pattern), tokenizer, stop)

    @classmethod
    def lark(cls, text: str, tokenizer: TokenizerSource, stop: Sequence[int] | None = None) -> Grammar:
        """Texts of a context-free grammar in Lark's notation, beginning with the rule ``start``.

        Parameters
        ----------
        text
            The grammar. llguidance documents what it takes of Lark's notation.
        tokenizer, stop
            As for `json_schema`.

        Raises
        ------
        InvalidArgument, MissingDependency
            As for `json_schema`.
        """
        check_text("grammar", text)
        return cls._made("grammar", text, require_llguidance().LLMatcher.grammar_from_lark(text), tokenizer, stop)

    @classmethod
    def _made(
        cls, kind: str, text: str, written: str, tokenizer: TokenizerSource, stop: Sequence[int] | None
    ) -> Grammar:
        """The grammar that llguidance makes of ``written``, or why it makes none."""
        source, ends = source_of(tokenizer)
        vocabulary = vocabulary_of(source, checked_stop(stop) if stop is not None else ends)
        engine = require_llguidance().LLMatcher
        bad, remarks = engine.validate_grammar_with_warnings(written, vocabulary)
        if bad:
            raise InvalidArgument(f"{kind} is {shortened(text)}, which llguidance refuses: {first_lines(remarks[0])}")
        for remark in remarks:
            warnings.warn(f"{kind} {shortened(text)}: {first_lines(remark)}", stacklevel=3)
        # It would write its errors to the standard error, too; here they are raised.
        matcher = engine(vocabulary, written, log_level=0)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidArgument(
                f"{kind} is {shortened(text)}, which cannot begin: {trouble_of(matcher)}. Use another tokenizer or another {kind}"
            )
        return cls(kind, text, tuple(vocabulary.eos_tokens), vocabulary.vocab_size, matcher)

    def begin(self, prompt: Integers) -> GrammarWalk:
        """The processor of one sequence, see `coupled_sampling.sampling.SequenceProcessor`."""
        return GrammarWalk(self, len(prompt))


class GrammarWalk:
    """The grammar along one sequence: a processor, and what tells which tokens have no alternative.

    It may be asked about any contexts in any order. The matcher stands behind the tokens ``_path``, and goes back to where the next
    context parts from them, so that slots that follow each other cost one token each.
    """

    def __init__(self, grammar: Grammar, prompt_length: int) -> None:
        self._grammar = grammar
        self._first = prompt_length
        self._matcher: Any = None
        self._path: Integers = np.zeros(0, np.int64)
        self._restart()

    def __call__(self, logits: Array, tokens: Integers, positions: Integers) -> Array:
        size, known = logits.shape[-1], self._grammar.vocab_size
        if max(self._grammar.stop) >= size:
            raise InvalidArgument(
                f"stop of the grammar holds {max(self._grammar.stop)}, the model's tokens are [0, {size}): text could never end; "
                "make the grammar with the model's own tokenizer and stop tokens"
            )
        allowed = np.zeros((len(positions), size), bool)
        for j, position in enumerate(positions.tolist()):
            row = self._allowed(tokens[self._first : position])
            if row is not None:
                allowed[j, : min(size, known)] = row[:size]
        return namespace(logits).where(from_host(allowed, logits), logits, filled((), -np.inf, logits))

    def forced(self, tokens: Integers, vocab_size: int) -> list[int]:
        """Tokens that spell what must come next after ``tokens`` (L,), from position 0 on; none where there is a choice."""
        try:
            alive = self._follow(tokens[self._first :])
        except InvalidArgument:  # it ends its request where that is decided, and a guess decides nothing
            alive = False
        forced: list[int] = self._matcher.compute_ff_tokens() if alive else []
        return list(takewhile(lambda token: token < vocab_size, forced))

    def _allowed(self, generated: Integers) -> NDArray[np.bool_] | None:
        """Which tokens of the tokenizer may follow ``generated``; None where they are dead."""
        if not self._follow(generated):
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(len(generated))
        return np.unpackbits(bits, count=self._grammar.vocab_size, bitorder="little").view(np.bool_)

    def _follow(self, generated: Integers) -> bool:
        """Bring the matcher behind ``generated``; False where they break the grammar, and then it stands before the break."""
        shorter = min(len(self._path), len(generated))
        parted = np.flatnonzero(self._path[:shorter] != generated[:shorter])
        kept = int(parted[0]) if parted.size else shorter
        if kept < len(self._path) and not self._matcher.rollback(len(self._path) - kept):
            self._restart()  # after an error it goes nowhere, not even back
            kept = 0
        rest = generated[kept:]
        # The model may have more tokens than the tokenizer; handed one of those, the matcher would break down.
        foreign = np.flatnonzero((rest < 0) | (rest >= self._grammar.vocab_size))
        within = rest[: foreign[0]] if foreign.size else rest
        taken: int = self._matcher.try_consume_tokens(within.tolist())
        self._path = generated[: kept + taken].copy()
        self._check(kept + taken)
        # A matcher that has stopped takes no further tokens, but behind a whole text stop tokens may come.
        over = np.isin(rest[taken:], self._grammar.stop).all() and self._matcher.is_stopped()
        return taken == len(rest) or bool(over)

    def _check(self, count: int) -> None:
        """Refuse to go on with a matcher that has failed behind ``count`` generated tokens."""
        if self._matcher.is_error():
            raise InvalidArgument(
                f"{self._grammar.kind} {shortened(self._grammar.text)} cannot go on after {count} generated tokens: "
                f"{trouble_of(self._matcher)}"
            )

    def _restart(self) -> None:
        self._matcher = self._grammar._matcher.deep_copy()
        self._path = np.zeros(0, np.int64)


@dataclass(frozen=True)
class GrammarDrafts:
    """First guesses for requests with a `Grammar`: the text that it leaves no choice about, and guesses of ``otherwise`` elsewhere.

    A text that must come can be cut into tokens in several ways; the guess is the tokenizer's own. It is no more than a guess, and
    changes no law.

    Parameters
    ----------
    otherwise
        A rule whose guesses have no laws: any but a draft model. It is given no laws of committed tokens.

    Examples
    --------
    >>> import numpy as np, tokenizers
    >>> from coupled_sampling import Sampling, generate
    >>> from coupled_sampling.grammars import Grammar, GrammarDrafts
    >>> tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    >>> tokenizer.decoder = tokenizers.decoders.ByteLevel()
    >>> tokenizer.add_special_tokens(["</s>"])
    1
    >>> grammar = Grammar.regex("abcabc", tokenizer)
    >>> class Flat:
    ...     vocab_size, batch_size, max_length = 4, 1, 64
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 4))
    >>> sampling = Sampling(processors=(grammar,))
    >>> settings = dict(length=9, method="scd-match", window=8, sampling=sampling, stop=grammar.stop)
    >>> made = generate(Flat(), [[2]], drafting=GrammarDrafts(), **settings)
    >>> made.tokens[0].tolist(), made.traces[0].nfe
    ([0, 1, 2, 0, 1, 2, 3], 1)
    """

    otherwise: Drafting = field(default_factory=lambda: NGram(3))

    def __post_init__(self) -> None:
        if isinstance(self.otherwise, DraftModel) or not isinstance(self.otherwise, Drafting):
            raise InvalidArgument(
                f"otherwise is {self.otherwise!r}, expected a drafting rule that is no draft model, such as NGram(3)"
            )

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """See `coupled_sampling.drafting.SelectiveDrafting.takes`."""
        return (
            self.otherwise.takes(request, vocab_size, rows) if isinstance(self.otherwise, SelectiveDrafting) else None
        )

    def waits(self, tokens: Integers, prompt_length: int) -> bool:
        """See `coupled_sampling.drafting.WaitsForTokens.waits`."""
        return isinstance(self.otherwise, WaitsForTokens) and self.otherwise.waits(tokens, prompt_length)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `coupled_sampling.drafting.Drafting.propose`."""
        return [self._propose(context, noise, vocab_size, shared) for context in contexts]

    def _propose(self, context: DraftContext, noise: Noise, vocab_size: int, shared: bool) -> Proposal:
        walks = [walk for walk in context.info.sampling.processors if isinstance(walk, GrammarWalk)]
        tokens, end = context.tokens, len(context.tokens) + context.wanted
        while len(tokens) < end:
            guess: Sequence[int] | Integers = next(
                filter(None, (walk.forced(tokens, vocab_size) for walk in walks)), []
            )
            if not len(guess):
                # One at a time: what follows it may be forced again. Without a grammar nothing ever is.
                wanted = 1 if walks else context.wanted
                proposal = self.otherwise.propose(
                    [context._replace(tokens=tokens, wanted=wanted)], noise, vocab_size=vocab_size, shared=shared
                )[0]
                if proposal.law is not None:
                    raise InvalidArgument(
                        f"otherwise is {self.otherwise!r}, whose guesses have laws; expected a rule without"
                    )
                guess = proposal.tokens
            tokens = np.concatenate([tokens, np.asarray(guess, np.int64)])
        return Proposal(tokens[len(context.tokens) : end])
