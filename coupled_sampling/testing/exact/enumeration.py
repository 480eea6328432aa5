"""Every path of a random program, once each: the machinery under exact laws.

A program that draws through us asks questions with finitely many answers of known probability. Running it again and again,
each time with the next script of answers (an odometer over a tree), visits every path; the probability of a path is the
product of its answers', and the law of the output is the sum over paths. No sampling error; no threshold.

Probabilities may be floats, and sums are then right up to rounding, or `fractions.Fraction`, and everything is exact.

What it does not promise: an end. The number of paths grows exponentially, so there is a budget, and `estimate_paths` says
beforehand what it would take (Knuth 1975, "Estimating the efficiency of backtrack programs").
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from coupled_sampling.errors import InvalidArgument

__all__ = ["Choice", "Chooser", "ExactLaw", "PathEstimate", "Probability", "enumerate_paths", "estimate_paths"]

Output = TypeVar("Output", bound=Hashable)
Probability = Any
"""A float or a `fractions.Fraction`; integers count as either. (Type checkers cannot subtract one from the other.)"""

_LOOK_AHEAD = 1000
"""Paths after which a run that is far from its end is refused early."""


class Choice(NamedTuple):
    """One answer on a path, and its probability given the answers before it.

    Examples
    --------
    >>> from coupled_sampling.testing import exact_law_from_uniforms
    >>> law = exact_law_from_uniforms(lambda generator: generator.random() < 0.25)
    >>> law.shortest_path(True)
    (Choice(text='uniform 1 is below 0.25', probability=0.25),)
    """

    text: str
    probability: Probability


class PathEstimate(NamedTuple):
    """Number of paths, estimated without bias from random ones, with the estimate's standard error.

    Examples
    --------
    >>> from coupled_sampling.testing.exact.enumeration import PathEstimate
    >>> PathEstimate(paths=120.0, standard_error=8.5).paths
    120.0
    """

    paths: float
    standard_error: float


class Chooser(Protocol):
    """Answers a question with finitely many answers."""

    def choose(self, probabilities: Sequence[Probability], text: Callable[[int], str]) -> int:
        """The index of an answer of positive probability; ``text`` says what an answer means."""
        ...


class _Script:
    """The answers of one path, and the odometer that goes on to the next."""

    def __init__(self) -> None:
        self._answers: list[tuple[list[tuple[int, Probability]], int]] = []
        self.path: list[tuple[Callable[[int], str], int, Probability]] = []

    @property
    def probability(self) -> Probability:
        return math.prod((chance for _, _, chance in self.path if chance != 1), start=1)

    def restart(self) -> None:
        self.path = []

    def choose(self, probabilities: Sequence[Probability], text: Callable[[int], str]) -> int:
        """See `Chooser.choose`: the scripted answer, or the first where the script ends."""
        depth = len(self.path)
        if depth == len(self._answers):
            self._answers.append((_possible(probabilities), 0))
        options, taken = self._answers[depth]
        index, chance = options[taken]
        self.path.append((text, index, chance))
        return index

    def advance(self) -> bool:
        """Turn to the next path; false when there is none."""
        while self._answers:
            options, taken = self._answers.pop()
            if taken + 1 < len(options):
                self._answers.append((options, taken + 1))
                return True
        return False

    def choices(self) -> tuple[Choice, ...]:
        """The path just taken, in words; answers that were certain are left out."""
        return tuple(Choice(text(index), chance) for text, index, chance in self.path if chance != 1)


class _Probe:
    """Takes every possible answer equally often and multiplies their numbers."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self.leaves = 1

    def choose(self, probabilities: Sequence[Probability], text: Callable[[int], str]) -> int:
        """See `Chooser.choose`."""
        options = _possible(probabilities)
        self.leaves *= len(options)
        return self._generator.choice(options)[0]


def _possible(probabilities: Sequence[Probability]) -> list[tuple[int, Probability]]:
    options = [(i, p) for i, p in enumerate(probabilities) if p > 0]
    if not options:
        raise InvalidArgument(f"the decoder asked for a choice among answers of no probability: {list(probabilities)}")
    return options


class ExactLaw(Mapping[Output, Probability], Generic[Output]):
    """The exact law of a program's output: a mapping from outputs to probabilities.

    Attributes
    ----------
    paths
        How many paths were taken.

    Examples
    --------
    >>> from coupled_sampling.testing import exact_law_from_uniforms
    >>> law = exact_law_from_uniforms(lambda generator: generator.integers(2) + generator.integers(2))
    >>> {total: str(probability) for total, probability in law.items()}, law.paths
    ({0: '1/4', 1: '1/2', 2: '1/4'}, 4)
    """

    def __init__(self) -> None:
        self._law: dict[Output, Probability] = {}
        self._shortest: dict[Output, tuple[Choice, ...]] = {}
        self.paths = 0

    def add(
        self, output: Output, probability: Probability, path: Callable[[], tuple[Choice, ...]], length: int
    ) -> None:
        """Count one path of ``length`` choices."""
        self.paths += 1
        self._law[output] = self._law.get(output, 0) + probability
        if output not in self._shortest or length < len(self._shortest[output]):
            self._shortest[output] = path()

    def shortest_path(self, output: Output) -> tuple[Choice, ...]:
        """A path of fewest choices that leads to ``output``; choices that were certain do not count."""
        return self._shortest[output]

    def __getitem__(self, output: Output) -> Probability:
        return self._law[output]

    def __iter__(self) -> Iterator[Output]:
        return iter(self._law)

    def __len__(self) -> int:
        return len(self._law)

    def __repr__(self) -> str:
        return f"ExactLaw({self._law!r}, paths={self.paths})"


def estimate_paths(run: Callable[[Chooser], object], *, probes: int = 100, seed: int = 0) -> PathEstimate:
    """How many paths ``run`` has, from ``probes`` random ones; one random path costs one run.

    Raises
    ------
    InvalidArgument
        ``probes`` is below 2.
    """
    if probes < 2:
        raise InvalidArgument(f"probes is {probes}, expected at least 2: the spread of the estimate is part of it")
    generator, leaves = random.Random(seed), []
    for _ in range(probes):
        probe = _Probe(generator)
        run(probe)
        leaves.append(probe.leaves)
    mean = sum(leaves) / probes
    variance = sum((count - mean) ** 2 for count in leaves) / (probes - 1)
    return PathEstimate(mean, (variance / probes) ** 0.5)


def enumerate_paths(run: Callable[[Chooser], Output], *, max_paths: int) -> ExactLaw[Output]:
    """The exact law of what ``run`` returns; see `coupled_sampling.testing.exact_law`."""
    if max_paths < 1:
        raise InvalidArgument(f"max_paths is {max_paths}, expected at least 1")
    script, law = _Script(), ExactLaw[Output]()
    while True:
        script.restart()
        output = run(script)
        length = sum(chance != 1 for _, _, chance in script.path)
        law.add(output, script.probability, script.choices, length)
        if not script.advance():
            return law
        if law.paths == max_paths or law.paths == _LOOK_AHEAD:
            estimate = estimate_paths(run)
            if law.paths == max_paths or estimate.paths - 5 * estimate.standard_error > max_paths:
                raise InvalidArgument(
                    f"the decoder has more paths than max_paths = {max_paths}: about {estimate.paths:.3g} "
                    f"(standard error {estimate.standard_error:.2g}, from random paths); use a smaller vocabulary, length "
                    "or window, or raise max_paths"
                )
