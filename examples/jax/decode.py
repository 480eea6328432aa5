"""Coupled decoding as one ``lax.while_loop``: forward, decide, commit, shift, all on the device.

The rule is this library's: `coupled_sampling.step_rule.decide` runs inside the jit, for every method by name. What is written
here is the bookkeeping around it, which the library's own loop does in Python:

- a row's *line* holds its tokens by position: committed ones, then the redrafts of the pass before;
- a window's slot 0 is the last committed token, and slot j's logits decide the position after its own;
- positions beyond the redrafts are guessed: they copy the token ``lag`` positions before, which is the pixel row above, and are
  ``fill`` where nothing was generated yet;
- the laws of redrafts are this pass's target laws, shifted by as many slots as were committed.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from model import Cache, Params, Shape, empty_cache, forward
from randomness import Randomness

from coupled_sampling import Method, Sampling
from coupled_sampling.contracts import Sites
from coupled_sampling.draws import race
from coupled_sampling.law_forms import DraftLawArray
from coupled_sampling.step_rule import decide
from coupled_sampling.target import target_law


class State(NamedTuple):
    """What one pass hands to the next; B rows, windows of W slots, R passes at most."""

    line: jax.Array
    """int32 (B, L + W) tokens by position, the prompt's first."""
    committed: jax.Array
    """int32 (B,) how many of them are final."""
    drafted: jax.Array
    """int32 (B,) how many after those are redrafts."""
    law: jax.Array | None
    """(B, W, V) the laws of the redrafts; None for methods that ask for no law."""
    cache: Cache
    passes: jax.Array
    """int32 () so far; also the round that the noise belongs to."""
    tokens: jax.Array
    """int32 (R, B, W) what each pass decided: not needed, but good to have."""
    moves: jax.Array
    """int32 (R, B) how many tokens each pass committed."""


class Foreseen(NamedTuple):
    """What will be decoded, known beforehand: a measuring device, which sets how many tokens a pass commits.

    The first drafts of a window are replaced by tokens that are known to be right, and the one after them by one that is not. The
    passes, decisions and redrafts are those of any decoding. With ``scd-match`` no token depends on the drafts, so the tokens are
    the same, too; with rejection a pass would commit about as many, and other tokens.
    """

    tokens: jax.Array
    """int32 (B, L + W) by position, the prompt's first: the ``line`` of an earlier state."""
    count: jax.Array
    """int32 () how many tokens a pass is to commit."""

    def drafts(self, inputs: jax.Array, positions: jax.Array, first: jax.Array, vocab_size: int) -> jax.Array:
        """``inputs`` (B, W) at ``positions`` (B, W), those from ``first`` (B, 1) on, the first not decided yet, replaced."""
        right = jnp.take_along_axis(self.tokens, positions, axis=1)
        drafts = jnp.where(positions < first + self.count - 1, right, (right + 1) % vocab_size)
        return jnp.where((positions >= first) & (positions < first + self.count), drafts, inputs)


