"""Does an encoder-decoder model's decoder keep the contract? Asked at opening, by running it on random tokens and states.

Beside what is asked of any exported decoder (`coupled_sampling.backends.foreign.checks`: windows are causal, and are scored the
same however tokens are cut) there are four questions of its own:

- how ``encoder_attention_mask`` counts. Most graphs want one entry for each of the encoder's states; Moonshine's want one for each
  sample of sound, 384 to a state. Found by trying: hiding half of the states must give what leaving them out gives;
- which tokens are not counted. M2M100 and NLLB number a window's tokens without those that fill up (``pad_token_id``), so that what
  stands behind one in the same window has another position than in a window of its own, which is how ordinary decoding runs it. A
  window is cut in two behind such a token, and every way to cut it gives the same again. Found by trying;
- whether the graph that goes on belongs to the one that reads the encoder's output: both must give the same logits;
- whether the encoder's output is looked at. If another one gave the same logits, every request would get the same text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.foreign.checks import (
    UNCHANGED,
    check_decoder,
    difference_of_logits,
    tolerance_of,
)
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.rewriting import Changes
from coupled_sampling.errors import ProviderError
from coupled_sampling.requests import Request

if TYPE_CHECKING:
    from coupled_sampling.backends.foreign.encoder_decoder import EncoderDecoderProvider

__all__ = ["check_encoder_decoder"]

STRIDES = (1, 384)
"""Entries of ``encoder_attention_mask`` for one of the encoder's states, as they are tried."""

TRIES = 3
"""Sets of states that are tried: an attention may look at next to nothing of one of them."""

STATES, SIZE = 8, 16
"""How many states are tried, and how wide they are, where the graph does not say."""


def check_encoder_decoder(
    provider: EncoderDecoderProvider, tolerance: float | None, changes: Changes = UNCHANGED
) -> None:
    """Find ``vocab_size``, ``mask_stride`` and ``breaks``, then check a row: see above. Row 0 has begun a request afterwards.

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
        provider.mask_stride = _mask_stride(provider, random, limit)
    provider.begin(0, Request([0], length=1, condition=states))
    provider.breaks = _breaks(provider, limit)
    check_decoder(provider, tolerance, changes)
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


def _mask_stride(provider: EncoderDecoderProvider, random: np.random.Generator, limit: float) -> int:
    """What hides half of the states; 1 if nothing does, since a mask that is not looked at may have any length."""
    for _ in range(TRIES):
        states = random.normal(size=(STATES, provider.graph.states[1] or SIZE))
        kept = STATES // 2
        # So few ones are enough for either way to count: of samples, the first stands for all states.
        (every, *_), (fewer, *_) = (_first(provider, some, len(some)) for some in (states, states[:kept]))
        if difference_of_logits(every, fewer) <= limit:
            continue  # nothing to see: other states may be looked at more
        for stride in STRIDES:
            try:
                found, *_ = _first(provider, states, STATES * stride, hidden=(STATES - kept) * stride)
            except ProviderError:
                continue  # a length that the graph cannot use
            if difference_of_logits(found, fewer) <= limit:
                return stride
    return STRIDES[0]


def _breaks(provider: EncoderDecoderProvider, limit: float) -> tuple[int, ...]:
    """Tokens behind which a window must be cut, among the first two and the one that ``config.json`` says fills up."""
    plain = provider.vocab_size - 1
    pad = Configuration.beside(provider.graph.path).model.get("pad_token_id")
    asked = {0, 1, pad if isinstance(pad, int) else 0} & {*range(plain)}
    found = tuple(token for token in sorted(asked) if _is_not_counted(provider, [plain, token, plain], limit))
    # Where no window can be cut anywhere it is no question of tokens, and `check_decoder` says what it is.
    return () if found and _is_not_counted(provider, [plain] * 3, limit) else found


def _is_not_counted(provider: EncoderDecoderProvider, tokens: list[int], limit: float) -> bool:
    window, start = np.array([tokens], np.int64), np.zeros(1, np.int64)
    whole = provider.forward(window, start)[:, -1].copy()
    provider.forward(window[:, :-1], start)
    return difference_of_logits(provider.forward(window[:, -1:], start + 2)[:, 0], whole) > limit


def _first(
    provider: EncoderDecoderProvider, states: NDArray[np.float64], entries: int, hidden: int = 0
) -> list[NDArray[np.float32]]:
    mask = np.ones((1, entries), np.int64)
    mask[:, entries - hidden :] = 0
    return provider.read_first(states.astype(provider.states_type)[None], mask)
