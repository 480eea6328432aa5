"""Where randomness comes from: counter-based, a pure function of five numbers, frozen.

Noise belongs to (seed, sequence, position, round, purpose) and never to a window slot, a batch row or a global
stream. So a sequence's tokens do not depend on the batch it shares or on the order of requests.

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
Three questions only, see `Noise`; and one more for guesses alone, `coupled_sampling.draws.RanksShared`. Whoever answers them by
exploring every outcome instead of drawing one turns any
decoder into its exact output law (`coupled_sampling.testing`).
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from coupled_sampling.arrays import filled, from_host, namespace, unit_interval
from coupled_sampling.contracts import Array, Sites
from coupled_sampling.draws import Noise, Purpose, categorical, race, ranked
from coupled_sampling.errors import InvalidArgument

__all__ = ["ArrayNoise", "CounterNoise", "Noise", "Purpose", "Sites", "race_weights", "uniforms"]


_PLACES = 16
"""How many sequences of one key are remembered at once."""


class _Generator(threading.local):
    """One generator per thread: to set its counter takes a sixth of the time of making another."""

    def __init__(self) -> None:
        self._philox = Philox(key=0)
        self._state = self._philox.state

    def words(self, seed: int, sequence: int, counter: tuple[int, int, int], count: int) -> NDArray[np.uint64]:
        """``count`` words from the block after ``counter`` on."""
        inner = self._state["state"]
        inner["key"][0], inner["key"][1] = seed, sequence
        inner["counter"][:3] = counter
        self._philox.state = self._state  # also drops words left over from the block before
        return np.asarray(self._philox.random_raw(count), np.uint64)


_GENERATOR = _Generator()


def _words(seed: int, sequence: int, counter: tuple[int, int, int], count: int) -> NDArray[np.uint64]:
    return _GENERATOR.words(seed, sequence, counter, count)


def uniforms(seed: int, sequence: int, round_: int, first: int, count: int) -> NDArray[np.float64]:
    """The uniforms of ``count`` positions from ``first`` on: float64 (count, 4) in [0, 1), one column per `Purpose`.

    Examples
    --------
    >>> from coupled_sampling.noise import Purpose, uniforms
    >>> of_positions = uniforms(seed=7, sequence=0, round_=2, first=4, count=3)
    >>> of_positions.shape
    (3, 4)
    >>> bool(of_positions[1, Purpose.ACCEPT] == uniforms(7, 0, 2, 5, 1)[0, Purpose.ACCEPT])  # of position 5, whichever came first
    True
    """
    words = _words(seed, sequence, (first, round_, 0), 4 * count)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64).reshape(count, 4)


def race_weights(seed: int, sequence: int, position: int, vocab_size: int) -> NDArray[np.float64]:
    """exp of the position's Gumbel noise: float64 (V,), one over independent standard exponential variables.

    Examples
    --------
    The weights are exp of Gumbel noise, so that the token with the largest product has the law:

    >>> import numpy as np
    >>> from coupled_sampling.noise import race_weights
    >>> law = np.array([0.1, 0.6, 0.3])
    >>> draws = [int(np.argmax(law * race_weights(0, 0, position, 3))) for position in range(1000)]
    >>> np.bincount(draws) / 1000
    array([0.103, 0.608, 0.289])
    """
    weights: NDArray[np.float64] = race_weights_between(seed, sequence, position, position + 1, vocab_size)[0]
    return weights


def race_weights_between(seed: int, sequence: int, first: int, end: int, vocab_size: int) -> NDArray[np.float64]:
    """The race weights (end - first, V) of positions ``first`` to ``end - 1``, made together: calls on short rows are dear."""
    words = np.empty((end - first, vocab_size), np.uint64)
    for row, position in enumerate(range(first, end)):
        words[row] = _words(seed, sequence, (0, position, 1), vocab_size)
    # The 52 bits become the mantissa of a float in [1, 2), which gives the same numbers as (bits + 0.5) * 2**-52.
    words >>= np.uint64(12)
    words |= np.uint64(0x3FF0000000000000)
    values = words.view(np.float64)
    values -= 1 - 2.0**-53  # the half unit keeps it above 0, where the logarithm is finite
    np.log(values, out=values)
    return np.divide(-1.0, values, out=values)


class _Races:
    """The race weights of one sequence's recent positions, as consecutive rows of one buffer.

    A window moves to the right, so rows are added at the end; when the buffer is full, those still asked for move to its front.
    """

    def __init__(self) -> None:
        self._buffer = np.empty((0, 0))
        self._first = 0
        self._count = 0

    @property
    def first(self) -> int:
        """The first position that is held."""
        return self._first

    def take(self, seed: int, sequence: int, first: int, end: int, like: NDArray[Any]) -> NDArray[Any]:
        """Weights (end - first, V) in the type of ``like`` (..., V); valid until the next call."""
        vocab_size = like.shape[-1]
        fits = self._buffer.shape[1] == vocab_size and self._buffer.dtype == like.dtype
        if not fits or not self._first <= first <= self._first + self._count:
            self._first, self._count = first, 0
        if not fits or end - self._first > len(self._buffer):
            kept = self._buffer[first - self._first : self._count] if fits else self._buffer[:0]
            roomy = fits and 2 * (end - first) <= len(self._buffer)
            # Twice what is asked for, so that rows move to the front once in a window's length and not in every step.
            buffer = self._buffer if roomy else np.empty((2 * (end - first), vocab_size), like.dtype)
            if len(kept):
                buffer[: len(kept)] = kept
            self._buffer, self._first, self._count = buffer, first, len(kept)
        begin, count = self._first + self._count, end - self._first
        if count > self._count:
            self._buffer[self._count : count] = race_weights_between(seed, sequence, begin, end, vocab_size)
            self._count = count
        return self._buffer[first - self._first : end - self._first]


class _DeviceRaces:
    """The same for arrays of other libraries, row by row, so that only new rows travel to the device."""

    def __init__(self) -> None:
        self._rows: dict[int, Array] = {}
        self._widest = 0

    @property
    def first(self) -> int:
        """The first position that is held."""
        return min(self._rows, default=0)

    def take(self, seed: int, sequence: int, first: int, end: int, like: Array) -> Array:
        """Weights (end - first, V) in the library and type of ``like`` (..., V)."""
        vocab_size = like.shape[-1]
        fitting = {p: row for p, row in self._rows.items() if row.dtype == like.dtype and row.shape[0] == vocab_size}
        for position in range(first, end):
            if position not in fitting:
                fitting[position] = from_host(race_weights(seed, sequence, position, vocab_size), like, like.dtype)
        # A single site of a window says nothing about the others: what lies within the widest run asked for stays.
        self._widest = max(self._widest, end - first)
        self._rows = {p: row for p, row in fitting.items() if end - self._widest <= p < first + 2 * self._widest}
        return namespace(like).stack([fitting[p] for p in range(first, end)], axis=0)


class CounterNoise:
    """Noise for production: each draw is a pure function of (seed, sequence, position, round, purpose).

    It holds no state but a cache: the Gumbel noise of positions asked for lately, until the sequence is forgotten.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise
    >>> from coupled_sampling.noise import Sites
    >>> sites = Sites(
    ...     seed=np.array([7], np.uint64), sequence=np.array([0], np.uint64), round=np.array([2]),
    ...     position=np.array([[4, 5, 6]]), valid=np.ones((1, 3), bool),
    ... )
    >>> law = np.full((1, 3, 10), 0.1)
    >>> noise = CounterNoise()
    >>> first = noise.shared(law, sites, where=sites.valid)
    >>> bool((noise.shared(law, sites._replace(round=np.array([9])), where=sites.valid) == first).all())  # the position's own
    True
    """

    def __init__(self) -> None:
        # Sequences under way may share a key, each at positions and in a round of its own: a few places for each key, the one
        # used last in front.
        self._races: dict[tuple[int, int], list[_Races | _DeviceRaces]] = {}
        self._uniforms: dict[tuple[int, int], list[tuple[int, int, NDArray[np.float64]]]] = {}

    def _uniform(self, sites: Sites, purpose: Purpose) -> NDArray[np.float64]:
        """Uniforms float64 (B, n) of one purpose; a step's three purposes share one generator call per row."""
        drawn = np.zeros(sites.position.shape)
        owners = list(zip(sites.seed.tolist(), sites.sequence.tolist(), sites.round.tolist(), strict=True))
        row = 0
        while row < len(owners):  # neighbouring rows of one sequence are looked up together
            end = next((b for b in range(row + 1, len(owners)) if owners[b] != owners[row]), len(owners))
            if sites.valid[row:end].any():
                position = sites.position[row:end]
                first, held = self._held_uniforms(owners[row], int(position.min()), int(position.max()) + 1)
                drawn[row:end] = held[position - first, purpose]
            row = end
        return drawn

    def _held_uniforms(self, owner: tuple[int, int, int], first: int, end: int) -> tuple[int, NDArray[np.float64]]:
        """Uniforms (count, 4) of a (seed, sequence, round) for positions ``first`` to ``end - 1`` at least, and their first."""
        seed, sequence, round_ = owner
        places = self._uniforms.setdefault((seed, sequence), [])
        for at, (held_round, held_first, held) in enumerate(places):
            if held_round == round_ and held_first <= first and end <= held_first + len(held):
                places.insert(0, places.pop(at))
                return held_first, held
        drawn = uniforms(seed, sequence, round_, first, end - first)
        places.insert(0, (round_, first, drawn))
        del places[_PLACES:]
        return first, drawn

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """See `Noise.bernoulli`: uniform < probability."""
        return unit_interval(self._uniform(sites, purpose), probability) < probability

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """See `Noise.categorical`: inverse CDF of the uniform."""
        uniform = self._uniform(sites, purpose)
        if not isinstance(weights, np.ndarray):
            return categorical(weights, unit_interval(uniform, weights))
        tokens = np.zeros(uniform.shape, np.int64)
        slots = np.flatnonzero(where.any(axis=0))
        if slots.size:
            some = slice(int(slots[0]), int(slots[-1]) + 1)
            tokens[:, some] = categorical(weights[:, some], uniform[:, some])
        return tokens

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """See `Noise.shared`: argmax(law * exp(g)) with the position's Gumbel noise g."""
        if not isinstance(law, np.ndarray):
            return race(law, self._on_device(law, sites))
        tokens = np.zeros(law.shape[:2], np.int64)
        for b in range(len(law)):
            slots = np.flatnonzero(where[b])
            if slots.size:
                first, end = int(slots[0]), int(slots[-1]) + 1
                # A tree's slots: the path, whose noise lies there as it is wanted, and the others.
                steps = np.diff(sites.position[b, first:end]) != 1
                middle = first + 1 + int(steps.argmax()) if steps.any() else end
                for some in (slice(first, middle), slice(middle, end)):
                    if some.start < some.stop:
                        tokens[b, some] = race(law[b, some], self._weights(sites, b, some.start, some.stop, law))
        return tokens

    def ranked(self, law: Array, sites: Sites, count: int, *, where: Array) -> tuple[Array, Array]:
        """See `coupled_sampling.draws.RanksShared.ranked`."""
        if not isinstance(law, np.ndarray):
            return ranked(law, self._on_device(law, sites), count)
        tokens, scores = np.zeros((*law.shape[:2], count), np.int64), np.zeros((*law.shape[:2], count), law.dtype)
        for b in range(len(law)):
            slots = np.flatnonzero(where[b])
            if slots.size:
                own = slice(int(slots[0]), int(slots[-1]) + 1)
                weights = self._weights(sites, b, own.start, own.stop, law)
                tokens[b, own], scores[b, own] = ranked(law[b, own], weights, count)
        return tokens, scores

    def _on_device(self, law: Array, sites: Sites) -> Array:
        """Race weights of all sites, in the library of ``law`` (B, n, V); ones where none is valid. ``where`` is not looked at,
        which would have to come to the host."""
        xp = namespace(law)
        rows, count, vocab_size = law.shape
        stacked = []
        for b in range(rows):
            slots = np.flatnonzero(sites.valid[b])
            first, end = (int(slots[0]), int(slots[-1]) + 1) if slots.size else (0, 0)
            pieces = [filled((first, vocab_size), 1, law)]
            if slots.size:
                pieces.append(self._weights(sites, b, first, end, law))
            pieces.append(filled((count - end, vocab_size), 1, law))
            stacked.append(xp.concat(pieces, axis=0))
        return xp.stack(stacked, axis=0)

    def _weights(self, sites: Sites, row: int, first: int, end: int, like: Array) -> Array:
        """Race weights (end - first, V) of the row's slots ``first`` to ``end - 1``."""
        owner = (int(sites.seed[row]), int(sites.sequence[row]))
        kind = _Races if isinstance(like, np.ndarray) else _DeviceRaces
        positions = sites.position[row, first:end]
        position = int(positions.min())
        index = positions - position
        places = self._races.setdefault(owner, [])
        # A sequence only moves to the right, so its own place does not begin behind what it asks for. Of several it is the nearest:
        # one that lies further back is another's, which would lose what it holds.
        begun = [(held.first, i) for i, held in enumerate(places) if isinstance(held, kind) and held.first <= position]
        places.insert(0, places.pop(max(begun)[1]) if begun else kind())
        del places[_PLACES:]
        held = places[0].take(*owner, position, position + int(index.max()) + 1, like)
        if (index == np.arange(len(index))).all():
            return held  # consecutive, as in all windows without branches
        return held[index] if kind is _Races else namespace(held).take(held, from_host(index, like), axis=0)

    def forget(self, seed: int, sequence: int) -> None:
        """Drop the sequence's cached noise."""
        self._races.pop((seed, sequence), None)
        self._uniforms.pop((seed, sequence), None)


