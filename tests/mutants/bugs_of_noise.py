"""Where randomness comes from, and the elementary draws."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

NOISE = "coupled_sampling/noise.py"
DRAWS = "coupled_sampling/draws.py"
LAYOUT = ("tests/test_noise.py",)
COUPLINGS = ("tests/test_couplings.py",)

BUGS = (
    Bug(
        "shared-noise-of-the-slot",
        NOISE,
        "position = int(sites.position[row, first])",
        "position = first",
        "Gumbel noise belongs to the window slot instead of the position.",
        LAYOUT,
    ),
    Bug(
        "uniforms-of-the-slot",
        NOISE,
        "drawn[row:end] = held[position - first, purpose]",
        "drawn[row:end] = held[np.arange(position.shape[1]), purpose]",
        "Uniforms belong to the window slot instead of the position.",
        LAYOUT,
    ),
    Bug(
        "uniforms-without-the-round",
        NOISE,
        "held_first, held = first, uniforms(seed, sequence, round_, first, end - first)",
        "held_first, held = first, uniforms(seed, sequence, 0, first, end - first)",
        "A position's uniforms are the same in every round.",
        LAYOUT,
    ),
    Bug(
        "uniforms-of-an-earlier-round",
        NOISE,
        "if held_round != round_ or first < held_first or",
        "if first < held_first or",
        "Uniforms that an earlier round has used are found in the cache and used again.",
        LAYOUT,
    ),
    Bug(
        "one-uniform-for-all-purposes",
        NOISE,
        "drawn[row:end] = held[position - first, purpose]",
        "drawn[row:end] = held[position - first, Purpose.ACCEPT]",
        "Acceptance, correction and redraft of a position use one uniform.",
        LAYOUT,
    ),
    Bug(
        "rows-of-one-sequence-share-a-round",
        NOISE,
        "if owners[b] != owners[row]), len(owners))",
        "if owners[b][:2] != owners[row][:2]), len(owners))",
        "Rows that share a noise key take the round of the first of them.",
        ("tests/test_decoding.py",),
    ),
    Bug(
        "uniforms-and-gumbel-noise-overlap",
        NOISE,
        "words = _words(seed, sequence, (0, position, 1), vocab_size)",
        "words = _words(seed, sequence, (0, position, 0), vocab_size)",
        "Gumbel noise and uniforms are made of the same words.",
        LAYOUT,
    ),
    Bug(
        "gumbel-noise-without-the-sequence",
        NOISE,
        "words = _words(seed, sequence, (0, position, 1), vocab_size)",
        "words = _words(seed, 0, (0, position, 1), vocab_size)",
        "All sequences of a seed share their Gumbel noise.",
        LAYOUT,
    ),
    Bug(
        "key-of-32-bits",
        NOISE,
        "key = np.array([seed, sequence], np.uint64)",
        "key = np.array([seed & 0xFFFFFFFF, sequence], np.uint64)",
        "The generator's key keeps 32 of a seed's 64 bits.",
        LAYOUT,
    ),
    Bug(
        "race-weights-shifted-when-the-buffer-moves",
        NOISE,
        "kept = self._buffer[first - self._first : self._count] if fits else self._buffer[:0]",
        "kept = self._buffer[: self._count - (first - self._first)] if fits else self._buffer[:0]",
        "Cached Gumbel noise goes to other positions when the window has moved on.",
        LAYOUT,
    ),
    Bug(
        "race-weights-from-the-front-of-the-buffer",
        NOISE,
        "return self._buffer[first - self._first : end - self._first]",
        "return self._buffer[: end - first]",
        "A window that has moved on gets the Gumbel noise of positions it has left.",
        LAYOUT,
    ),
    Bug(
        "device-race-weights-from-the-front",
        NOISE,
        "return namespace(like).stack([fitting[p] for p in range(first, end)], axis=0)",
        "return namespace(like).stack(list(fitting.values())[: end - first], axis=0)",
        "In other array libraries a window that has moved on gets noise of positions it has left.",
        ("tests/test_arrays.py",),
    ),
    Bug(
        "noise-found-by-sequence-alone",
        NOISE,
        "held = self._races.get(owner)\n",
        "held = next((races for (_, sequence), races in self._races.items() if sequence == owner[1]), None)\n",
        "A sequence gets the cached noise of another one that has its number under another seed.",
        ("tests/test_decoding.py",),
    ),
    Bug(
        "uniforms-not-forgotten",
        NOISE,
        "        self._uniforms.pop((seed, sequence), None)\n",
        "",
        "The uniforms of every sequence that ever ran stay in memory.",
        ("tests/test_bookkeeping.py",),
    ),
    Bug(
        "residual-taken-for-a-law",
        DRAWS,
        "return _first_past(wide, xp.astype(uniform, xp.float64) * xp.sum(wide, axis=-1))",
        "return _first_past(wide, xp.astype(uniform, xp.float64))",
        "Weights that do not sum to one, such as a residual, are drawn as if they did.",
        COUPLINGS,
    ),
    Bug(
        "residual-of-a-large-vocabulary-taken-for-a-law",
        DRAWS,
        "threshold = uniform * sums.sum(axis=-1)",
        "threshold = uniform",
        "The same for the two-level search of large vocabularies.",
        COUPLINGS,
    ),
    Bug(
        "boundary-belongs-to-the-left",
        DRAWS,
        "np.argmax(cumulative > threshold[..., None], axis=-1)",
        "np.argmax(cumulative >= threshold[..., None], axis=-1)",
        "A uniform of 0 chooses the first token even if its weight is zero.",
        COUPLINGS,
    ),
    Bug(
        "beyond-the-sums-lies-the-last-token",
        DRAWS,
        "last = weights.shape[-1] - 1 - np.argmax(weights[..., ::-1] > 0, axis=-1)",
        "last = weights.shape[-1] - 1 + 0 * np.argmax(weights, axis=-1)",
        "A threshold that rounding puts beyond the sums chooses the last token even if its weight is zero.",
        COUPLINGS,
    ),
    Bug(
        "block-threshold-below-zero",
        DRAWS,
        "threshold = np.maximum(threshold - before, 0)",
        "threshold = threshold - before",
        "A threshold that rounding puts just below its block chooses the block's first token even if its weight is zero.",
        COUPLINGS,
    ),
    Bug(
        "gumbel-noise-not-in-the-exponent",
        DRAWS,
        "return race(law, namespace(law).exp(gumbel))",
        "return race(law, gumbel)",
        "Gumbel-max multiplies the law by the noise itself.",
        COUPLINGS,
    ),
)
