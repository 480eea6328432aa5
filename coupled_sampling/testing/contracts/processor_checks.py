"""The checks of `coupled_sampling.testing.check_processor`, each a function of a `Subject` and a `Record`.

A processor must be a function of a slot's logits and of the tokens before it. So it is its own yardstick: what it says of a slot
when it is shown exactly the tokens before it, and nothing else, it must say whatever stands behind, whichever slots are asked with
it, and whatever it was asked before.

Contexts are made by the processor itself: a token that it allows, another one, and so on. What it does after tokens that it
forbids is its own affair; it may even raise there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, is_floating, namespace, read_only, to_host
from coupled_sampling.contracts import Array, Integers, Processor, SequenceProcessor
from coupled_sampling.testing.contracts.probe import LogLaws, Record

__all__ = [
    "Subject",
    "allows_something",
    "call_order",
    "causal",
    "input_untouched",
    "result_kept",
    "runs",
    "shape_and_type",
    "slots_alone",
]

FAVOURITES = 3
"""So many tokens are likely, that sequences repeat themselves whatever the vocabulary."""


class WrongResultError(Exception):
    """What a processor returned is no array of the shape and kind that it was given."""


class Walk:
    """A prompt and tokens that the processor allows after it, one by one, with the log-laws (n, V) that they were drawn from."""

    def __init__(self, prompt: Integers, tokens: Integers, laws: list[LogLaws]) -> None:
        self.prompt, self.tokens, self.laws = prompt, tokens, laws

    @property
    def positions(self) -> Integers:
        """Positions of the generated tokens, which are also the slots that have a context the processor allows."""
        return np.arange(len(self.prompt), len(self.tokens))


class Subject:
    """The processor under test, its prompts, and logits for every position.

    Parameters
    ----------
    processor, vocab_size, prompts, length, stop, array, seed
        See `coupled_sampling.testing.contracts.processors.processor_report`.
    """

    def __init__(
        self,
        processor: Processor | SequenceProcessor,
        vocab_size: int,
        prompts: Sequence[Integers],
        *,
        length: int,
        stop: frozenset[int],
        array: Callable[[NDArray[Any]], Array] | None,
        seed: int,
    ) -> None:
        self.processor, self.vocab_size, self.prompts = processor, vocab_size, prompts
        self.length, self.stop, self.array = length, stop, array
        self.random = np.random.default_rng([seed, 2])
        rows = max(len(prompt) for prompt in prompts) + length + 4
        self._logits = self.random.normal(size=(rows, vocab_size)).astype(np.float32)
        self._likely = self.random.permutation(vocab_size)[:FAVOURITES]
        self._logits[:, self._likely] += 2 + np.float32(np.log(vocab_size))
        self._example = self.given(prompts[0], np.array([len(prompts[0])]))[0]
        self.walks: list[Walk] = []
        self.wrong: list[str] = []
        """What it returned, where that is no such array, and what it was asked."""
        self.ends: list[str] = []
        """Where it allows nothing."""

    @property
    def begun_walks(self) -> list[Walk]:
        """Walks of at least one token."""
        return [walk for walk in self.walks if len(walk.positions)]

    def begin(self, prompt: Integers) -> Processor:
        """The processor of a sequence."""
        if not isinstance(self.processor, SequenceProcessor):
            return self.processor
        begun = self.processor.begin(read_only(prompt.copy()))
        if not callable(begun):
            raise TypeError(
                f"begin returned {type(begun).__name__}, expected a function (logits, tokens, positions) -> logits"
            )
        return begun

    def given(self, tokens: Integers, positions: Integers) -> tuple[Array, Integers, Integers]:
        """What a call gets: the logits that belong to ``positions``, and copies of the two."""
        logits = self._logits[positions]
        made = logits if self.array is None else self.array(logits)
        return made, tokens.copy(), positions.copy()

    def laws(self, begun: Processor, tokens: Integers, positions: Integers) -> LogLaws:
        """Log-laws (n, V) of what it makes; all -inf where it allows nothing."""
        found = begun(*self.given(tokens, positions))
        problem = self.problem(found, len(positions))
        if problem is not None:
            raise WrongResultError(problem)
        values = np.asarray(to_host(at_least_float32(found)), np.float64)
        highest = values.max(axis=-1, keepdims=True)
        shifted = values - np.where(np.isneginf(highest), 0, highest)
        with np.errstate(divide="ignore", invalid="ignore"):
            laws: LogLaws = np.where(
                np.isneginf(shifted), -np.inf, shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
            )
        return laws

    def alone(self, begun: Processor, walk: Walk) -> LogLaws:
        """Log-laws (n, V) of each slot of ``walk``, asked for alone with the tokens before it and no others."""
        return np.concatenate([self.laws(begun, walk.tokens[:p], np.array([p])) for p in walk.positions.tolist()])

    def problem(self, found: Any, slots: int) -> str | None:
        """How ``found`` departs from floating logits (slots, V) of the library of those given; None if it does not."""
        shape = (slots, self.vocab_size)
        if not hasattr(found, "dtype") or not hasattr(found, "shape"):
            return f"returned {type(found).__name__}, expected an array"
        if tuple(found.shape) != shape:
            return f"returned shape {tuple(found.shape)}, expected (slots, vocabulary) = {shape}, as it was given"
        if not is_floating(found):
            return f"returned {found.dtype}, expected a floating type"
        if namespace(found) is not namespace(self._example):
            return f"returned {type(found).__name__}, expected {type(self._example).__name__}, as it was given"
        return None

    def walk(self, prompt: Integers, done: Integers) -> Walk:
        """Go on after ``done``, which begins with ``prompt``, for ``length`` generated tokens or to a stop token."""
        begun, tokens, laws = self.begin(prompt), done.tolist(), list[LogLaws]()
        while len(tokens) < len(prompt) + self.length:
            laws.append(self.laws(begun, np.array(tokens), np.array([len(tokens)])))
            law = np.exp(laws[-1][0])
            if not law.sum() > 0:  # NaN, too
                found = "it makes NaN or +inf" if np.isnan(law).any() else "it allows nothing"
                place = f"generated token {len(tokens) - len(prompt)}, at position {len(tokens)}"
                self.ends.append(f"{place}, after tokens {tokens}: {found}")
                break
            tokens.append(int(self.random.choice(self.vocab_size, p=law / law.sum())))
            if tokens[-1] in self.stop:
                break
        return Walk(prompt, np.array(tokens), laws)

    def tail(self, count: int = 3) -> Integers:
        """``count`` tokens that might be drafts."""
        likely = self.random.choice(self._likely, count)
        return np.where(self.random.random(count) < 0.7, likely, self.random.integers(self.vocab_size, size=count))


def _compare(record: Record, found: LogLaws, expected: LogLaws, positions: Integers) -> None:
    """Fail if log-laws (n, V) of slots at ``positions`` (n,) are not those ``expected``."""
    differences = record.measure(found, expected)
    differences = np.where(np.isnan(differences), np.inf, differences)
    if differences.max() > record.tolerance:
        slot = int(np.argmax(differences.max(axis=-1) > record.tolerance))
        token = int(differences[slot].argmax())
        record.fail(
            f"the slot at position {int(positions[slot])} has another law: the log-probability of token {token} is "
            f"{found[slot, token]:.6g}, expected {expected[slot, token]:.6g}"
        )


def runs(subject: Subject, record: Record) -> None:
    """It raises nothing while sequences are begun, and go on with tokens that it allows."""
    for prompt in subject.prompts:
        positions = np.array([len(prompt)])
        record.doing = f"beginning a sequence with the prompt {prompt.tolist()}"
        begun = subject.begin(prompt)
        record.doing = f"asking for the first token after the prompt {prompt.tolist()}"
        try:
            begun(*subject.given(prompt, positions))
        except Exception as error:
            with suppress(Exception):
                begun(*subject.given(np.append(prompt, subject.tail()), positions))
                record.doing += (
                    ", where there are no drafts (with drafts it raises nothing, so it looks right of the slot)"
                )
            raise error
        record.doing = f"going on after the prompt {prompt.tolist()} with tokens that it allows"
        for _ in range(2):
            try:
                subject.walks.append(subject.walk(prompt, prompt))
            except WrongResultError as error:
                subject.wrong.append(f"{record.doing}: {error}")
    for walk in subject.begun_walks:
        record.doing = f"asking for {len(walk.positions)} slots at once"
        try:
            subject.laws(subject.begin(walk.prompt), walk.tokens, walk.positions)
        except WrongResultError as error:
            subject.wrong.append(f"{record.doing}: {error}")


def input_untouched(subject: Subject, record: Record) -> None:
    """It writes into nothing that it is given, and does not need to."""
    calls = [(prompt, prompt, np.array([len(prompt)])) for prompt in subject.prompts]
    calls += [(walk.prompt, walk.tokens, walk.positions) for walk in subject.begun_walks]
    for prompt, tokens, positions in calls:
        begun = subject.begin(prompt)
        given, same = subject.given(tokens, positions), subject.given(tokens, positions)
        record.doing = "comparing what it was given before and after a call"
        begun(*given)
        for name, array, before in zip(("logits", "tokens", "positions"), given, same, strict=True):
            if not np.array_equal(to_host(array), to_host(before)):
                record.fail(f"{name} were changed in place")
                return
        record.doing = "giving it arrays that cannot be written to, as the decoder does"
        logits, context, places = subject.given(tokens, positions)
        begun(read_only(logits), read_only(context), read_only(places))


def shape_and_type(subject: Subject, record: Record) -> None:
    """It returns logits of the shape, kind and library that it was given."""
    record.doing = "looking at what it returns"
    for wrong in subject.wrong:
        record.fail(wrong)


def allows_something(subject: Subject, record: Record) -> None:
    """After tokens that it allows, it allows another one."""
    record.doing = "going on with tokens that it allows"
    for end in subject.ends:
        record.fail(end)
    if not subject.begun_walks:
        record.notes.append(
            "no sequence could be begun, so nothing after this was looked at; pass prompts that it allows"
        )


def causal(subject: Subject, record: Record) -> None:
    """A slot's logits do not depend on tokens at its own position or to the right of it."""
    for walk in subject.begun_walks:
        begun = subject.begin(walk.prompt)
        expected = subject.alone(begun, walk)
        for j, position in enumerate(walk.positions.tolist()):
            slot = walk.positions[j : j + 1]
            for tail in (walk.tokens[position:], subject.tail(), subject.tail(1)):
                record.doing = f"showing it {tail.tolist()} at the slot's position {position} and to the right of it"
                _compare(
                    record,
                    subject.laws(begun, np.append(walk.tokens[:position], tail), slot),
                    expected[j : j + 1],
                    slot,
                )
        _compare_branches(subject, record, walk)


