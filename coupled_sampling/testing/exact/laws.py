"""Exact output laws by enumeration: losslessness without sampling error and without a threshold.

A decoder asks randomness three kinds of question (`coupled_sampling.noise.Noise`). `EnumeratingNoise` answers them from a
script of choices; `exact_law` runs the decoder once for every possible script and adds up the probabilities of the paths
by what came out. The decoder under test is the shipped one, not a model of it. Code that draws uniforms of its own has
`coupled_sampling.testing.exact_law_from_uniforms`; laws in fractions have `coupled_sampling.testing.RationalProvider`.

Nothing is drawn twice. Each uniform is known only to an interval, and each question about it splits the interval at the
law's cumulative sums (`coupled_sampling.testing.exact.memory`). So a rule that uses a uniform a second time gets what
production would give it, and is seen to be biased if it is.

The shared draw of a position is one more uniform number, which persists through all rounds. That is exact for any vocabulary, and
it proves the *sharing*: the second answer is conditional on the first. (In production the shared draw is a Gumbel argmax. Both are
functions of the law and of noise that belongs to the position; losslessness may use nothing else.)

What it does not see: a generator whose separate uniforms are not independent. That is a claim about the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import from_host, to_host
from coupled_sampling.contracts import Array
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose, Sites
from coupled_sampling.testing.arguments import (
    check_callable,
    check_choice,
    check_count,
    check_law,
    check_sequence,
    check_tokens,
    check_tolerance,
    shown,
)
from coupled_sampling.testing.exact.enumeration import (
    Chooser,
    ExactLaw,
    PathEstimate,
    Probability,
    enumerate_paths,
    estimate_paths,
)
from coupled_sampling.testing.exact.memory import UniformMemory

__all__ = ["EnumeratingNoise", "autoregressive_law", "exact_law", "expected_paths", "joint_law", "total_variation"]

Output = TypeVar("Output", bound=Hashable)
NextLaw = Callable[[tuple[int, ...]], Sequence[Any] | NDArray[Any]]
"""The law (V,) of the next token given all tokens before it, as floats or fractions."""

Arithmetic = Literal["float", "rational"]


def _kept(value: Any) -> Probability:
    """Fractions as they are, the rest in float64."""
    return value if isinstance(value, Fraction) else float(value)


def _exactly(value: Any) -> Probability:
    """A fraction of exactly this value."""
    return value if isinstance(value, Fraction) else Fraction(float(value))


MOST_LENGTH = 10_000
"""Tokens of an output, so that what cannot end is refused."""
_MOST_OUTPUTS = 1_000_000

_NUMBERS: dict[str, Callable[[Any], Probability]] = {"float": _kept, "rational": _exactly}

_WORDS: dict[Purpose, str] = {
    Purpose.ACCEPT: "draft's own uniform gives token {}",
    Purpose.RESIDUAL: "corrected to token {}",
    Purpose.REDRAFT: "redrafted as token {}",
    Purpose.PROPOSE: "first guess is token {}",
}


class EnumeratingNoise:
    """A `Noise` that explores every outcome; made by `exact_law`, one for each path.

    As in production there is one uniform for each (seed, sequence, position, round, purpose), and one shared draw for each (seed,
    sequence, position). Asked again about the same one, it answers in accordance with what it has said
    (`coupled_sampling.testing.exact.memory`).

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, exact_law, random_table
    >>> kinds = set()
    >>> def run(noise):
    ...     kinds.add(type(noise).__name__)
    ...     model = TableProvider(random_table(0, 2), 2)
    ...     return tuple(generate(model, [[0]], length=2, method="sjd", window=2, noise=noise).tokens[0].tolist())
    >>> round(sum(exact_law(run).values()), 9), kinds
    (1.0, {'EnumeratingNoise'})
    """

    def __init__(self, chooser: Chooser, number: Callable[[Any], Probability] = _kept) -> None:
        if not hasattr(chooser, "choose"):
            raise InvalidArgument(f"chooser is {shown(chooser)}, expected one with a method choose, see Chooser")
        check_callable("number", number, 1)
        self._number = number
        self._memory = UniformMemory(chooser)

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """See `Noise.bernoulli`: whether the uniform lies below ``probability``."""
        chances, wanted = _questions("probability", probability, sites, where, 2)
        words = ("draft accepted", "draft refused") if _checked_purpose(purpose) is Purpose.ACCEPT else ("yes", "no")
        answers = np.zeros(wanted.shape, bool)
        for b in range(wanted.shape[0]):
            for j in np.flatnonzero(wanted[b]).tolist():
                chance = min(max(self._number(chances[b, j]), 0), 1)  # a ratio above 1 is certain, as for u < ratio
                text = partial(_say, sites, b, j, words)
                answers[b, j] = self._memory.choose(_owner(sites, b, j, purpose), [chance, 1 - chance], text) == 0
                if leading and not answers[b, j]:
                    break
        return from_host(answers, probability)

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """See `Noise.categorical`: between which cumulative sums the uniform lies."""
        all_weights, wanted = _questions("weights", weights, sites, where, 3)
        words = _WORDS[_checked_purpose(purpose)]
        answers = np.zeros(wanted.shape, np.int64)
        for b, j in np.argwhere(wanted).tolist():
            own = [self._number(weight) for weight in all_weights[b, j]]
            text = partial(_say, sites, b, j, words)
            answers[b, j] = self._memory.choose(_owner(sites, b, j, purpose), own, text)
        return from_host(answers, weights)

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """See `Noise.shared`: between which cumulative sums the position's own uniform lies."""
        laws, wanted = _questions("law", law, sites, where, 3)
        answers = np.zeros(wanted.shape, np.int64)
        for b, j in np.argwhere(wanted).tolist():
            own = [self._number(chance) for chance in laws[b, j]]
            text = partial(_say, sites, b, j, "shared draw gives token {}")
            answers[b, j] = self._memory.choose(_owner(sites, b, j, None), own, text)
        return from_host(answers, law)

    def forget(self, seed: int, sequence: int) -> None:
        """See `Noise.forget`. Nothing is forgotten: production would draw the same numbers from the same counter again."""


