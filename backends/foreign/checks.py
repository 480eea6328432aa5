"""Does a graph that somebody else exported keep the contract? Asked at opening, by running it on a few random tokens.

A decoder can be wrong for us and right for its author, who runs a prompt and then one token at a time: logits for the last token
only, a causal mask that forgets the past when a window has several slots, padding that is attended to, activations quantised with
one scale per call, so that a draft changes the logits before it. None of these raises an error; all of them change the law
of the output. So the same tokens are scored in several ways, and the logits must agree:

    difference = max |a - b| / standard deviation of a  <=  tolerance

Both are over tokens that can be drawn. Some graphs give all others the least number that there is, next to which every difference
would be small.

Random tokens and short pasts are where a wrong mask shows most: it changes logits by about their own spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, check_flag, check_number, in_one_line
from coupled_sampling.backends.foreign.graph import call_graph
from coupled_sampling.backends.foreign.rewriting import Changes
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.trees import Tree

if TYPE_CHECKING:
    from coupled_sampling.backends.foreign.graph import DecoderGraph
    from coupled_sampling.backends.foreign.provider import ConcatenatedProvider

__all__ = [
    "check_decoder",
    "check_opening",
    "check_padding",
    "check_trees",
    "difference_of_logits",
    "probe_graph",
    "tolerance_of",
]

LENGTH = 12
"""Positions that are tried."""

SHORTEST = 6

TRIES = 3
"""Other tokens at the right that are tried: a scale taken from a whole window shows only if they change it."""

UNCHANGED = Changes()

LARGEST_TOLERANCE = 0.2
"""A wrong mask changes the logits of random tokens by about their own spread; no tolerance may come near."""

DEFAULT_TOLERANCE = {"float32": 1e-3, "float16": 3e-2}


class Checked(Protocol):
    """What `check_decoder` runs: a provider over a ``graph`` that has a ``path``, a ``cache_type`` and a ``logits_type``."""

    graph: Any
    vocab_size: int
    max_length: int

    def forward(self, tokens: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.float32]: ...


class TreesChecked(Checked, Protocol):
    """The same with trees, for `check_trees`."""

    def forward_tree(
        self, tokens: NDArray[np.int64], start: NDArray[np.int64], parents: NDArray[np.int64], rows: range
    ) -> NDArray[np.float32]: ...


def probe_graph(graph: DecoderGraph, session: Any) -> tuple[int, bool]:
    """What two plain calls show: the vocabulary's size, and whether the graph writes into a cache that is longer than needed.

    Raises
    ------
    ProviderError
        The graph cannot be run, or gives logits or caches of another shape than it should.
    """
    try:
        logits, *presents = call_graph(graph, session, past=0, columns=0, width=3)
    except Exception as error:
        raise ProviderError(
            f"{graph.path} cannot run a window of 3 tokens without a past, expected logits for all three: {in_one_line(error)}"
        ) from error
    if logits.ndim != 3 or logits.shape[:2] != (1, 3):
        raise ProviderError(
            f"{graph.path} gives logits {logits.shape} for a window of 3 tokens, expected (1, 3, vocabulary): checking a window "
            "of drafts needs the logits of every slot; use an export that keeps them (ONNX Runtime GenAI's option that "
            "prunes the last layer's head to one token must be off)"
        )
    for cache, present in zip(graph.caches, presents, strict=True):
        if present.shape != (1, cache.heads, 3, cache.size):
            raise ProviderError(
                f"{graph.path}: {cache.present} is {present.shape} after 3 tokens, expected {(1, cache.heads, 3, cache.size)}"
            )
    try:
        _, *presents = call_graph(graph, session, past=2, columns=8, width=3)
    except Exception:
        # A graph that concatenates finds its mask too short. Its exceptions share no base class but Exception.
        return int(logits.shape[-1]), False
    return int(logits.shape[-1]), all(present.shape[2] == 8 for present in presents)


BARRED = 500.0
"""A logit so far below its slot's largest is no token's that could be drawn: exp(-500) is 1e-217."""


def check_opening(max_length: int | None, tolerance: float | None, widen: bool) -> None:
    """Refuse what no decoder can be opened with: a length that is none, or a tolerance beyond which a wrong mask would pass.

    Raises
    ------
    InvalidArgument
        ``max_length`` is no positive integer, ``tolerance`` no number in (0, `LARGEST_TOLERANCE`], or ``widen`` no bool.
    """
    if max_length is not None:
        check_count("max_length", max_length)
    expected = f"a number in (0, {LARGEST_TOLERANCE}], or None"
    if tolerance is not None and not 0 < check_number("tolerance", tolerance, expected) <= LARGEST_TOLERANCE:
        raise InvalidArgument(f"tolerance is {tolerance!r}, expected {expected}")
    check_flag("widen", widen)


def tolerance_of(provider: Checked, given: float | None) -> float:
    """The largest difference of logits that passes."""
    graph = provider.graph
    return given or max(DEFAULT_TOLERANCE[str(dtype)] for dtype in (graph.cache_type, graph.logits_type))


def difference_of_logits(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference as a fraction of the spread, of tokens that can be drawn; infinite if there is NaN, or no such token.

    What only one of the two bars counts as different by what it is lower.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    tops = found.max(axis=-1, keepdims=True), expected.max(axis=-1, keepdims=True)
    if not np.isfinite(tops).all():  # the largest of what has NaN is NaN
        return float("inf")
    possible = expected > tops[1] - BARRED
    compared = possible | (found > tops[0] - BARRED)
    differences = np.abs(found[compared] - expected[compared])
    return float(differences.max() / max(float(expected[possible].std()), 1e-30))


def _random_tokens(provider: Checked, rows: int) -> NDArray[np.int64]:
    length = min(LENGTH, provider.max_length)
    if length < SHORTEST:
        raise InvalidArgument(
            f"max_length is {provider.max_length}, expected at least {SHORTEST} to try the graph with"
        )
    return np.random.default_rng(0).integers(0, provider.vocab_size, (rows, length))


def _score(provider: Checked, tokens: NDArray[np.int64], *start: int) -> NDArray[np.float32]:
    return provider.forward(tokens, np.array(start, np.int64)).copy()


def check_decoder(provider: Checked, tolerance: float | None, changes: Changes = UNCHANGED) -> None:
    """One row: windows are causal, and any windows and any rollback give the logits of one long window.

    What is known of the graph's ``changes`` names the cause in the message.

    Raises
    ------
    ProviderError
        They do not; the message says which.
    """
    limit = tolerance_of(provider, tolerance)
    tokens, *others = _random_tokens(provider, 1 + TRIES)[:, None]
    length, half = tokens.shape[1], tokens.shape[1] // 2
    whole = _score(provider, tokens, 0)
    advice = _advice(changes, limit)

    def require(found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
        difference = difference_of_logits(found, expected)
        if not difference <= limit:
            raise ProviderError(
                f"{provider.graph.path}: {what}: logits differ by {difference:.2g} of their spread, expected at most {limit:g}; "
                f"{advice}"
            )

    later = "tokens further right in the same window change the logits before them"
    for other in others:
        mixed = np.concatenate([tokens[:, :half], other[:, half:]], axis=1)
        require(_score(provider, mixed, 0)[:, :half], whole[:, :half], later)
    # The row now holds other tokens from half on, and each window goes back over some of them.
    for first, last in (
        (half, length - 1),
        (half - 2, half + 1),
        (half + 1, half + 2),
        (half + 2, length),
        (1, 2),
        (2, 3),
    ):
        with_past = (
            f"a window of {last - first} tokens after a past of {first} is not scored like the whole sequence at once"
        )
        require(_score(provider, tokens[:, first:last], first), whole[:, first:last], with_past)
    for other in others:
        _score(provider, tokens[:, :half], 0)
        changed = np.concatenate([tokens[:, half : half + 1], other[:, half + 1 :]], axis=1)
        require(_score(provider, changed, half)[:, :1], whole[:, half : half + 1], f"after a past of {half}, {later}")


def _advice(changes: Changes, limit: float) -> str:
    """What may be the cause of differences, and what to do about it."""
    if changes.rounding and changes.widening:
        return f"{changes.cause()}, and cannot be widened: use a float or weights-only (q4) export"
    if changes.rounding:
        return f"{changes.cause()}: add --widen (in Python widen=True), with which they compute with floats"
    return (
        "use an export whose masks are right for windows of several tokens, and weights quantised without activations (q4, "
        f"MatMulNBits), fp16 or fp32; if roundings do it, tolerance, now {limit:g}, accepts results that are only nearly lossless"
    )


def check_padding(provider: ConcatenatedProvider, tolerance: float | None) -> str:
    """Several rows in one call, pasts padded to the longest: empty if they are scored like rows alone, else what happened."""
    rows = min(3, provider.batch_size)
    tokens = _random_tokens(provider, rows)
    length = tokens.shape[1]
    limit = tolerance_of(provider, tolerance)
    whole = np.concatenate([_score(provider, tokens[row : row + 1], 0) for row in range(rows)])
    before, provider.batching = provider.batching, "padded"
    try:
        _score(provider, tokens[:, : length - 2], *[0] * rows)
        for start in ([length - 2, 0, 2], [1, length - 3, length - 2], [0, 1, length - 2], [3, 3, 3]):
            for width in (2, 1):
                logits = _score(provider, np.stack([tokens[b, start[b] :][:width] for b in range(rows)]), *start[:rows])
                expected = np.stack([whole[b, start[b] :][:width] for b in range(rows)])
                difference = difference_of_logits(logits, expected)
                if not difference <= limit:
                    return f"rows padded to one length differ by {difference:.2g} of the logits' spread from rows alone"
    except ProviderError as error:
        return f"rows padded to one length are refused: {error}"
    finally:
        provider.batching = before
    return ""


def check_trees(provider: TreesChecked, tolerance: float | None) -> None:
    """Windows that are trees: every slot is scored like its path alone, and the leading ones leave their state behind.

    Raises
    ------
    ProviderError
        They do not; the message says which.
    """
    limit = tolerance_of(provider, tolerance)
    tokens, other = _random_tokens(provider, 2)
    past = len(tokens) // 2 - 1
    # Three tokens in a row, and two others that follow the first of them, one of which has a child in either branch.
    parents = np.array([[-1, 0, 1, 0, 3, 1]])
    slots = np.concatenate([tokens[past : past + 3], other[past + 1 : past + 3], other[past : past + 1]])[None]
    start, tree = np.array([past]), Tree.of(parents)
    _score(provider, tokens[None, :past], 0)
    alone = [_score(provider, slots[:, tree.path(0, slot)], past)[:, -1] for slot in range(slots.shape[1])]
    found = provider.forward_tree(slots, start, parents, range(1)).copy()
    after = _score(provider, tokens[None, past + 3 :], past + 3)
    whole = _score(provider, tokens[None], 0)[:, past + 3 :]
    for what, scored, expected in (
        ("a slot of a tree is not scored like its path alone", found, np.stack(alone, axis=1)),
        ("a window behind a tree is not scored like the whole sequence at once", after, whole),
    ):
        difference = difference_of_logits(scored, expected)
        if not difference <= limit:
            raise ProviderError(
                f"{provider.graph.path}: {what}: logits differ by {difference:.2g} of their spread, expected at most {limit:g}; "
                "open it without trees"
            )