def _compare_branches(subject: Subject, record: Record, walk: Walk) -> None:
    """Ask for all slots of ``walk`` at once, and for the same ones of another walk that parts from it halfway."""
    half = len(walk.prompt) + len(walk.positions) // 2
    other = subject.walk(walk.prompt, walk.tokens[:half])
    positions = walk.positions[: len(other.positions)]
    shared = int((positions <= half).sum())
    if shared:
        begun = subject.begin(walk.prompt)
        expected = subject.laws(begun, walk.tokens, positions)[:shared]
        record.doing = f"asking for the same slots at once, with other tokens from position {half} on"
        _compare(record, subject.laws(begun, other.tokens, positions)[:shared], expected, positions)


def slots_alone(subject: Subject, record: Record) -> None:
    """A slot's logits do not depend on the slots that are asked for in the same call, nor on their order."""
    for walk in subject.begun_walks:
        begun, count = subject.begin(walk.prompt), len(walk.positions)
        expected = np.concatenate([subject.laws(begun, walk.tokens, walk.positions[j : j + 1]) for j in range(count)])
        orders = {"from left to right": np.arange(count), "from right to left": np.arange(count)[::-1]}
        orders |= {"every other one": np.arange(count)[::2], "in any order": subject.random.permutation(count)}
        for how, order in orders.items():
            record.doing = f"asking for several slots at once, {how}, instead of one by one"
            found = subject.laws(begun, walk.tokens, walk.positions[order])
            _compare(record, found, expected[order], walk.positions[order])


