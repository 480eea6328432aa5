"""Where randomness comes from: counter-based, a pure function of five numbers, frozen.

Noise belongs to (seed, sequence, position, round, purpose) and never to a window slot, a batch row or a global
stream. So a sequence's tokens do not depend on the batch it shares, on the window, or on the order of requests.

The layout
----------
Philox 4x64 with 10 rounds (Salmon et al. 2011; `numpy.random.Philox`). All numbers are unsigned 64-bit words.

======================== ================ ===================================== ===================================
what                     key              counter words 0, 1, 2, 3              output
======================== ================ ===================================== ===================================
uniforms of a position   (seed, sequence) (position + 1, round, 0, 0)           word w is the uniform of purpose w
Gumbel noise             (seed, sequence) (token // 4 + 1, position, 1, 0)      word token % 4
======================== ================ ===================================== ===================================

A uniform is ``(word >> 11) * 2**-53``, in [0, 1). The Gumbel variable of a word is ``-log(-log(u))`` with
``u = ((word >> 12) + 0.5) * 2**-52``, in the open interval (0, 1). The "+ 1" is there because NumPy advances the counter
before it makes a block. A test holds known answers: changing any of this breaks every seed anyone has kept.

What a step may ask
-------------------
Three questions only, see `Noise`. Whoever answers them by exploring every outcome instead of drawing one turns any
decoder into its exact output law (`coupled_sampling.testing`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from coupled_sampling.arrays import from_host, namespace
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.draws import categorical, race

__all__ = ["CounterNoise", "Noise", "Purpose", "Sites", "gumbel", "race_weights", "uniforms"]


class Purpose(IntEnum):
    """What a uniform is for: at most one draw per position, round and purpose."""

    ACCEPT = 0
    RESIDUAL = 1
    REDRAFT = 2
    PROPOSE = 3


class Sites(NamedTuple):
    """Where draws are wanted: whose noise, which position, which round. Numpy; B rows of n sites."""

    seed: NDArray[np.uint64]
    """(B,)."""
    sequence: NDArray[np.uint64]
    """(B,)."""
    round: Integers
    """(B,)."""
    position: Integers
    """(B, n), consecutive along a row."""
    valid: NDArray[np.bool_]
    """(B, n) sites at which a draw may be asked for; they are consecutive along a row."""


class Noise(Protocol):
    """The only three things a decoder may ask of randomness.

    ``where`` (bool (B, n), of any array library) marks the sites whose answer will be used; answers elsewhere mean nothing.
    """

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """True with ``probability`` (B, n), independently: bool (B, n).

        With ``leading``, answers to the right of a row's first False are not used either.
        """
        ...

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """A token of probability proportional to ``weights`` (B, n, V), independently: int64 (B, n)."""
        ...

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """Each position's persistent draw under ``law`` (B, n, V): int64 (B, n).

        Asked again for the same position, in any round and under any law, it uses the same noise.
        """
        ...

    def forget(self, seed: int, sequence: int) -> None:
        """The sequence has ended: nothing more will be asked for it."""
        ...


def _words(seed: int, sequence: int, counter: tuple[int, int, int], count: int) -> NDArray[np.uint64]:
    key = np.array([seed, sequence], np.uint64)
    words = Philox(key=key, counter=np.array([*counter, 0], np.uint64)).random_raw(count)
    return np.asarray(words, np.uint64)


def uniforms(seed: int, sequence: int, round_: int, first: int, count: int) -> NDArray[np.float64]:
    """The uniforms of ``count`` positions from ``first`` on: float64 (count, 4) in [0, 1), one column per `Purpose`."""
    words = _words(seed, sequence, (first, round_, 0), 4 * count)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64).reshape(count, 4)


def race_weights(seed: int, sequence: int, position: int, vocab_size: int) -> NDArray[np.float64]:
    """exp of the position's Gumbel noise: float64 (V,), one over independent standard exponential variables."""
    words = _words(seed, sequence, (0, position, 1), vocab_size)
    # The 52 bits become the mantissa of a float in [1, 2), which gives the same numbers as (bits + 0.5) * 2**-52.
    words >>= np.uint64(12)
    words |= np.uint64(0x3FF0000000000000)
    values = words.view(np.float64)
    values -= 1 - 2.0**-53
    np.log(values, out=values)
    return np.divide(-1.0, values, out=values)