class ArrayNoise(NamedTuple):
    """Noise that was made beforehand: arrays of any library, beside the sites that ask for it.

    It looks at no site and at no value, so that a step on it can be traced. A named tuple: JAX, torch and MLX know it as a tree of
    arrays. Where its numbers come from is up to you: from `uniforms` and `race_weights`, the tokens are those of `CounterNoise`.

    Examples
    --------
    The noise of positions 4 to 6 in round 2, as `CounterNoise` would draw it:

    >>> import numpy as np
    >>> from coupled_sampling.noise import ArrayNoise, race_weights, uniforms
    >>> noise = ArrayNoise(
    ...     uniforms(seed=7, sequence=0, round_=2, first=4, count=3)[None],
    ...     np.stack([race_weights(7, 0, position, vocab_size=10) for position in (4, 5, 6)])[None],
    ... )
    >>> noise.uniforms.shape, noise.race_weights.shape
    ((1, 3, 4), (1, 3, 10))
    """

    uniforms: Array | None = None
    """(B, n, 4) in [0, 1), a column per `Purpose`: new ones in every round. ``match`` asks for none."""
    race_weights: Array | None = None
    """(B, n, V) exp of Gumbel noise: the same for a position in every round. ``sjd`` and ``scd-maximal`` ask for none."""

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """See `Noise.bernoulli`: uniform < probability."""
        return self._of(purpose) < probability

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """See `Noise.categorical`: inverse CDF of the uniform."""
        return categorical(weights, self._of(purpose))

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """See `Noise.shared`: argmax(law * exp(g)) with the position's Gumbel noise g."""
        if self.race_weights is None:
            raise InvalidArgument(
                "race_weights is None, but this method draws with shared noise; pass (B, n, V) of them"
            )
        return race(law, self.race_weights)

    def ranked(self, law: Array, sites: Sites, count: int, *, where: Array) -> tuple[Array, Array]:
        """See `coupled_sampling.draws.RanksShared.ranked`."""
        if self.race_weights is None:
            raise InvalidArgument(
                "race_weights is None, but candidates are ranked by shared noise; pass (B, n, V) of them"
            )
        return ranked(law, self.race_weights, count)

    def forget(self, seed: int, sequence: int) -> None:
        """There is nothing to forget."""

    def column(self, site: int) -> ArrayNoise:
        """See `coupled_sampling.draws.BesideSites`."""
        own = slice(site, site + 1)
        return ArrayNoise(*(None if held is None else held[:, own, :] for held in self))

    def _of(self, purpose: Purpose) -> Array:
        if self.uniforms is None:
            raise InvalidArgument("uniforms is None, but this method accepts by rejection; pass (B, n, 4) of them")
        return self.uniforms[..., int(purpose)]