def call_order(subject: Subject, record: Record) -> None:
    """What it says does not depend on what it was asked before, for this sequence or another one."""
    walks = subject.begun_walks
    expected = [subject.alone(subject.begin(walk.prompt), walk) for walk in walks]
    for walk, before in zip(walks, expected, strict=True):
        record.doing = "asking the same as at the very first"
        _compare(record, before, np.concatenate(walk.laws[: len(before)]), walk.positions)
        begun = subject.begin(walk.prompt)
        record.doing = "asking from right to left, with a processor just begun"
        for j in reversed(range(len(walk.positions))):
            slot = walk.positions[j : j + 1]
            _compare(record, subject.laws(begun, walk.tokens[: slot[0]], slot), before[j : j + 1], slot)
        record.doing = "asking the same again, after drafts that were refused"
        for j, position in enumerate(walk.positions.tolist()):
            drafts = np.append(walk.tokens[:position], subject.tail())
            with suppress(Exception):  # after such drafts it may do as it likes
                begun(*subject.given(drafts, position + np.arange(len(drafts) - position + 1)))
            slot = walk.positions[j : j + 1]
            _compare(record, subject.laws(begun, walk.tokens[:position], slot), before[j : j + 1], slot)
    begun_of = [subject.begin(walk.prompt) for walk in walks]
    record.doing = "asking for several sequences in turn"
    for j in range(max((len(walk.positions) for walk in walks), default=0)):
        for walk, begun, before in zip(walks, begun_of, expected, strict=True):
            slot = walk.positions[j : j + 1]
            if len(slot):
                _compare(record, subject.laws(begun, walk.tokens[: slot[0]], slot), before[j : j + 1], slot)


def result_kept(subject: Subject, record: Record) -> None:
    """What it has returned is not changed by a later call."""
    for walk in subject.begun_walks:
        begun, kept = subject.begin(walk.prompt), []
        for position in walk.positions.tolist():
            result = begun(*subject.given(walk.tokens[:position], np.array([position])))
            kept.append((result, np.array(to_host(result))))
        record.doing = "looking at results again after later calls"
        if any(not np.array_equal(to_host(result), before, equal_nan=True) for result, before in kept):
            record.fail("a later call changed the array that an earlier one had returned")
