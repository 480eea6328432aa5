"""Decoding in rational arithmetic, so that two equal laws differ by exactly nothing.

A `RationalProvider` returns logits that are *symbols*: an array of logarithms of fractions, which remembers the fractions.
Subtracting two of them divides the fractions, and their softmax is a law in fractions. The array carries its own namespace,
as the array API standard provides for, so the shipped step runs on it unchanged. Every number in it is then exact: total
variation comes out as 0 and not as 1e-16.

What is run so is the whole of `coupled_sampling.couplings`, the lines that numpy's users run, and `coupled_sampling.target`. What
is not: numpy's own branches in `coupled_sampling.arrays`, `coupled_sampling.draws` and `coupled_sampling.draft_laws` (the two
look-ups of `DraftLaws`), and `coupled_sampling.noise.CounterNoise`. Those are proved to 1e-12 in floats, or held to the
general ones.

Temperatures are reciprocals of integers (a power of a fraction is a fraction); guidance scales are integers. Everything
that would need a number which is no fraction is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["RationalArray"]


class _Rational:
    """The one floating type of `RationalArray`; its name says so to whoever asks for a floating type."""

    def __repr__(self) -> str:
        return "float (rational)"


RATIONAL = _Rational()


class RationalArray:
    """An array of fractions, of logarithms of fractions, of integers or of booleans.

    Parameters
    ----------
    values
        Numpy: objects (`fractions.Fraction` or int), int64 or bool.
    logarithms
        Whether each element is the logarithm of the fraction held.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import RationalProvider, rational_table
    >>> RationalProvider(rational_table(0, 2), 2).forward(np.array([[0]]), np.array([0])).shape
    (1, 1, 2)
    """

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    device = "cpu"

    def __init__(self, values: NDArray[Any], logarithms: bool = False) -> None:
        self.values = values
        self.logarithms = logarithms

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        """`RATIONAL`, or numpy's integer or boolean type."""
        return RATIONAL if self.values.dtype == object else self.values.dtype

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if not self.logarithms:
            return self.values
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.values.astype(float)))

    def __repr__(self) -> str:
        return f"RationalArray({'log ' if self.logarithms else ''}{self.values!r})"

    def __getitem__(self, key: Any) -> RationalArray:
        return _wrap(self.values[key], self.logarithms)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __invert__(self) -> RationalArray:
        return RationalArray(~self.values)

    def __and__(self, other: RationalArray) -> RationalArray:
        return RationalArray(self.values & other.values)

    def __or__(self, other: RationalArray) -> RationalArray:
        return RationalArray(self.values | other.values)

    def __add__(self, other: Any) -> RationalArray:
        return _combine(self, other, operator.add, operator.mul)

    def __sub__(self, other: Any) -> RationalArray:
        return _combine(self, other, operator.sub, _ratio)

    def __rsub__(self, other: Any) -> RationalArray:
        return _combine(_array(other, self), self, operator.sub, _ratio)

    def __mul__(self, other: Any) -> RationalArray:
        if self.logarithms:
            return self._power(other)
        return _combine(self, other, operator.mul, None)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> RationalArray:
        if self.logarithms:
            return self._power(1 / Fraction(other))
        return _combine(self, other, operator.truediv, None)

    def _power(self, exponent: Any) -> RationalArray:
        power = Fraction(exponent) if isinstance(exponent, int | float | Fraction) else None
        if power is None or power.denominator != 1:
            raise InvalidArgument(
                f"log-probabilities were scaled by {exponent}, expected an integer: other powers of a fraction are no "
                "fractions. Use temperatures that are one over an integer and guidance scales that are integers"
            )
        return RationalArray(_each(lambda value: value ** int(power) if value else value, self.values), True)

    def __lt__(self, other: Any) -> RationalArray:
        return _compare(self, other, operator.lt)

    def __le__(self, other: Any) -> RationalArray:
        return _compare(self, other, operator.le)

    def __gt__(self, other: Any) -> RationalArray:
        return _compare(self, other, operator.gt)

    def __ge__(self, other: Any) -> RationalArray:
        return _compare(self, other, operator.ge)

    def __eq__(self, other: object) -> RationalArray:  # type: ignore[override]
        return _compare(self, other, operator.eq)

    def __ne__(self, other: object) -> RationalArray:  # type: ignore[override]
        return _compare(self, other, operator.ne)

    def __neg__(self) -> RationalArray:
        return 0 - self


