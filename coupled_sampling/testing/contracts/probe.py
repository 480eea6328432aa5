"""A logits provider under test, spoken to through its contract alone.

`Probe` makes the sequences that the checks of `coupled_sampling.testing.contracts.provider_checks` forward, cuts them into
windows and turns logits into log-laws; `Record` compares log-laws and remembers the largest difference and the first failure.

The yardstick is the provider itself: what it says of a sequence *alone*, forwarded from position 0 in row 0 in as few
windows as it takes. Every other way to forward the same tokens must say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, is_floating, read_only, to_host
from coupled_sampling.contracts import Array, Integers, LogitsProvider, RequestObserver, max_window
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.requests import Request
from coupled_sampling.testing.arguments import check_conditions, check_count, check_prompts, check_seed, check_tokens
from coupled_sampling.testing.contracts.report import CheckResult

__all__ = ["Call", "LogLaws", "Probe", "Record", "Scored", "log_laws", "problem_of_logits"]

LogLaws = NDArray[np.float64]
"""Log-probabilities, -inf for tokens that are forbidden."""

MOST_ROWS_WATCHED = 4
"""Rows whose logits are compared one by one: the first, the last and some between; all rows are forwarded."""


def log_laws(logits: Array) -> LogLaws:
    """Log-softmax of ``logits`` (..., V) of any library, in float64 on the host."""
    values = np.asarray(to_host(at_least_float32(logits)), np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def problem_of_logits(logits: Any, shape: tuple[int, int, int]) -> str | None:
    """How ``logits`` depart from floating (B, W, V) from which laws can be made; None if they do not."""
    if not hasattr(logits, "dtype") or not hasattr(logits, "shape"):
        return f"returned {type(logits).__name__}, expected an array"
    if tuple(logits.shape) != shape:
        return f"returned shape {tuple(logits.shape)}, expected (B, W, V) = {shape}"
    if not is_floating(logits):
        return f"returned {logits.dtype}, expected a floating type"
    values = to_host(at_least_float32(logits))
    bad = np.isnan(values) | (values == np.inf)
    bad |= np.broadcast_to((values == -np.inf).all(axis=-1, keepdims=True), shape)
    if bad.any():
        row, slot, token = (int(index) for index in np.argwhere(bad)[0])
        return (
            f"row {row}, slot {slot}: the logit of token {token} is {values[row, slot, token]}, expected finite logits, or -inf "
            "for some tokens but not for all"
        )
    return None


class Call(TypedDict, total=False):
    """How `Probe.forward` calls, as keywords."""

    provider: LogitsProvider | None
    rows: range | None
    frozen: bool
    parents: Integers | None


class Scored(NamedTuple):
    """What a run of windows said of some consecutive positions."""

    laws: LogLaws
    """(B, count, V)."""
    start: Integers
    """(B,) position of the first token forwarded."""
    slots: Integers
    """(count,) the slot each token had in its window."""


class Probe:
    """``provider`` and the sequences it is checked with.

    Parameters
    ----------
    provider
        The provider under test.
    tokens, prompts, length, seed, fresh, reference, conditions
        See `coupled_sampling.testing.contracts.providers.check_provider`.
    """

    def __init__(
        self,
        provider: LogitsProvider,
        *,
        tokens: Sequence[int] | None,
        prompts: Sequence[Sequence[int]] | None,
        length: int | None,
        seed: int,
        fresh: Callable[[], LogitsProvider] | None = None,
        reference: Callable[..., Array] | None = None,
        conditions: Sequence[object] | None = None,
    ) -> None:
        self.provider, self.seed, self.fresh, self.reference = provider, seed, fresh, reference
        self.vocab_size, self.rows = int(provider.vocab_size), int(provider.batch_size)
        self.max_length, self.max_window = int(provider.max_length), max_window(provider)
        chosen = range(self.vocab_size) if tokens is None else check_tokens("tokens", tokens, self.vocab_size, 1)
        self.tokens = np.unique(np.asarray(chosen, np.int64))
        check_seed("seed", seed)
        if length is not None:
            check_count("length", length)
        if prompts is not None:
            check_prompts("prompts", prompts, self.vocab_size, 0)
        if prompts is None:
            prompts = [self.tokens[:1].tolist()] if isinstance(provider, RequestObserver) else [[]]
        self.prompts = [np.asarray(prompt, np.int64).reshape(-1) for prompt in prompts]
        self.conditions = None if conditions is None else check_conditions("conditions", conditions, provider)
        longest = max((len(prompt) for prompt in self.prompts), default=self.max_length)
        self.length = min(self.max_length, longest + 40) if length is None else length
        if not longest + 4 <= self.length <= self.max_length:
            raise InvalidArgument(
                f"length is {self.length}, expected from {longest + 4} (the longest prompt and 4 tokens) to max_length, "
                f"{self.max_length}; pass prompts and a length that fit the provider"
            )
        self.random = np.random.default_rng([seed, 1])
        others = self.random.permutation(np.arange(1, max(1, self.rows - 1)))[: MOST_ROWS_WATCHED - 2]
        self.watched = sorted({0, self.rows - 1, *(int(row) for row in others)})

    @property
    def can_change_tokens(self) -> bool:
        """Whether there are two tokens to choose from."""
        return self.tokens.size > 1

    def prompt(self, row: int) -> Integers:
        """The prompt of ``row``'s sequences."""
        return self.prompts[row % len(self.prompts)]

    def request(self, row: int) -> Request:
        """What a provider that wants to know is told of ``row``'s sequences."""
        condition = None if self.conditions is None else self.conditions[row % len(self.conditions)]
        return Request(self.prompt(row).copy(), length=1, condition=condition)

    def sequences(self, *, one_prompt: bool = False) -> Integers:
        """New random sequences (rows, length), each beginning with its row's prompt, or all with the first one."""
        drawn = self.random.choice(self.tokens, (self.rows, self.length))
        for row in range(self.rows):
            prompt = self.prompt(0 if one_prompt else row)
            drawn[row, : len(prompt)] = prompt
        return drawn

    def other_tokens(self, tokens: Integers) -> Integers:
        """For each of ``tokens``, which are among `tokens`, a different one."""
        places = np.searchsorted(self.tokens, tokens)
        steps = self.random.integers(1, self.tokens.size, tokens.shape)
        return np.asarray(self.tokens[(places + steps) % self.tokens.size])

    def restart(self, rows: Sequence[int], *, one_prompt: bool = False, provider: LogitsProvider | None = None) -> None:
        """Tell the provider, if it wants to know, that ``rows`` start new sequences."""
        told = self.provider if provider is None else provider
        if isinstance(told, RequestObserver):
            for row in rows:
                told.begin(row, self.request(0 if one_prompt else row))

    def forward(
        self,
        tokens: Integers,
        start: Integers,
        *,
        provider: LogitsProvider | None = None,
        rows: range | None = None,
        frozen: bool = False,
        parents: Integers | None = None,
    ) -> LogLaws:
        """Log-laws (B, W, V) of one window; the provider gets copies.

        Parameters
        ----------
        tokens, start
            The window.
        provider
            In place of the one under test.
        rows
            By ``forward_rows``, for these.
        frozen
            Whether the copies are read-only, as a decoding loop's are.
        parents
            By ``forward_tree``, as the tree that has these.
        """
        called: Any = self.provider if provider is None else provider
        window = np.ascontiguousarray(tokens, np.int64).copy(), np.array(start, np.int64)
        if frozen:
            window = read_only(window[0]), read_only(window[1])
        if parents is not None:
            name, own = "forward_tree", parents.copy()
            logits = called.forward_tree(
                *window, read_only(own) if frozen else own, range(len(window[1])) if rows is None else rows
            )
        else:
            name = "forward" if rows is None else "forward_rows"
            logits = called.forward(*window) if rows is None else called.forward_rows(*window, rows)
        problem = problem_of_logits(logits, (*tokens.shape, self.vocab_size))
        if problem is not None:
            raise ProviderError(f"{name} of {tokens.shape[0]} rows and {tokens.shape[1]} slots {problem}")
        return log_laws(logits)

    def score(
        self,
        sequences: Integers,
        start: int | Sequence[int] | Integers,
        count: int,
        widths: Sequence[int] = (),
        **how: Unpack[Call],
    ) -> Scored:
        """Forward ``count`` tokens of each of ``sequences`` (B, L) from ``start`` on, in windows of ``widths``.

        Widths that go beyond ``count`` or are not given are as large as they can be. ``how`` is as for `forward`.
        """
        begin = np.broadcast_to(np.asarray(start, np.int64), (len(sequences),)).copy()
        parts, slots, done, wanted = [], [], 0, list(widths)
        while done < count:
            width = min(wanted.pop(0) if wanted else self.max_window, count - done, self.max_window)
            window = np.stack([row[first + done :][:width] for row, first in zip(sequences, begin, strict=True)])
            parts.append(self.forward(window, begin + done, **how))
            slots.append(np.arange(width))
            done += width
        return Scored(np.concatenate(parts, axis=1), begin, np.concatenate(slots))

    def alone(self, sequence: Integers, row: int = 0) -> LogLaws:
        """Log-laws (L, V) of ``sequence`` (L,), which has the prompt of ``row``, from position 0 in row 0 by itself."""
        provider = self.provider if self.fresh is None else self.fresh()
        if isinstance(provider, RequestObserver):
            provider.begin(0, self.request(row))
        return np.asarray(self.score(sequence[None], 0, len(sequence), provider=provider).laws[0])

    def all_alone(self, sequences: Integers, *, one_prompt: bool = False) -> dict[int, LogLaws]:
        """`alone` for every watched row of ``sequences``."""
        return {row: self.alone(sequences[row], 0 if one_prompt else row) for row in self.watched}


