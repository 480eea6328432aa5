"""The proof that a decoder is lossless, on one small model: its exact law of whole outputs against the chain rule's.

`assert_lossless_exactly` runs the shipped decoder, or yours, on every path and compares. When it fails it shows the output
whose probability is most wrong and a shortest path of choices that leads to an output that comes too often, which is
usually enough to see what is kept that should not be, or drawn twice.

It proves what it enumerates: this model, these prompts, this window. Try several, small ones first; mistakes of the
kinds known so far show on vocabularies of two and outputs of three tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from coupled_sampling.branching import Branching
from coupled_sampling.contracts import CoupledStep, LogitsProvider, Sampling
from coupled_sampling.drafting import Drafting, Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.generation import generate
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method
from coupled_sampling.noise import Noise
from coupled_sampling.testing.arguments import (
    check_branches,
    check_callable,
    check_choice,
    check_count,
    check_decoding,
    check_kind,
    check_method,
    check_model,
    check_prompts,
    check_sequence,
    check_tokens,
    check_tolerance,
)
from coupled_sampling.testing.exact.enumeration import ExactLaw, Probability
from coupled_sampling.testing.exact.laws import (
    MOST_LENGTH,
    Arithmetic,
    NextLaw,
    autoregressive_law,
    exact_law,
    joint_law,
    probability_of,
    total_variation,
)
from coupled_sampling.testing.exact.rational_models import RationalProvider
from coupled_sampling.testing.exact.sampled import sampled_law
from coupled_sampling.testing.worlds import TableProvider

__all__ = ["Decode", "assert_lossless_exactly", "shipped_decoder"]

Decode = Callable[[LogitsProvider, Noise, Sequence[Sequence[int]], Sequence[int]], Sequence[Any]]
"""A decoder: (model, noise, prompts, lengths) to the generated tokens of each prompt."""

_ROOM = 16
"""Positions that the model holds beyond the longest sequence, so that windows may be wider than what is left."""

_FILLED = Repeat(fill=0)

Outputs = tuple[tuple[int, ...], ...]


def shipped_decoder(
    method: str | Method,
    *,
    window: int = 3,
    drafting: str | Drafting = _FILLED,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    branches: int | Branching = 0,
    step: Callable[[LogitsProvider, str | Method, Noise], CoupledStep] = HostStep,
) -> Decode:
    """This library's own loop as a `Decode`, with any coupled step in it.

    Parameters
    ----------
    method, window, drafting, stop, sampling, branches
        As for `coupled_sampling.generate`. By default drafts repeat the token before, and begin with token 0: short outputs need
        all the drafts that they can get, from the first step on.
    step
        Makes the coupled step; put yours here.

    Examples
    --------
    >>> from coupled_sampling.testing import assert_lossless_exactly, random_table, shipped_decoder
    >>> decoder = shipped_decoder("sjd", window=2)
    >>> len(assert_lossless_exactly(decoder, random_table(0, 2), [[0]], vocab_size=2, length=3))
    8

    Windows with branches, chosen by a rule that may be yours:

    >>> from coupled_sampling.branching import BestFirst
    >>> decoder = shipped_decoder("scd-match", window=4, branches=BestFirst(2, candidates=2))
    >>> len(assert_lossless_exactly(decoder, random_table(0, 2), [[0]], vocab_size=2, length=3))
    8
    """
    check_method("method", method)
    check_decoding(window, drafting, sampling)
    check_branches(branches)
    check_callable("step", step, 3)
    stop = check_tokens("stop", stop)

    def decode(
        model: LogitsProvider, noise: Noise, prompts: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> Sequence[Any]:
        made = step(model, method, noise)
        check_model("what step returned", made, "step")
        return generate(
            made,
            prompts,
            length=list(lengths),
            window=window,
            drafting=drafting,
            stop=stop,
            sampling=sampling or Sampling(),
            noise=noise,
            branches=branches,
        ).tokens

    return decode


class Enumeration(TypedDict, total=False):
    """How `assert_lossless_exactly` enumerates, as keywords."""

    arithmetic: Arithmetic
    tolerance: float | None
    max_paths: int
    sampling: Sampling | None


class _Enumeration(NamedTuple):
    """`Enumeration` with its defaults; it takes no other names."""

    arithmetic: Arithmetic = "float"
    tolerance: float | None = None
    max_paths: int = 100_000
    sampling: Sampling | None = None


def assert_lossless_exactly(
    decode: Decode,
    next_law: NextLaw,
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    length: int | Sequence[int],
    stop: Sequence[int] = (),
    rows: int | None = None,
    **enumeration: Unpack[Enumeration],
) -> ExactLaw[Outputs]:
    """Refuse a decoder whose exact joint law of outputs is not that of autoregressive sampling.

    Parameters
    ----------
    decode
        The decoder; `shipped_decoder` makes one from a method's name.
    next_law
        The model: the law (V,) of the next token given all tokens before it.
    prompts
        Prompts to decode together; their outputs must be independent, and are tested jointly.
    vocab_size
        V.
    length
        Tokens to generate, for all prompts or each.
    stop
        Tokens that end a sequence; ``decode`` must be told of them, too.
    rows
        Rows of the model; default one per prompt. Fewer makes prompts wait and rows be used again.
    **enumeration
        ``arithmetic="float"``: "rational" needs a ``next_law`` of fractions and gives distances without rounding.
        ``tolerance=None``: largest total variation that passes; 1e-12, or exactly 0 for rational arithmetic.
        ``max_paths=100_000``: refuse beyond this many.
        ``sampling=None``: processors and what else makes the target law of ``next_law``; ``decode`` must be told of it, too.

    Returns
    -------
    ExactLaw
        The decoder's law, from tuples of one output per prompt.

    Raises
    ------
    AssertionError
        The laws differ.
    InvalidArgument
        There are too many paths, or the arguments make no model.

    Examples
    --------
    In fractions the two laws are equal, not nearly equal:

    >>> from coupled_sampling.testing import assert_lossless_exactly, rational_table, shipped_decoder
    >>> law = assert_lossless_exactly(
    ...     shipped_decoder("scd-maximal"), rational_table(0, 2), [[0]], vocab_size=2, length=3, arithmetic="rational"
    ... )
    >>> sum(law.values())
    Fraction(1, 1)

    A decoder that always repeats its prompt is caught, and told where:

    >>> def stuck(model, noise, prompts, lengths):
    ...     return [[prompt[-1]] * length for prompt, length in zip(prompts, lengths)]
    >>> assert_lossless_exactly(stuck, lambda context: [0.5, 0.5], [[0]], vocab_size=2, length=1)
    Traceback (most recent call last):
    AssertionError: not lossless: total variation 0.5 from autoregressive sampling, expected at most 1e-12...
    """
    arithmetic, tolerance, max_paths, sampling = _Enumeration(**enumeration)
    check_callable("decode", decode, 4)
    check_callable("next_law", next_law, 1)
    check_choice("arithmetic", arithmetic, ("float", "rational"))
    sampling = Sampling() if sampling is None else sampling
    check_kind("sampling", sampling, Sampling)
    vocab_size = check_count("vocab_size", vocab_size)
    prompts, stop = check_prompts("prompts", prompts, vocab_size), check_tokens("stop", stop, vocab_size)
    lengths = _lengths(length, len(prompts))
    rows = len(prompts) if rows is None else check_count("rows", rows)
    longest = max(len(prompt) + count for prompt, count in zip(prompts, lengths, strict=True))
    kind = TableProvider if arithmetic == "float" else RationalProvider
    limit = 1e-12 if arithmetic == "float" else 0
    if tolerance is not None:
        limit = check_tolerance("tolerance", tolerance)

    def run(noise: Noise) -> Outputs:
        model = kind(next_law, vocab_size, rows, longest + _ROOM)  # type: ignore[arg-type]
        return _outputs(decode(model, noise, prompts, lengths), len(prompts))

    law = exact_law(run, max_paths=max_paths, arithmetic=arithmetic)
    pairs = zip(prompts, lengths, strict=True)
    laws = [(sampled_law(next_law, sampling, prompt, arithmetic=arithmetic), prompt, count) for prompt, count in pairs]
    expected = joint_law([autoregressive_law(after, prompt, count, stop) for after, prompt, count in laws])
    distance = total_variation(law, expected)
    if not distance <= limit:
        raise AssertionError(_report(law, expected, distance, limit))
    return law


def _lengths(length: Any, count: int) -> list[int]:
    """Tokens to generate for each of ``count`` prompts."""
    if not isinstance(length, Sequence | np.ndarray) or isinstance(length, str):
        return [check_count("length", length, 0, MOST_LENGTH)] * count
    lengths = [
        check_count(f"length[{i}]", one, 0, MOST_LENGTH)
        for i, one in enumerate(check_sequence("length", length, "integers"))
    ]
    if len(lengths) != count:
        raise InvalidArgument(f"length has {len(lengths)} entries for {count} prompts; give one for all, or one each")
    return lengths


def _outputs(outputs: Any, count: int) -> Outputs:
    """What a decoder returned, as tuples; refused unless it is one list of tokens for each of ``count`` prompts."""
    listed = check_sequence("what decode returned", outputs, f"the generated tokens of each of {count} prompts")
    if len(listed) != count:
        raise InvalidArgument(f"decode returned {len(listed)} outputs for {count} prompts, expected one each")
    return tuple(tuple(check_tokens(f"output {i} of decode", tokens)) for i, tokens in enumerate(listed))


def _report(law: ExactLaw[Outputs], expected: Mapping[Outputs, Probability], distance: Probability, limit: Any) -> str:
    differences: dict[Outputs, Probability] = {
        output: probability_of(law, output) - probability_of(expected, output) for output in {**law, **expected}
    }
    worst = max(differences, key=lambda output: float(abs(differences[output])))
    lines = [
        f"not lossless: total variation {_written(distance)} from autoregressive sampling, expected at most {limit}",
        f"most wrong: {_named(worst)} has probability {_written(probability_of(law, worst))} by this decoder and "
        f"{_written(probability_of(expected, worst))} by autoregressive sampling",
    ]
    too_often = max(differences, key=lambda output: float(differences[output]))
    if too_often != worst:
        lines.append(
            f"most too frequent: {_named(too_often)}, {_written(law[too_often])} instead of "
            f"{_written(probability_of(expected, too_often))}"
        )
    path = law.shortest_path(too_often)
    lines.append(f"a shortest path to {_named(too_often)} ({law.paths} paths in all):")
    lines += [f"  {choice.text}  (probability {_written(choice.probability)})" for choice in path]
    return "\n".join(lines)


def _named(outputs: Outputs) -> str:
    return str(outputs[0] if len(outputs) == 1 else outputs)


def _written(probability: Probability) -> str:
    return f"{probability} = {float(probability):.6g}" if isinstance(probability, Fraction) else f"{probability:.6g}"
