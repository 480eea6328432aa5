"""The law that sampling settings make of a model's, one token at a time: the oracle for decoders that have processors.

Each law is asked for alone, with the tokens before it and no others. So it is what autoregressive sampling draws from, and a
processor that sees more in a window than the tokens before a slot makes another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import RowInfo, Sampling
from coupled_sampling.target import target_laws
from coupled_sampling.testing.arguments import check_callable, check_choice, check_kind, check_tokens
from coupled_sampling.testing.exact.laws import Arithmetic, NextLaw
from coupled_sampling.testing.exact.rational import RationalArray

__all__ = ["sampled_law"]


def sampled_law(
    next_law: NextLaw, sampling: Sampling, prompt: Sequence[int], *, arithmetic: Arithmetic = "float"
) -> NextLaw:
    """The law of the next token of a sequence, after ``sampling``.

    Parameters
    ----------
    next_law
        The model: the law (V,) of the next token given all tokens before it.
    sampling
        Processors and what else makes the target law.
    prompt
        What the sequence begins with; processors may look at it.
    arithmetic
        "rational" for a ``next_law`` of fractions; the processors must take them.

    Returns
    -------
    NextLaw
        It raises where there is no law, as the decoder does.

    Raises
    ------
    InvalidArgument
        An argument cannot work; the message names it.

    Examples
    --------
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.processors import AllowedTokens
    >>> from coupled_sampling.testing import sampled_law
    >>> only = Sampling(processors=(AllowedTokens([0, 1]),))
    >>> sampled_law(lambda context: [0.25, 0.25, 0.5], only, prompt=[2])((2,)).round(3).tolist()
    [0.5, 0.5, 0.0]
    """
    check_callable("next_law", next_law, 1)
    check_kind("sampling", sampling, Sampling)
    prompt = check_tokens("prompt", prompt)
    check_choice("arithmetic", arithmetic, ("float", "rational"))
    if sampling == Sampling():
        return next_law  # as it is, without the rounding of a logarithm
    info = RowInfo(seed=0, sequence=0, sampling=sampling.begin(np.asarray(prompt, np.int64)))

    def law(context: tuple[int, ...]) -> NDArray[Any]:
        logits = _logits(next_law(context), arithmetic)
        place = np.array([[len(context)]])
        made = target_laws(logits, [info], [np.array(context, np.int64)], place, np.ones((1, 1), bool))
        for error in (made.faults or {}).values():
            raise error
        found = made.laws[0, 0]
        return found.values if isinstance(found, RationalArray) else np.asarray(found)

    return law


def _logits(law: Any, arithmetic: Arithmetic) -> Any:
    """Logarithms (1, 1, V) of a ``law`` (V,)."""
    if arithmetic == "rational":
        held = np.empty((1, 1, len(law)), object)
        held[0, 0] = [Fraction(chance) for chance in law]
        return RationalArray(held, logarithms=True)
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(law, np.float64))[None, None]