@partial(jax.jit, static_argnames=("shape", "method", "length", "window", "lag", "fill", "sampling"))
def decode(
    params: Params,
    prompt: jax.Array,
    randomness: Randomness,
    foreseen: Foreseen | None = None,
    *,
    shape: Shape,
    method: Method,
    length: int,
    window: int,
    lag: int,
    fill: int,
    sampling: Sampling,
) -> State:
    """Continue one prompt token per row, int (B,), by ``length`` tokens: ``line[:, 1 : length + 1]`` of the last state."""
    rows, total = prompt.shape[0], 1 + length
    slots = jnp.arange(window)
    needs_laws = method.acceptance == "rejection"

    def one_pass(state: State) -> State:
        first = state.committed[:, None]
        positions = first + slots  # (B, W) that this pass decides
        inputs = with_guesses(state.line, first + state.drafted[:, None], positions - 1, lag, fill)
        if foreseen is not None:
            inputs = foreseen.drafts(inputs, positions - 1, first, shape.vocab_size)
        logits, cache = forward(params, shape, state.cache, inputs, state.committed - 1)
        target = target_law(logits, sampling)
        valid = positions < total
        drafted = valid & (slots < window - 1) & (positions + 1 < total)
        laws = DraftLawArray(jnp.roll(inputs, -1, axis=1), drafted, state.law)
        if needs_laws:
            laws = laws.guessed(slots >= state.drafted[:, None])
        sites = Sites(seed=None, sequence=None, round=state.passes, position=positions, valid=valid)
        decided = decide(method, target, sites, laws, randomness.at(positions, state.passes))
        moved = jnp.where(valid[:, 0], decided.last + 1, 0)
        shift = jnp.minimum(moved[:, None] + slots, window - 1)
        return State(
            line=written(state.line, decided.tokens, positions, valid),
            committed=state.committed + moved,
            drafted=valid.sum(axis=1) - moved if method.recycles else jnp.zeros_like(moved),
            law=jnp.take_along_axis(target, shift[..., None], axis=1) if needs_laws else None,
            cache=cache,
            passes=state.passes + 1,
            tokens=state.tokens.at[state.passes].set(decided.tokens),
            moves=state.moves.at[state.passes].set(moved),
        )

    begin = State(
        line=jnp.zeros((rows, total + window), jnp.int32).at[:, 0].set(prompt),
        committed=jnp.ones(rows, jnp.int32),
        drafted=jnp.zeros(rows, jnp.int32),
        law=jnp.zeros((rows, window, shape.vocab_size), jnp.float32) if needs_laws else None,
        cache=empty_cache(shape, rows, total + window),
        passes=jnp.int32(0),
        tokens=jnp.zeros((length, rows, window), jnp.int32),
        moves=jnp.zeros((length, rows), jnp.int32),
    )
    return jax.lax.while_loop(lambda state: jnp.any(state.committed < total), one_pass, begin)


@partial(jax.jit, static_argnames=("shape", "length", "sampling"))
def decode_ar(
    params: Params,
    prompt: jax.Array,
    randomness: Randomness,
    *,
    shape: Shape,
    length: int,
    sampling: Sampling,
) -> jax.Array:
    """One token per pass, as plainly as it can be done: int32 (B, length)."""
    rows = prompt.shape[0]

    def one_pass(at: jax.Array, state: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
        line, cache = state
        here = jnp.full(rows, at)
        logits, cache = forward(params, shape, cache, jax.lax.dynamic_slice_in_dim(line, at, 1, axis=1), here)
        tokens = race(target_law(logits, sampling), randomness.at(here[:, None] + 1, at).race_weights)
        return jax.lax.dynamic_update_slice_in_dim(line, tokens, at + 1, axis=1), cache

    line = jnp.zeros((rows, 1 + length), jnp.int32).at[:, 0].set(prompt)
    line, _ = jax.lax.fori_loop(0, length, one_pass, (line, empty_cache(shape, rows, 1 + length)))
    return line[:, 1:]


def with_guesses(line: jax.Array, first_guess: jax.Array, positions: jax.Array, lag: int, fill: int) -> jax.Array:
    """Tokens at ``positions`` (B, W): from ``first_guess`` (B, 1) on, copies of the token ``lag`` before.

    Only generated tokens are copied: else it is the token before, and ``fill`` where that is the prompt's. What is copied may be a
    guess itself.
    """
    source = positions
    for _ in range(positions.shape[1]):  # no chain of guesses is longer; XLA makes one kernel of it
        before = jnp.where(source - lag >= 1, source - lag, source - 1)
        source = jnp.where(source < first_guess, source, before)
    guessed = (positions >= first_guess) & (source < 1)
    return jnp.where(guessed, fill, jnp.take_along_axis(line, source, axis=1))


def written(line: jax.Array, tokens: jax.Array, positions: jax.Array, where: jax.Array) -> jax.Array:
    """``line`` (B, L) with ``tokens`` (B, W) at the consecutive ``positions`` (B, W) that are in ``where``."""
    slot = jnp.arange(line.shape[1]) - positions[:, :1]
    inside = (slot >= 0) & (slot < where.sum(axis=1, keepdims=True))
    return jnp.where(inside, jnp.take_along_axis(tokens, slot.clip(0, tokens.shape[1] - 1), axis=1), line)