def _owner(sites: Sites, row: int, slot: int, purpose: Purpose | None) -> tuple[int, ...]:
    """Whose uniform it is: the five numbers of production's counter, or three of them for the shared draw."""
    position = int(sites.seed[row]), int(sites.sequence[row]), int(sites.position[row, slot])
    return position if purpose is None else (*position, int(sites.round[row]), int(purpose))


def _checked_purpose(purpose: Any) -> Purpose:
    if isinstance(purpose, bool) or purpose not in tuple(Purpose):
        raise InvalidArgument(f"purpose is {shown(purpose)}, expected one of {', '.join(map(str, Purpose))}")
    return Purpose(purpose)


def _questions(name: str, values: Any, sites: Any, where: Any, axes: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """``values`` (B, n) or (B, n, V) and ``where`` (B, n) on the host."""
    if not isinstance(sites, Sites):
        raise InvalidArgument(f"sites is {shown(sites)}, expected coupled_sampling.noise.Sites")
    expected = sites.position.shape
    found = []
    for label, array, count in ((name, values, axes), ("where", where, 2)):
        if getattr(array, "ndim", None) != count or tuple(array.shape[:2]) != expected:
            what = getattr(array, "shape", None)
            raise InvalidArgument(
                f"{label} is {shown(array) if what is None else f'an array {tuple(what)}'}, expected an array of {count} axes "
                f"that begin with {expected}, the rows and slots of sites"
            )
        found.append(to_host(array))
    return found[0], found[1]


def _say(sites: Sites, row: int, slot: int, words: str | tuple[str, str], answer: int) -> str:
    """What an answer means, in words."""
    what = words.format(answer) if isinstance(words, str) else words[answer]
    return f"sequence {sites.sequence[row]}, round {sites.round[row]}, position {sites.position[row, slot]}: {what}"


def exact_law(
    run: Callable[[Noise], Output], *, max_paths: int = 100_000, arithmetic: Arithmetic = "float"
) -> ExactLaw[Output]:
    """The exact law of what ``run`` returns.

    Parameters
    ----------
    run
        Runs the decoder once, from the start, drawing through the noise it is given and in no other way; returns
        something hashable, such as a tuple of tokens.
    max_paths
        Refuse beyond this many.
    arithmetic
        "rational" computes in fractions, for models whose laws are (`RationalProvider`); floats are taken at their exact value.

    Returns
    -------
    ExactLaw
        Probability of every output; they sum to one, up to rounding where laws are floats.

    Raises
    ------
    InvalidArgument
        ``arithmetic`` is neither; there are more than ``max_paths`` paths, and the message estimates how many; or ``run`` is not a
        function of its noise alone, and asks something else when it is given the same answers again.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation
    >>> table = random_table(0, 2)
    >>> def run(noise):
    ...     tokens = generate(TableProvider(table, 2), [[0]], length=3, method="scd-maximal", window=3, noise=noise).tokens
    ...     return tuple(tokens[0].tolist())
    >>> total_variation(exact_law(run), autoregressive_law(table, [0], 3)) < 1e-12
    True
    """
    number = _NUMBERS[check_choice("arithmetic", arithmetic, _NUMBERS)]
    check_callable("run", run, 1)
    return enumerate_paths(lambda chooser: run(EnumeratingNoise(chooser, number)), max_paths=max_paths)


def expected_paths(run: Callable[[Noise], object], *, probes: int = 100, seed: int = 0) -> PathEstimate:
    """How many paths `exact_law` would take for ``run``, estimated from ``probes`` random ones.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> from coupled_sampling.testing.exact.laws import expected_paths
    >>> def run(noise):
    ...     generate(TableProvider(random_table(0, 2), 2), [[0]], length=3, method="ar", noise=noise)
    >>> expected_paths(run).paths  # two tokens, three times
    8.0
    """
    check_callable("run", run, 1)
    return estimate_paths(lambda chooser: run(EnumeratingNoise(chooser)), probes=probes, seed=seed)


def autoregressive_law(
    next_law: NextLaw, prompt: Sequence[int], length: int, stop: Sequence[int] = ()
) -> dict[tuple[int, ...], Probability]:
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

    Raises
    ------
    InvalidArgument
        An argument cannot work, or ``next_law`` gives no law.

    Examples
    --------
    >>> from coupled_sampling.testing import autoregressive_law
    >>> autoregressive_law(lambda context: [0.25, 0.75], prompt=[0], length=2)
    {(0, 0): 0.0625, (0, 1): 0.1875, (1, 0): 0.1875, (1, 1): 0.5625}
    """
    check_callable("next_law", next_law, 1)
    prompt, stop = check_tokens("prompt", prompt), check_tokens("stop", stop)
    length = check_count("length", length, 0, MOST_LENGTH)
    open_ends: dict[tuple[int, ...], Probability] = {(): 1}
    ended: dict[tuple[int, ...], Probability] = {}
    for _ in range(length):
        grown: dict[tuple[int, ...], Probability] = {}
        for tokens, probability in open_ends.items():
            context = (*prompt, *tokens)
            for token, chance in enumerate(check_law(f"next_law({context})", next_law(context))):
                if chance > 0:
                    home = ended if token in stop else grown
                    home[(*tokens, token)] = probability * (
                        chance if isinstance(chance, Fraction | int) else float(chance)
                    )
        open_ends = grown
        if len(open_ends) + len(ended) > _MOST_OUTPUTS:
            raise InvalidArgument(
                f"there are more than {_MOST_OUTPUTS} outputs of length {length}; use a smaller vocabulary or length"
            )
    return {**ended, **open_ends}


def joint_law(laws: Sequence[Mapping[Output, Probability]]) -> dict[tuple[Output, ...], Probability]:
    """The law of independent outputs, one of each of ``laws``, side by side.

    Examples
    --------
    >>> from coupled_sampling.testing import joint_law
    >>> joint_law([{"a": 0.5, "b": 0.5}, {"c": 1}])
    {('a', 'c'): 0.5, ('b', 'c'): 0.5}
    """
    for i, law in enumerate(
        check_sequence("laws", laws, "a list of laws, each a mapping from outputs to probabilities")
    ):
        check_probabilities(f"laws[{i}]", law)
    return {
        tuple(output for output, _ in outputs): prod((chance for _, chance in outputs), start=1)
        for outputs in itertools.product(*(law.items() for law in laws))
    }


def total_variation(first: Mapping[Output, Probability], second: Mapping[Output, Probability]) -> Probability:
    """Total variation distance: half the sum of absolute differences; 0 for equal laws, 1 for laws without a common output.

    Exact, a `fractions.Fraction`, where both laws are.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from coupled_sampling.testing import total_variation
    >>> total_variation({0: Fraction(1, 2), 1: Fraction(1, 2)}, {0: Fraction(1, 4), 1: Fraction(3, 4)})
    Fraction(1, 4)
    """
    check_probabilities("first", first)
    check_probabilities("second", second)
    distance: Probability = Fraction(0)
    for output in {**first, **second}:
        distance = distance + abs(probability_of(first, output) - probability_of(second, output))
    return distance / 2


def check_probabilities(name: str, law: Any) -> None:
    """Refuse what is no mapping from outputs to probabilities; a part of a law is one, so they need not sum to one."""
    if not isinstance(law, Mapping):
        raise InvalidArgument(f"{name} is {shown(law)}, expected a mapping from outputs to probabilities")
    for output, chance in law.items():
        check_tolerance(f"{name}[{shown(output)}]", chance)


def probability_of(law: Mapping[Output, Probability], output: Output) -> Probability:
    """What ``law`` gives ``output``; 0 where it does not know it."""
    return law[output] if output in law else Fraction(0)
