"""Exact output laws by enumeration: losslessness without sampling error and without a threshold.

A decoder asks randomness three kinds of question (`coupled_sampling.noise.Noise`). `EnumeratingNoise` answers them
from a script of choices; `exact_law` runs the decoder once for every possible script and adds up the probabilities of
the paths by what came out. The decoder under test is the shipped one, not a model of it.

The shared draw of a position is one uniform number that persists: it is known only to an interval, and each question
about it splits the interval at the law's cumulative sums. That is exact for any vocabulary, and it proves the
*sharing*: the second answer is conditional on the first. (In production the shared draw is a Gumbel argmax. Both are
functions of the law and of noise that belongs to the position; losslessness may use nothing else.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import from_host, to_host
from coupled_sampling.contracts import Array
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose, Sites

__all__ = ["EnumeratingNoise", "autoregressive_law", "exact_law", "total_variation"]

Output = TypeVar("Output", bound=Hashable)


class _Script:
    """The choices of one path, and the odometer that goes on to the next."""

    def __init__(self) -> None:
        self._choices: list[tuple[list[tuple[int, float]], int]] = []
        self._depth = 0
        self.probability = 1.0

    def restart(self) -> None:
        self._depth, self.probability = 0, 1.0

    def choose(self, probabilities: Sequence[float]) -> int:
        """An index of positive probability: the scripted one, or the first where the script ends."""
        if self._depth == len(self._choices):
            self._choices.append(([(i, p) for i, p in enumerate(probabilities) if p > 0], 0))
        options, taken = self._choices[self._depth]
        self._depth += 1
        index, probability = options[taken]
        self.probability *= probability
        return index

    def advance(self) -> bool:
        """Turn to the next path; false when there is none."""
        while self._choices:
            options, taken = self._choices.pop()
            if taken + 1 < len(options):
                self._choices.append((options, taken + 1))
                return True
        return False


class EnumeratingNoise:
    """A `Noise` that explores every outcome; made by `exact_law`, one for each path."""

    def __init__(self, script: _Script) -> None:
        self._script = script
        self._known: dict[tuple[int, int, int], tuple[float, float]] = {}

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """See `Noise.bernoulli`."""
        chances, wanted = to_host(probability), to_host(where)
        answers = np.zeros(wanted.shape, bool)
        for b in range(wanted.shape[0]):
            for j in np.flatnonzero(wanted[b]).tolist():
                chance = float(chances[b, j])
                answers[b, j] = self._script.choose([1 - chance, chance]) == 1
                if leading and not answers[b, j]:
                    break
        return from_host(answers, probability)

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """See `Noise.categorical`."""
        all_weights, wanted = to_host(weights), to_host(where)
        answers = np.zeros(wanted.shape, np.int64)
        for b, j in np.argwhere(wanted).tolist():
            own = all_weights[b, j].astype(float)
            answers[b, j] = self._script.choose((own / own.sum()).tolist())
        return from_host(answers, weights)

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """See `Noise.shared`."""
        laws, wanted = to_host(law), to_host(where)
        answers = np.zeros(wanted.shape, np.int64)
        for b, j in np.argwhere(wanted).tolist():
            owner = (int(sites.seed[b]), int(sites.sequence[b]), int(sites.position[b, j]))
            answers[b, j] = self._split(owner, laws[b, j].astype(float))
        return from_host(answers, law)

    def _split(self, owner: tuple[int, int, int], law: NDArray[np.float64]) -> int:
        """Choose which of the law's intervals the position's uniform lies in, and remember it."""
        low, high = self._known.get(owner, (0.0, 1.0))
        edges = np.concatenate([[0.0], np.cumsum(law)])
        edges[int(np.flatnonzero(law)[-1]) + 1 :] = 1.0
        lows, highs = np.maximum(edges[:-1], low), np.minimum(edges[1:], high)
        widths = np.where(law > 0, np.maximum(highs - lows, 0), 0)
        token = self._script.choose((widths / widths.sum()).tolist())
        self._known[owner] = (float(lows[token]), float(highs[token]))
        return token

    def forget(self, seed: int, sequence: int) -> None:
        """See `Noise.forget`."""


def exact_law(run: Callable[[Noise], Output], *, max_paths: int = 100_000) -> dict[Output, float]:
    """The exact law of what ``run`` returns.

    Parameters
    ----------
    run
        Runs the decoder once, from the start, drawing through the noise it is given and in no other way; returns
        something hashable, such as a tuple of tokens.
    max_paths
        Refuse beyond this many.

    Returns
    -------
    dict
        Probability of every output; they sum to one up to rounding.

    Raises
    ------
    InvalidArgument
        There are more than ``max_paths`` paths.
    """
    script = _Script()
    law: dict[Output, float] = {}
    for _ in range(max_paths):
        script.restart()
        output = run(EnumeratingNoise(script))
        law[output] = law.get(output, 0.0) + script.probability
        if not script.advance():
            return law
    raise InvalidArgument(
        f"the decoder has more than max_paths = {max_paths} paths; use a smaller vocabulary, length or window, or raise it"
    )


def autoregressive_law(
    next_law: Callable[[tuple[int, ...]], Sequence[float] | NDArray[np.float64]],
    prompt: Sequence[int],
    length: int,
    stop: Sequence[int] = (),
) -> dict[tuple[int, ...], float]:
    """The law of ordinary autoregressive sampling, by the chain rule: the oracle.

    Parameters
    ----------
    next_law
        Law (V,) of the next token given all tokens before it, the prompt included.
    prompt, length, stop
        As for `coupled_sampling.Request`.

    Returns
    -------
    dict
        Probability of every possible tuple of generated tokens.
    """
    open_ends: dict[tuple[int, ...], float] = {(): 1.0}
    ended: dict[tuple[int, ...], float] = {}
    for _ in range(length):
        grown: dict[tuple[int, ...], float] = {}
        for tokens, probability in open_ends.items():
            for token, chance in enumerate(next_law((*prompt, *tokens))):
                if chance > 0:
                    home = ended if token in stop else grown
                    home[(*tokens, token)] = probability * float(chance)
        open_ends = grown
    return {**ended, **open_ends}


def total_variation(first: Mapping[Output, float], second: Mapping[Output, float]) -> float:
    """Total variation distance: half the sum of absolute differences; 0 for equal laws, 1 for laws without a common output."""
    return 0.5 * sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in {**first, **second})