def gumbel(seed: int, sequence: int, position: int, vocab_size: int) -> NDArray[np.float64]:
    """The position's Gumbel noise: float64 (V,) independent standard Gumbel variables."""
    return np.log(race_weights(seed, sequence, position, vocab_size))


class _Races:
    """The race weights of one sequence's positions, kept while they are asked for."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, Array]] = {}

    def take(self, seed: int, sequence: int, round_: int, positions: Integers, law: Array) -> list[Array]:
        """Weights (V,) for each of ``positions``, in the library and type of ``law``."""
        vocab_size = law.shape[-1]
        taken = []
        for position in positions.tolist():
            kept = self._rows.get(position)
            if kept is not None and kept[1].dtype == law.dtype and kept[1].shape[0] == vocab_size:
                weights = kept[1]
            else:
                weights = from_host(race_weights(seed, sequence, position, vocab_size), law, law.dtype)
            self._rows[position] = (round_, weights)
            taken.append(weights)
        for position in [p for p, (used, _) in self._rows.items() if used < round_ - 1]:
            del self._rows[position]
        return taken


class CounterNoise:
    """Noise for production: each draw is a pure function of (seed, sequence, position, round, purpose).

    It holds no state but a cache of the Gumbel noise of positions asked for in the last two rounds.
    """

    def __init__(self) -> None:
        self._races: dict[tuple[int, int], _Races] = {}
        self._uniforms: dict[tuple[int, int], tuple[tuple[int, int, int], NDArray[np.float64]]] = {}

    def _uniform(self, sites: Sites, purpose: Purpose) -> NDArray[np.float64]:
        """Uniforms float64 (B, n) of one purpose; a step's three purposes share one generator call per row."""
        rows, count = sites.position.shape
        drawn = np.zeros((rows, count))
        for b in np.flatnonzero(sites.valid.any(axis=1)).tolist():
            owner = (int(sites.seed[b]), int(sites.sequence[b]))
            asked = (int(sites.round[b]), int(sites.position[b, 0]), count)
            cached = self._uniforms.get(owner)
            if cached is None or cached[0] != asked:
                cached = (asked, uniforms(*owner, *asked))
                self._uniforms[owner] = cached
            drawn[b] = cached[1][:, purpose]
        return drawn

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """See `Noise.bernoulli`: uniform < probability."""
        return from_host(self._uniform(sites, purpose), probability) < probability

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """See `Noise.categorical`: inverse CDF of the uniform."""
        return categorical(weights, from_host(self._uniform(sites, purpose), weights))

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """See `Noise.shared`: argmax(law * exp(g)) with the position's Gumbel noise g."""
        xp = namespace(law)
        blank: Any = None
        stacked = []
        for b, valid in enumerate(sites.valid):
            slots = np.flatnonzero(valid)
            first, end = (int(slots[0]), int(slots[-1]) + 1) if slots.size else (0, 0)
            if slots.size < valid.size and blank is None:
                blank = xp.ones_like(law[0, 0, ...])
            owner = (int(sites.seed[b]), int(sites.sequence[b]))
            own = (
                self._races.setdefault(owner, _Races()).take(
                    *owner, int(sites.round[b]), sites.position[b, first:end], law
                )
                if slots.size
                else []
            )
            stacked.append(xp.stack([blank] * first + own + [blank] * (valid.size - end), axis=0))
        weights = stacked[0][None, ...] if len(stacked) == 1 else xp.stack(stacked, axis=0)
        return race(law, weights)

    def forget(self, seed: int, sequence: int) -> None:
        """Drop the sequence's cached noise."""
        self._races.pop((seed, sequence), None)
        self._uniforms.pop((seed, sequence), None)
