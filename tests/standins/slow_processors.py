"""Every logits processor from its definition: one slot, one token at a time, in plain Python.

Each function takes the logits of one slot as a list, the tokens before it, and where the prompt ends; it gives new logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from coupled_sampling import processors

__all__ = ["CASES", "Case"]

Logits = list[float]
Slow = Callable[[Logits, tuple[int, ...], int], Logits]
NOTHING = -math.inf


class Case(NamedTuple):
    """A processor for a vocabulary of at least three tokens, and its definition."""

    name: str
    processor: Any
    slow: Slow

    @property
    def only_forbids(self) -> bool:
        """Whether it leaves logits as they are or makes them -inf."""
        kinds = (processors.NoRepeatNGram, processors.BadWords, processors.AllowedTokens, processors.MinNewTokens)
        return isinstance(self.processor, kinds)


def _how_often(token: int, tokens: Sequence[int]) -> int:
    return sum(1 for other in tokens if other == token)


def _repetition(penalty: float, first: Callable[[int], int]) -> Slow:
    def slow(logits: Logits, context: tuple[int, ...], end: int) -> Logits:
        changed = []
        for token, logit in enumerate(logits):
            if token not in context[first(end) :]:
                changed.append(logit)
            else:
                changed.append(logit / penalty if logit > 0 else logit * penalty)
        return changed

    return slow


def _frequency(penalty: float, first: Callable[[int], int]) -> Slow:
    return lambda logits, context, end: [
        logit - penalty * _how_often(token, context[first(end) :]) for token, logit in enumerate(logits)
    ]


def _presence(penalty: float, first: Callable[[int], int]) -> Slow:
    return lambda logits, context, end: [
        logit - (penalty if token in context[first(end) :] else 0) for token, logit in enumerate(logits)
    ]


def _ngrams(size: int, first: Callable[[int], int]) -> Slow:
    def slow(logits: Logits, context: tuple[int, ...], end: int) -> Logits:
        own = context[first(end) :]
        held = {own[i : i + size] for i in range(len(own) - size + 1)}
        last = own[len(own) - size + 1 :] if size > 1 else ()
        return [NOTHING if (*last, token) in held else logit for token, logit in enumerate(logits)]

    return slow


def _bad_words(words: list[list[int]], first: Callable[[int], int]) -> Slow:
    def slow(logits: Logits, context: tuple[int, ...], end: int) -> Logits:
        own = list(context[first(end) :])
        ends = [[*own, token] for token in range(len(logits))]
        return [
            NOTHING if any(run[len(run) - len(word) :] == word for word in words if len(word) <= len(run)) else logit
            for run, logit in zip(ends, logits, strict=True)
        ]

    return slow


def _allowed(at: Callable[[int], Sequence[int] | None]) -> Slow:
    def slow(logits: Logits, context: tuple[int, ...], end: int) -> Logits:
        tokens = at(len(context) - end)
        return [logit if tokens is None or token in tokens else NOTHING for token, logit in enumerate(logits)]

    return slow


def _forced(by: dict[int, int]) -> Slow:
    def slow(logits: Logits, context: tuple[int, ...], end: int) -> Logits:
        wanted = by.get(len(context) - end)
        return logits if wanted is None else [0.0 if token == wanted else NOTHING for token in range(len(logits))]

    return slow


def _min_new(count: int, stop: list[int]) -> Slow:
    return lambda logits, context, end: [
        NOTHING if token in stop and len(context) - end < count else logit for token, logit in enumerate(logits)
    ]


def _bias(bias: dict[int, float]) -> Slow:
    return lambda logits, context, end: [logit + bias.get(token, 0.0) for token, logit in enumerate(logits)]


def _with_prompt(end: int) -> int:
    return 0


def _without_prompt(end: int) -> int:
    return end


WORDS = [[2], [0, 1], [1, 1, 0]]


def _by_parity(index: int) -> list[int] | None:
    return [[0, 1], [1, 2], None][index % 3]


CASES = [
    Case("repetition", processors.RepetitionPenalty(1.7), _repetition(1.7, _with_prompt)),
    Case("repetition, generated", processors.RepetitionPenalty(0.6, count_prompt=False), _repetition(0.6, _without_prompt)),
    Case("frequency", processors.FrequencyPenalty(0.8), _frequency(0.8, _without_prompt)),
    Case("frequency, prompt too", processors.FrequencyPenalty(-0.4, count_prompt=True), _frequency(-0.4, _with_prompt)),
    Case("presence", processors.PresencePenalty(1.1), _presence(1.1, _without_prompt)),
    Case("presence, prompt too", processors.PresencePenalty(-0.7, count_prompt=True), _presence(-0.7, _with_prompt)),
    Case("bigrams", processors.NoRepeatNGram(2), _ngrams(2, _with_prompt)),
    Case("trigrams", processors.NoRepeatNGram(3), _ngrams(3, _with_prompt)),
    Case("bigrams, generated", processors.NoRepeatNGram(2, count_prompt=False), _ngrams(2, _without_prompt)),
    Case("unigrams, generated", processors.NoRepeatNGram(1, count_prompt=False), _ngrams(1, _without_prompt)),
    Case("bad words", processors.BadWords(WORDS[1:]), _bad_words(WORDS[1:], _with_prompt)),
    Case("bad words, generated", processors.BadWords(WORDS, count_prompt=False), _bad_words(WORDS, _without_prompt)),
    Case("bias", processors.LogitBias({0: 0.9, 1: -1.3}), _bias({0: 0.9, 1: -1.3})),
    Case("bias, forbidding", processors.LogitBias({0: -math.inf, 2: 250.0}), _bias({0: -math.inf, 2: 250.0})),
    Case("allowed", processors.AllowedTokens([0, 2]), _allowed(lambda index: [0, 2])),
    Case("allowed by index", processors.AllowedTokens({0: [1], 2: [0, 1]}), _allowed({0: [1], 2: [0, 1]}.get)),
    Case("allowed by function", processors.AllowedTokens(_by_parity), _allowed(_by_parity)),
    Case("minimum", processors.MinNewTokens(2, [1]), _min_new(2, [1])),
    Case("forced by index", processors.ForcedTokens({0: 1, 2: 0}), _forced({0: 1, 2: 0})),
    Case("forced beginning", processors.ForcedTokens([2, 0]), _forced({0: 2, 1: 0})),
]  # fmt: skip
