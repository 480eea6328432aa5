"""Noise on the device, by position and round: either the library's own, drawn beforehand, or JAX's, drawn when it is needed.

Both give an `ArrayNoise` for the sites of one pass. Noise belongs to (seed, row, position, round, purpose), and Gumbel noise to
(seed, row, position, token): never to a slot of the window, and it is never used twice for two purposes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from coupled_sampling import Method
from coupled_sampling.noise import ArrayNoise, race_weights, uniforms


class Tables(NamedTuple):
    """What `coupled_sampling.noise` would draw, on the device: the tokens are the library's own at the same seed."""

    uniforms: jax.Array | None
    """(R, B, L, 4) by round, row, position and purpose; None for methods that accept by match."""
    race_weights: jax.Array
    """(B, L, V)."""

    def at(self, positions: jax.Array, round_: jax.Array) -> ArrayNoise:
        rows = jnp.arange(positions.shape[0])[:, None]
        found = positions.clip(max=self.race_weights.shape[1] - 1)  # beyond the end nothing is asked for
        drawn = None if self.uniforms is None else self.uniforms[round_][rows, found]
        return ArrayNoise(drawn, self.race_weights[rows, found])


class Keys(NamedTuple):
    """JAX's own generator, a key per row."""

    keys: jax.Array
    """(B,)."""
    like: jax.Array
    """(V,) anything: how many tokens there are."""

    def at(self, positions: jax.Array, round_: jax.Array) -> ArrayNoise:
        def of_row(key: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
            race = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, 0), self.like.shape))(own)
            drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, round_ + 1), (4,)))(own)
            return drawn, jnp.exp(race)

        return ArrayNoise(*jax.vmap(of_row)(self.keys, positions))


Randomness = Tables | Keys


def tables(method: Method, vocab_size: int, *, rows: int, length: int, seed: int, first_row: int = 0) -> Tables:
    """The library's noise of ``rows`` sequences, for as many rounds as there can be."""
    sequences = range(first_row, first_row + rows)
    count = length + 1
    races = [[race_weights(seed, row, position, vocab_size) for position in range(count)] for row in sequences]
    drawn = None
    if method.acceptance == "rejection":
        drawn = [[uniforms(seed, row, round_, 0, count) for row in sequences] for round_ in range(length)]
        # Rounded to float32, the largest would be 1.
        drawn = jnp.asarray(np.minimum(drawn, 1 - 2.0**-24).astype(np.float32))
    return Tables(drawn, jnp.asarray(np.asarray(races, np.float32)))


def keys(vocab_size: int, *, rows: int, seed: int, first_row: int = 0) -> Keys:
    """JAX's noise for ``rows`` sequences."""
    sequences = first_row + jnp.arange(rows)
    return Keys(
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sequences), jnp.zeros(vocab_size, jnp.int8)
    )