def _wrap(values: Any, logarithms: bool = False) -> RationalArray:
    """An array of numpy's ``values``, a scalar or an array."""
    if isinstance(values, np.ndarray):
        return RationalArray(values, logarithms)
    held = np.empty((), object if isinstance(values, int | Fraction) and not isinstance(values, bool) else None)
    if not isinstance(values, Fraction | int) or isinstance(values, bool):
        held = np.asarray(values)
    held[()] = values
    return RationalArray(held, logarithms)


def _array(other: Any, beside: Any = None) -> RationalArray:
    """Arrays as they are; numbers as fractions, or as integers ``beside`` an array of integers."""
    if isinstance(other, RationalArray):
        return other
    integers = isinstance(beside, RationalArray) and beside.dtype is not RATIONAL
    if isinstance(other, np.ndarray | bool | np.bool_ | np.integer) or (integers and isinstance(other, int)):
        return RationalArray(np.asarray(other))
    return _wrap(Fraction(other))


def _each(function: Callable[..., Any], *arrays: NDArray[Any]) -> NDArray[Any]:
    """``function`` of the elements, which numpy broadcasts against each other; an array of objects."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


def _ratio(first: Fraction, second: Fraction) -> Fraction:
    if not second:
        raise InvalidArgument(
            "a logit of -inf was subtracted; expected logits that are finite where they are subtracted"
        )
    return Fraction(first) / second


def _combine(
    first: RationalArray, second: Any, plain: Callable[..., Any], of_logarithms: Callable[..., Any] | None
) -> RationalArray:
    other = _array(second, first)
    if first.logarithms != other.logarithms or (first.logarithms and of_logarithms is None):
        raise InvalidArgument("fractions and logarithms of fractions were mixed; expected two arrays of one kind")
    if first.dtype is not RATIONAL and other.dtype is not RATIONAL:
        return RationalArray(plain(first.values, other.values))
    function = of_logarithms if first.logarithms and of_logarithms is not None else plain
    return RationalArray(_each(function, first.values, other.values), first.logarithms)


def _compare(first: RationalArray, second: Any, function: Callable[..., Any]) -> RationalArray:
    other = _array(second, first)
    return RationalArray(np.asarray(function(first.values, other.values), bool))


def _asarray(values: Any, *, dtype: Any = None, device: Any = None) -> RationalArray:
    return values if isinstance(values, RationalArray) else RationalArray(np.asarray(values))


def _astype(array: RationalArray, dtype: Any, *, copy: bool = True) -> RationalArray:
    if dtype is not RATIONAL:
        return RationalArray(array.values.astype(dtype))
    if array.dtype is RATIONAL:
        return array
    return RationalArray(_each(lambda value: Fraction(int(value)), array.values))


def _filled(value: int) -> Callable[..., RationalArray]:
    def make(shape: int | tuple[int, ...], *, dtype: Any = RATIONAL, device: Any = None) -> RationalArray:
        rational = dtype is RATIONAL
        return RationalArray(np.full(shape, Fraction(value) if rational else value, object if rational else dtype))

    return make


def _full(shape: int | tuple[int, ...], value: Any, *, dtype: Any = RATIONAL, device: Any = None) -> RationalArray:
    if value == -np.inf:  # what forbids a token: the logarithm of zero
        return RationalArray(np.full(shape, Fraction(0), object), True)
    return _filled(value)(shape, dtype=dtype)


def _full_like(array: RationalArray, value: Any) -> RationalArray:
    if value == -np.inf:
        return _full(array.shape, value)
    return RationalArray(np.full(array.shape, _array(value).values[()], array.values.dtype))


def _zeros_like(array: RationalArray) -> RationalArray:
    """Zeros; the logarithm of one where ``array`` holds logarithms."""
    return RationalArray(_full_like(array, int(array.logarithms)).values, array.logarithms)


def _isfinite(array: RationalArray) -> RationalArray:
    return array > 0 if array.logarithms else RationalArray(np.ones(array.shape, bool))


def _where(condition: RationalArray, first: Any, second: Any) -> RationalArray:
    left, right = _array(first, second), _array(second, first)
    if RATIONAL in (left.dtype, right.dtype):
        left, right = (side if side.dtype is RATIONAL else _astype(side, RATIONAL) for side in (left, right))
    if left.logarithms != right.logarithms:
        raise InvalidArgument("where: fractions and logarithms of fractions were mixed; expected arrays of one kind")
    return RationalArray(np.where(condition.values, left.values, right.values), left.logarithms)


def _exp(array: RationalArray) -> RationalArray:
    if not array.logarithms:
        raise InvalidArgument("exp of fractions is no fraction; expected logarithms of fractions, which logits are")
    return RationalArray(array.values)


def _log(array: RationalArray) -> RationalArray:
    if array.logarithms:
        raise InvalidArgument("log of logarithms of fractions is no fraction; expected fractions, which laws are")
    return RationalArray(array.values, True)


def _same(function: Callable[..., Any]) -> Callable[..., RationalArray]:
    """A numpy function that moves elements or picks among them: logarithms stay logarithms."""

    def call(array: RationalArray, *arguments: Any, **options: Any) -> RationalArray:
        others = (other.values if isinstance(other, RationalArray) else other for other in arguments)
        return _wrap(function(array.values, *others, **options), array.logarithms)

    return call


def _joined(function: Callable[..., Any]) -> Callable[..., RationalArray]:
    def call(arrays: list[RationalArray] | tuple[RationalArray, ...], *, axis: int = 0) -> RationalArray:
        return RationalArray(function([array.values for array in arrays], axis=axis), arrays[0].logarithms)

    return call


def _plain(function: Callable[..., Any]) -> Callable[..., RationalArray]:
    """A numpy function of fractions, integers or booleans; not of logarithms."""

    def call(array: RationalArray, *arguments: Any, **options: Any) -> RationalArray:
        if array.logarithms:
            raise InvalidArgument(f"{function.__name__} of logarithms of fractions is no fraction")
        others = (other.values if isinstance(other, RationalArray) else other for other in arguments)
        return _wrap(function(array.values, *others, **options))

    return call


def _index(function: Callable[..., Any]) -> Callable[..., RationalArray]:
    def call(array: RationalArray, **options: Any) -> RationalArray:
        return RationalArray(np.asarray(function(array.values, **options)))

    return call


def _arange(*bounds: int, dtype: Any = np.int64, device: Any = None) -> RationalArray:
    return RationalArray(np.arange(*bounds, dtype=dtype))


NAMESPACE = ModuleType("rational")
"""What the core uses of the array API, for `RationalArray`."""
vars(NAMESPACE).update(
    inf=np.inf,
    float32=RATIONAL,
    float64=RATIONAL,
    int64=np.dtype(np.int64),
    int8=np.dtype(np.int8),
    bool=np.dtype(bool),
    finfo=lambda dtype: SimpleNamespace(eps=0),
    asarray=_asarray,
    astype=_astype,
    arange=_arange,
    zeros=_filled(0),
    ones=_filled(1),
    zeros_like=_zeros_like,
    ones_like=lambda array: _full_like(array, 1),
    full=_full,
    full_like=_full_like,
    where=_where,
    isfinite=_isfinite,
    isinf=lambda array: ~_isfinite(array),
    exp=_exp,
    log=_log,
    abs=_plain(np.abs),
    sum=_plain(np.sum),
    cumulative_sum=_plain(np.cumsum),
    cumulative_prod=_plain(np.cumprod),
    maximum=_plain(np.maximum),
    max=_same(np.max),
    min=_same(np.min),
    sort=_same(np.sort),
    flip=_same(np.flip),
    reshape=_same(np.reshape),
    take=_same(np.take),
    take_along_axis=_same(np.take_along_axis),
    any=_plain(np.any),
    argmax=_index(np.argmax),
    argsort=_index(np.argsort),
    stack=_joined(np.stack),
    concat=_joined(np.concatenate),
)