@dataclass
class Record:
    """What one check finds while it runs."""

    name: str
    advice: str
    tolerance: float
    doing: str = "starting"
    difference: float | None = None
    failure: str | None = None
    notes: list[str] = field(default_factory=list)

    def fail(self, found: str) -> None:
        """Remember a failure, unless there was one before."""
        if self.failure is None:
            self.failure = f"{self.doing}: {found}. {self.advice}"

    def measure(self, found: LogLaws, expected: LogLaws) -> LogLaws:
        """Absolute differences (..., V), 0 where both forbid a token; the largest is remembered."""
        with np.errstate(invalid="ignore"):
            differences = np.where(found == expected, 0.0, np.abs(found - expected))
        largest = float(differences.max()) if differences.size else 0.0
        self.difference = max(largest, self.difference or 0.0)
        return np.asarray(differences)

    def compare(self, scored: Scored, row: int, expected: LogLaws) -> None:
        """Fail if ``row`` of ``scored`` is not what ``expected`` (L, V), the sequence alone, says at its positions."""
        start, count = int(scored.start[row]), scored.laws.shape[1]
        wanted = expected[start : start + count]
        differences = self.measure(scored.laws[row], wanted)
        if differences.max() > self.tolerance:
            place = int(np.argmax(differences.max(axis=-1) > self.tolerance))
            token = int(differences[place].argmax())
            self.fail(
                f"row {row}, slot {int(scored.slots[place])} (token at position {start + place}, logits for position "
                f"{start + place + 1}): the log-probability of token {token} is {scored.laws[row, place, token]:.6g}, "
                f"expected {wanted[place, token]:.6g}; the difference {differences[place, token]:.3g} is above the tolerance "
                f"{self.tolerance:g}"
            )

    def result(self) -> CheckResult:
        """The check's outcome."""
        return CheckResult(self.name, self.difference, self.failure, tuple(self.notes))
