"""Whether a bundle that was just written gives the logits that it should.

The exporter runs no model. Whoever wants a check hands over the function that opens bundles, an `Opener`; what it opens is
compared with the reference in numpy before the bundle gets its name.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import LogitsProvider, RequestObserver
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rounded import rounded_model
from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.export.graphs.weights import WeightSource
from coupled_sampling.requests import Request

__all__ = ["Opener", "check_opener", "check_reference", "check_stored"]

_CHECKED_TOKENS = 8
"""Tokens whose logits are compared with the reference."""

_TOLERANCE = 1e-3


class Opener(Protocol):
    """What opens a bundle to check it: `coupled_sampling.backends.open_model`, or a function of one's own.

    Examples
    --------
    >>> from coupled_sampling.backends import OrtProvider
    >>> from coupled_sampling.export.check import Opener
    >>> def on_the_cpu(bundle, *, rows):
    ...     return OrtProvider.open(bundle, rows)
    >>> opener: Opener = on_the_cpu  # to pass as ``check`` to `export_checkpoint`
    """

    def __call__(self, bundle: Bundle, *, rows: int) -> LogitsProvider:
        """A provider of ``bundle`` that holds ``rows`` sequences."""
        ...


def check_opener(check: Opener | None) -> None:
    """Refuse what cannot open a bundle before an export is begun.

    Raises
    ------
    InvalidArgument
        ``check`` is neither a function nor None.
    """
    if check is not None and not callable(check):
        raise InvalidArgument(
            f"check is {check!r}, expected what opens a bundle, such as coupled_sampling.backends.open_model, or None for no check"
        )


def check_reference(
    description: DecoderDescription, weights: WeightSource, provider: LogitsProvider, *, exact: bool
) -> float:
    """Largest difference of ``provider``'s logits from `reference_logits`, in standard deviations of a position's logits.

    A few random tokens are scored in two windows, so that the second one needs the state of the first.

    Parameters
    ----------
    description, weights
        As for `coupled_sampling.export.reference_logits`.
    provider
        What should give the same logits.
    exact
        Whether its weights are ``weights`` as they are, so that a difference of more than rounding is a fault.

    Raises
    ------
    CheckpointError
        ``exact`` is set, and they differ by more.
    """
    count = min(_CHECKED_TOKENS, description.positions)
    tokens = np.random.default_rng(0).integers(0, description.vocab_size, count)
    if description.pictures is not None:  # by chance none would begin
        tokens[count // 4] = description.pictures.begin
    half = count // 2
    condition = _condition(description, tokens, half)
    if isinstance(provider, RequestObserver):
        provider.begin(0, Request(_prompt(description, tokens), length=1, condition=condition))
    expected = reference_logits(description, weights, tokens, condition=condition)
    found = np.concatenate(
        [
            # The next call may reuse the memory of this one's logits.
            np.array(to_host(provider.forward(tokens[None, start:end], np.array([start])))[0], np.float64)
            for start, end in ((0, half), (half, count))
            if end > start
        ]
    )
    known = np.isfinite(expected)
    spread = np.where(known, expected, 0).std(axis=-1, keepdims=True, where=known)
    errors = np.where(known, np.abs(found - np.where(known, expected, 0)), 0)
    # A token that is never generated must be impossible in the graph, too.
    errors[~known & ~np.isneginf(found)] = np.inf
    largest = float((errors / spread).max())
    if exact and not largest < _TOLERANCE:
        raise CheckpointError(
            f"logits of the graph differ from the reference by {largest:.2g} standard deviations, expected less than "
            f"{_TOLERANCE}; nothing was written. Please report this with the checkpoint's configuration"
        )
    return largest


def _condition(description: DecoderDescription, tokens: NDArray[np.int64], vectors: int) -> NDArray[np.float64] | None:
    """Random vectors, if the model takes some: fewer than it could. Where they have positions, the first half of ``tokens`` stand
    for them, behind those that nobody attends to."""
    wanted = description.condition
    if wanted is None:
        return None
    given = max(1, wanted.length - vectors // 2)
    if wanted.token is not None:
        tokens[tokens == wanted.token] = description.generated_first
        # A position that stands for none holds zeros, whose logits are all alike and compare with nothing.
        tokens[wanted.length - given : min(vectors, wanted.length)] = wanted.token
    return np.random.default_rng(1).normal(size=(given, wanted.size))


def _prompt(description: DecoderDescription, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """``tokens`` as a prompt with as many as vectors need."""
    missing = 0 if description.prefix is None else max(0, description.prefix.length - len(tokens))
    return np.pad(tokens, (0, missing), constant_values=description.generated_first)


def check_stored(
    description: DecoderDescription, weights: WeightSource, storage: Storage, provider: LogitsProvider
) -> float:
    """As `check_reference`, of a graph that was written with ``storage``.

    Where that rounds weights and computes in float32, the graph must give the logits of the rounded weights; what is returned is
    the difference from the logits of ``weights`` as they are.

    Parameters
    ----------
    description, weights, provider
        As for `check_reference`.
    storage
        How the graph keeps ``weights``.

    Raises
    ------
    CheckpointError
        Logits are not those of the weights as they were stored.
    """
    rounds = storage.weights != "float32"
    if rounds and storage.compute == "float32":
        check_reference(*rounded_model(description, weights, storage), provider, exact=True)
    return check_reference(description, weights, provider, exact=not rounds)
