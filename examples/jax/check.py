"""Is the jitted loop the library's own decoder? Its logits are compared, and then every decision of every pass.

The library decodes the same pictures with ONNX Runtime, at the same seed. Where the two differ it must be a float tie: both
decisions are judged in float64, given how far the two models' logits may be apart (`coupled_sampling.testing.StepComparison`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from decode import State
from model import Params, Shape, empty_cache, forward

from coupled_sampling import CounterNoise, Decoder, LogitsProvider, Method, Outcome, Request, Window
from coupled_sampling.contracts import Runs
from coupled_sampling.drafting import Drafting
from coupled_sampling.testing import StepComparison, TieReport

TOLERANCE = 1e-4
"""How far logits may be apart."""


def logits_apart(params: Params, shape: Shape, provider: LogitsProvider, tokens: np.ndarray, window: int) -> float:
    """The largest difference of logits over ``tokens`` int (1, L), in windows that overlap: the last write wins."""
    cache, apart = empty_cache(shape, 1, shape.positions), 0.0
    step = jax.jit(forward, static_argnums=1)
    for start in range(0, tokens.shape[1] - window + 1, max(1, window - 3)):
        some, begin = tokens[:, start : start + window], np.array([start])
        logits, cache = step(params, shape, cache, jnp.asarray(some), jnp.asarray(begin))
        expected, found = np.asarray(provider.forward(some, begin)), np.asarray(logits)
        possible = np.isfinite(expected)  # the rest are tokens that are never generated
        if (np.isfinite(found) != possible).any():
            return float("inf")
        apart = max(apart, float(np.abs(found[possible] - expected[possible]).max()))
    return apart


def first_difference(
    decoded: State,
    row: int,
    provider: LogitsProvider,
    method: Method,
    request: Request,
    window: int,
    drafting: Drafting,
) -> TieReport | None:
    """Where the library first decides otherwise than ``decoded`` did for ``request`` in its ``row``; None if nowhere."""
    replay = _Replay(decoded, row, method, provider)
    comparison = StepComparison(provider, replay, logits_error=TOLERANCE)
    decoder = Decoder(comparison, window=window, drafting=drafting)
    decoder.add(request)
    while decoder.active or decoder.waiting:
        decoder.step()
        report = comparison.report()
        if report.examples:
            return report  # from here on the two have other drafts
    return None


class _Replay:
    """What one row of the jitted loop decided, as a step that the library's decoder asks window by window."""

    def __init__(self, decoded: State, row: int, method: Method, provider: LogitsProvider) -> None:
        self.method, self.vocab_size, self.batch_size = method, provider.vocab_size, 1
        self.noise = CounterNoise()
        self.max_length = self.max_window = provider.max_length
        self._tokens, self._moves = np.asarray(decoded.tokens)[:, row], np.asarray(decoded.moves)[:, row]

    @property
    def runs(self) -> Runs:
        return Runs("JAX")

    def close(self) -> None:
        pass

    def takes(self, request: Request) -> str | None:
        return None

    def begin(self, row: int, request: Request) -> None:
        pass

    def step(self, window: Window) -> Outcome:
        round_, first = int(window.round[0]), int(window.known[0]) - 1  # the slot that decides the first open position
        count = window.tokens.shape[1] - first
        tokens = np.zeros(window.tokens.shape, np.int64)
        tokens[0, first:] = self._tokens[round_, :count]
        return Outcome(tokens, self._moves[round_ : round_ + 1].astype(np.int64))
