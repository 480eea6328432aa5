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
from coupled_sampling.testing.arguments import check_count, check_seed, shown

__all__ = ["Choice", "Chooser", "ExactLaw", "PathEstimate", "Probability", "enumerate_paths", "estimate_paths"]

Output = TypeVar("Output", bound=Hashable)
Probability = Any
"""A float or a `fractions.Fraction`; integers count as either. (Type checkers cannot subtract one from the other.)"""

_ROUNDING = 1e-9
"""How much two runs may differ in a probability. Each takes the same steps, so that not even this is needed in numpy."""
_OFF_ONE = 1e-6
"""How far from one the probabilities of the answers to a question may sum."""
_NOT_A_FUNCTION = (
    "a second run on the same answers went another way: {}. Every run must be a function of the answers alone: make models and "
    "drafting rules anew in each, keep nothing from one to the next, and draw through the given noise only"
)
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


class _Question(NamedTuple):
    """A question of a path, with those answers that are possible, and the one that is taken at present."""

    answers: int
    options: list[tuple[int, Probability]]
    taken: int


class _Script:
    """The answers of one path, and the odometer that goes on to the next."""

    def __init__(self) -> None:
        self._questions: list[_Question] = []
        self.path: list[tuple[Callable[[int], str], int, Probability]] = []

    @property
    def probability(self) -> Probability:
        return math.prod((chance for _, _, chance in self.path if chance != 1), start=1)

    def restart(self) -> None:
        self.path = []

    def choose(self, probabilities: Sequence[Probability], text: Callable[[int], str]) -> int:
        """See `Chooser.choose`: the scripted answer, or the first where the script ends."""
        depth = len(self.path)
        if depth == len(self._questions):
            self._questions.append(_Question(len(probabilities), _possible(probabilities), 0))
        question = self._questions[depth]
        index, chance = question.options[question.taken]
        same = question.answers == len(probabilities) and probabilities[index] == chance
        if not same and (question.answers != len(probabilities) or abs(probabilities[index] - chance) > _ROUNDING):
            raise InvalidArgument(_NOT_A_FUNCTION.format(f"question {depth + 1} was another one ({text(index)})"))
        self.path.append((text, index, chance))
        return index

    def check_end(self) -> None:
        """Refuse a run that ended before the script did."""
        if len(self.path) < len(self._questions):
            asked = f"it asked {len(self.path)} questions, and at least {len(self._questions)} the time before"
            raise InvalidArgument(_NOT_A_FUNCTION.format(asked))

    def advance(self) -> bool:
        """Turn to the next path; false when there is none."""
        while self._questions:
            last = self._questions.pop()
            if last.taken + 1 < len(last.options):
                self._questions.append(last._replace(taken=last.taken + 1))
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
    if not all(p >= 0 for p in probabilities) or not abs(sum(probabilities) - 1) <= _OFF_ONE:
        raise InvalidArgument(
            f"the decoder asked for a choice among answers with probabilities {shown(list(probabilities))}, expected numbers >= 0 "
            "that sum to 1"
        )
    return [(i, p) for i, p in enumerate(probabilities) if p > 0]


def _hashable(output: Any) -> bool:
    try:
        hash(output)
    except TypeError:
        return False
    return True


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
        if not _hashable(output) or output not in self._shortest:
            raise InvalidArgument(
                f"output is {shown(output)}, expected one that this law gives, such as {shown(next(iter(self)))}"
            )
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
    check_count("probes", probes, 2, 10**6)  # the spread of the estimate is part of it
    check_seed("seed", seed)
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
    check_count("max_paths", max_paths)
    script, law = _Script(), ExactLaw[Output]()
    while True:
        script.restart()
        output = run(script)
        script.check_end()
        if not _hashable(output):
            raise InvalidArgument(
                f"run returned {shown(output)}, expected something hashable, such as a tuple of tokens"
            )
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
