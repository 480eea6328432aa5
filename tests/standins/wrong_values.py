"""What people pass by mistake in place of an argument."""

import warnings
from fractions import Fraction

import numpy as np

from coupled_sampling.errors import CoupledSamplingError

VALUES = [
    None, -1, 0, 1.5, float("nan"), float("inf"), True, "x", "", [], {}, [None], [[1], [2, 3]], [1.5], ["a"], object(),
    np.array([1, 2]), np.array([[0.5]]), np.float32(3), 10**30, b"ab", {1, 2}, (), range(0), int, Exception("e"),
    np.array(["a"]), [10**30], [True], np.array(5), Fraction(1, 2),
]  # fmt: skip


def each_argument(**calls):
    """From ``label``: (function, arguments that are right), to ``label argument``: a function of a value in its place."""
    return {
        f"{label} {name}": lambda value, call=call, right=right, name=name, **more: call(
            **{**right, name: value}, **more
        )
        for label, (call, right) in calls.items()
        for name in right
    }


def refusals(call):
    """How many of `VALUES` are refused by ``call``; anything but the library's own errors comes up."""
    refused = 0
    for value in VALUES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                call(value)
            except CoupledSamplingError:
                refused += 1
    return refused
