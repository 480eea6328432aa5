"""Does an encoder-decoder model's decoder keep the contract? Asked at opening, by running it on random tokens and states.

Beside what is asked of any exported decoder (`coupled_sampling.backends.foreign.checks`: windows are causal, and are scored the
same however tokens are cut) there are three questions of its own:

- how ``encoder_attention_mask`` counts. Most graphs want one entry for each of the encoder's states; Moonshine's want one for each
  sample of sound, 384 to a state. Found by trying: hiding the last state must give what leaving it out gives;
- whether the graph that goes on belongs to the one that reads the encoder's output: both must give the same logits;
- whether the encoder's output is looked at. If another one gave the same logits, every request would get the same text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.foreign.checks import check_decoder, difference_of_logits, tolerance_of
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.requests import Request

if TYPE_CHECKING:
    from coupled_sampling.backends.foreign.encoder_decoder import EncoderDecoderProvider

__all__ = ["check_encoder_decoder", "check_opening_tolerance"]

LARGEST_TOLERANCE = 0.2
"""A wrong mask changes the logits of random tokens by about their own spread; no tolerance may come near."""

STRIDES = (1, 384)
"""Entries of ``encoder_attention_mask`` for one of the encoder's states, as they are tried."""

STATES, SIZE = 8, 16
"""How many states are tried, and how wide they are, where the graph does not say."""


def check_opening_tolerance(tolerance: float | None) -> None:
    """Refuse a tolerance beyond which a wrong mask would pass: `InvalidArgument`."""
    if tolerance is not None and not 0 < tolerance <= LARGEST_TOLERANCE:
        raise InvalidArgument(f"tolerance is {tolerance!r}, expected a number in (0, {LARGEST_TOLERANCE}], or None")


def check_encoder_decoder(provider: EncoderDecoderProvider, tolerance: float | None) -> None:
    """Find ``vocab_size`` and ``mask_stride``, then check a row: see above. Row 0 has begun a request afterwards.

    Raises
    ------
    ProviderError
        The graph cannot be run, or does not keep the contract; the message says which part.
    """
    limit = tolerance_of(provider, tolerance)
    random = np.random.default_rng(1)
    length, size = provider.graph.states
    states, other = random.normal(size=(2, length or STATES, size or SIZE))
    provider.vocab_size = _vocabulary(provider, states)
    if length is None and "encoder_attention_mask" in provider.graph.first_control:
        provider.mask_stride = _mask_stride(provider, states, limit)
    provider.begin(0, Request([0], length=1, condition=states))
    check_decoder(provider, tolerance)
    first, *_ = _first(provider, states, len(states) * provider.mask_stride)
    difference = difference_of_logits(provider.forward(np.zeros((1, 2), np.int64), np.zeros(1, np.int64)), first)
    if difference > limit:
        raise ProviderError(
            f"{provider.graph.path.name} does not go on like {provider.graph.first_path.name} in {provider.graph.path.parent}: "
            f"logits of the first tokens differ by {difference:.2g} of their spread, expected at most {limit:g}; take both from "
            "one export"
        )
    tokens = random.integers(0, provider.vocab_size, (1, min(4, provider.max_length)))
    logits = provider.forward(tokens, np.zeros(1, np.int64)).copy()
    provider.begin(0, Request([0], length=1, condition=other))
    if difference_of_logits(provider.forward(tokens, np.zeros(1, np.int64)), logits) <= limit:
        raise ProviderError(
            f"{provider.graph.path}: another encoder's output gives the same logits, expected that the decoder looks at it; "
            "export it again"
        )


def _vocabulary(provider: EncoderDecoderProvider, states: NDArray[np.float64]) -> int:
    logits, *caches = _first(provider, states, len(states))
    if logits.ndim != 3 or logits.shape[:2] != (1, 2):
        raise ProviderError(
            f"{provider.graph.path} gives logits {logits.shape} for a window of 2 tokens, expected (1, 2, vocabulary): checking a "
            "window of drafts needs the logits of every slot; use an export that keeps them"
        )
    for cache, found in zip(provider.graph.encoder_caches, caches, strict=True):
        if found.shape != (1, cache.heads, len(states), cache.size):
            raise ProviderError(
                f"{provider.graph.path}: {cache.present} is {found.shape} for {len(states)} states, expected "
                f"{(1, cache.heads, len(states), cache.size)}"
            )
    return int(logits.shape[-1])


def _mask_stride(provider: EncoderDecoderProvider, states: NDArray[np.float64], limit: float) -> int:
    """What hides the last state; 1 if nothing does, since a mask that is not looked at may have any length."""
    fewer, *_ = _first(provider, states[:-1], len(states) - 1)
    for stride in STRIDES:
        try:
            found, *_ = _first(provider, states, len(states) * stride, hidden=stride)
        except ProviderError:
            continue  # a length that the graph cannot use
        if difference_of_logits(found, fewer) <= limit:
            return stride
    return STRIDES[0]


def _first(
    provider: EncoderDecoderProvider, states: NDArray[np.float64], entries: int, hidden: int = 0
) -> list[NDArray[np.float32]]:
    mask = np.ones((1, entries), np.int64)
    mask[:, entries - hidden :] = 0
    return provider.read_first(states.astype(provider.states_type)[None], mask)
