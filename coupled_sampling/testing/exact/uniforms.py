"""Exact laws of code that draws uniforms of its own: third-party samplers, stateful ones, reference implementations.

Such code gets a generator whose uniforms are not numbers but *unknown* numbers: an `UnknownUniform` knows only the interval
it lies in. Comparing it with a threshold asks a question with two answers, whose probabilities are the two parts of the
interval; the answer narrows the interval, so later comparisons of the same uniform are consistent. Scaling and shifting
it, as in ``u * total < cumulative``, keep it what it is. That is all that samplers by inverse CDF, by rejection or by
coupling do with a uniform, so enumerating the answers gives their exact law without touching their code.

What it cannot follow: a uniform that is squared, hashed, turned into a float or compared with another unknown. Those are
refused. Normal, exponential and Gumbel variables are not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import check_callable, check_count, check_law, check_sequence, shown
from coupled_sampling.testing.exact.enumeration import Chooser, ExactLaw, Probability, enumerate_paths

__all__ = ["EnumeratingGenerator", "UnknownUniform", "exact_law_from_uniforms"]

Output = TypeVar("Output", bound=Hashable)


class _Unknown:
    """A number, uniform on [0, 1), of which only an interval is known."""

    def __init__(self, chooser: Chooser, name: str) -> None:
        self._chooser = chooser
        self._name = name
        self._low: Probability = Fraction(0)
        self._high: Probability = Fraction(1)

    def below(self, threshold: Probability) -> bool:
        """Whether it lies below ``threshold``; asks if it may and may not."""
        if threshold <= self._low:
            return False
        if threshold >= self._high:
            return True
        share = (threshold - self._low) / (self._high - self._low)
        below = self._chooser.choose(
            [1 - share, share], lambda answer: f"{self._name} is {'below' if answer else 'not below'} {threshold}"
        )
        if below:
            self._high = threshold
        else:
            self._low = threshold
        return bool(below)


class UnknownUniform:
    """``scale * u + shift`` for an unknown uniform u: compare it with numbers or arrays, scale it, shift it.

    Examples
    --------
    >>> from coupled_sampling.testing import exact_law_from_uniforms
    >>> law = exact_law_from_uniforms(lambda generator: 2 * generator.random() + 1 < 1.5)
    >>> float(law[True])
    0.25
    """

    __array_ufunc__ = None  # numpy arrays leave arithmetic and comparisons to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, unknown: _Unknown, scale: Probability = 1, shift: Probability = 0) -> None:
        self._unknown, self._scale, self._shift = unknown, scale, shift

    def _less(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return np.array([self._less(value) for value in other.ravel()], bool).reshape(other.shape)
        if isinstance(other, UnknownUniform) and other._unknown is self._unknown:
            scale, shift = self._scale - other._scale, self._shift - other._shift
            return UnknownUniform(self._unknown, scale, shift)._less(0) if scale else shift < 0
        threshold = (_number(other, "compared with") - self._shift) / self._scale
        return self._unknown.below(threshold) == (self._scale > 0)

    def __lt__(self, other: Any) -> Any:
        return self._less(other)

    def __ge__(self, other: Any) -> Any:
        return np.logical_not(self._less(other)) if isinstance(other, np.ndarray) else not self._less(other)

    __le__, __gt__ = __lt__, __ge__  # equality has probability zero

    def __add__(self, other: Any) -> UnknownUniform:
        return UnknownUniform(self._unknown, self._scale, self._shift + _number(other, "added to"))

    def __mul__(self, other: Any) -> UnknownUniform:
        factor = _number(other, "multiplied by")
        if factor == 0 or factor in (np.inf, -np.inf):
            raise InvalidArgument(
                f"an unknown uniform was multiplied by {factor}; expected a finite factor that leaves it random"
            )
        return UnknownUniform(self._unknown, self._scale * factor, self._shift * factor)

    def __radd__(self, other: Any) -> UnknownUniform:
        return self.__add__(other)

    def __rmul__(self, other: Any) -> UnknownUniform:
        return self.__mul__(other)

    def __neg__(self) -> UnknownUniform:
        return UnknownUniform(self._unknown, -self._scale, -self._shift)

    def __sub__(self, other: Any) -> UnknownUniform:
        return self.__add__(-_number(other, "reduced by"))

    def __rsub__(self, other: Any) -> UnknownUniform:
        return UnknownUniform(self._unknown, -self._scale, _number(other, "taken from") - self._shift)

    def __truediv__(self, other: Any) -> UnknownUniform:
        divisor = _number(other, "divided by")
        if divisor == 0 or divisor in (np.inf, -np.inf):
            raise InvalidArgument(
                f"an unknown uniform was divided by {divisor}; expected a finite number that leaves it random"
            )
        return UnknownUniform(self._unknown, self._scale / divisor, self._shift / divisor)

    def _refuse(self, *_: object) -> NoReturn:
        raise InvalidArgument(
            "an unknown uniform was used as a number; expected comparisons with numbers, scaling and shifting only. "
            "Draw through coupled_sampling.Noise, or test this sampler with coupled_sampling.testing.equivalence_test"
        )

    __float__ = __int__ = __index__ = __bool__ = __complex__ = __pow__ = __eq__ = __ne__ = _refuse


def _number(value: Any, what: str) -> Probability:
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating) and not np.isnan(value):
        return float(value)
    raise InvalidArgument(f"an unknown uniform was {what} {shown(value)}; expected a number")


class EnumeratingGenerator:
    """Stands for a random generator: what `numpy.random.Generator` offers of uniforms and finite choices.

    Made by `exact_law_from_uniforms`, one for each path. Calling it draws one uniform, too.

    Examples
    --------
    >>> from coupled_sampling.testing import exact_law_from_uniforms
    >>> law = exact_law_from_uniforms(lambda generator: generator.choice(["a", "b"], p=[0.25, 0.75]))
    >>> law["b"]
    0.75
    """

    def __init__(self, chooser: Chooser) -> None:
        if not hasattr(chooser, "choose"):
            raise InvalidArgument(f"chooser is {shown(chooser)}, expected one with a method choose, see Chooser")
        self._chooser = chooser
        self._drawn = 0

    def random(self, size: int | tuple[int, ...] | None = None) -> UnknownUniform | NDArray[Any]:
        """One unknown uniform on [0, 1), or an array of objects of them."""
        if size is None:
            self._drawn += 1
            return UnknownUniform(_Unknown(self._chooser, f"uniform {self._drawn}"))
        for axis in size if isinstance(size, tuple) else (size,):
            check_count("size", axis, 0)
        drawn = np.empty(size, object)
        for index in np.ndindex(drawn.shape):
            drawn[index] = self.random()
        return drawn

    def __call__(self) -> UnknownUniform | NDArray[Any]:
        return self.random()

    def integers(self, low: int, high: int | None = None) -> int:
        """One integer in [low, high), or in [0, low)."""
        first, end = (0, low) if high is None else (low, high)
        for name, bound in (("low", first), ("high", end)):
            check_count(name, bound, -(2**63))
        if end <= first:
            raise InvalidArgument(f"integers({low}, {high}) has nothing to choose from")
        return first + self._chosen([Fraction(1, end - first)] * (end - first), first)

    def choice(self, options: int | Sequence[Any], p: Sequence[Any] | None = None) -> Any:
        """One of ``options``, or of 0, ..., ``options - 1``, with probabilities ``p``."""
        whole = isinstance(options, int | np.integer)
        values = (
            range(check_count("options", options))
            if whole
            else check_sequence("options", options, "a list, or a count")
        )
        if not values:
            raise InvalidArgument("options is empty, expected something to choose from")
        chances = [Fraction(1, len(values))] * len(values) if p is None else list(check_law("p", p, len(values)))
        return values[self._chosen(chances, 0)]

    def _chosen(self, chances: Sequence[Probability], first: int) -> int:
        self._drawn += 1
        name = f"draw {self._drawn}"
        return self._chooser.choose(chances, lambda answer: f"{name} is {first + answer}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InvalidArgument(
            f"the decoder called {name} of its random generator, which has no finite set of outcomes to enumerate; offered are "
            "random, integers and choice"
        )


def exact_law_from_uniforms(
    run: Callable[[EnumeratingGenerator], Output], *, max_paths: int = 100_000
) -> ExactLaw[Output]:
    """The exact law of what ``run`` returns, for code that draws uniforms from the generator it is given.

    Parameters
    ----------
    run
        Runs the sampler once, from the start; draws by ``generator.random()`` (or ``generator()``), ``integers`` or ``choice`` and
        in no other way, and keeps no state from one call to the next.
    max_paths
        Refuse beyond this many.

    Returns
    -------
    ExactLaw
        Probability of every output.

    Raises
    ------
    InvalidArgument
        There are more than ``max_paths`` paths, or a uniform is used in a way that cannot be followed.

    Examples
    --------
    >>> from coupled_sampling.testing import exact_law_from_uniforms
    >>> law = exact_law_from_uniforms(lambda generator: "heads" if generator.random() < 0.25 else "tails")
    >>> float(law["heads"])
    0.25
    """
    check_callable("run", run, 1)
    return enumerate_paths(lambda chooser: run(EnumeratingGenerator(chooser)), max_paths=max_paths)
