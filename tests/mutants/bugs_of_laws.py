"""From logits to target laws, and the array operations under them."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

TARGET = "coupled_sampling/target.py"
ARRAYS = "coupled_sampling/arrays.py"
LAWS = ("tests/test_target.py",)

BUGS = (
    Bug(
        "nucleus-takes-one-more",
        TARGET,
        "mass < wanted * (1 - slack)",
        "mass <= wanted * (1 + slack)",
        "Where the largest tokens reach top_p exactly, one more is kept.",
        LAWS,
    ),
    Bug(
        "nucleus-without-the-token-that-crosses",
        TARGET,
        "xp.where(short < last, short, last)",
        "xp.where(short > 0, short - 1, short)",
        "The token that makes the mass reach top_p is left out.",
        LAWS,
    ),
    Bug(
        "nucleus-of-unnormalised-weights",
        TARGET,
        "wanted = top_p * xp.sum(xp.astype(weights, xp.float64), axis=-1, keepdims=True)",
        "wanted = top_p * xp.ones_like(mass[..., :1])",
        "top_p is compared with weights that do not sum to one.",
        LAWS,
    ),
    Bug(
        "top-p-before-top-k",
        TARGET,
        """\
    if top_k is not None:
        weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
    if sampling.top_p < 1:
        weights = drop_below(weights, weights, _nucleus_threshold(weights, top_k, sampling.top_p))
""",
        """\
    if sampling.top_p < 1:
        weights = drop_below(weights, weights, _nucleus_threshold(weights, None, sampling.top_p))
    if top_k is not None:
        weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
""",
        "top_p is measured on the whole law instead of on what top-k has left.",
        LAWS,
    ),
    Bug(
        "top-k-ties-broken-by-the-sort",
        TARGET,
        "weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))",
        "weights = weights * xp.astype(xp.argsort(xp.argsort(-logits, axis=-1), axis=-1) < top_k, weights.dtype)",
        "Of tokens that tie with the k-th, the order of the vocabulary decides which are kept.",
        LAWS,
    ),
    Bug(
        "top-k-keeps-one-less",
        ARRAYS,
        "return np.partition(array, size - count, axis=-1)[..., size - count :]",
        "return np.partition(array, size - count, axis=-1)[..., min(size - count + 1, size - 1) :]",
        "Top-k of a small vocabulary keeps k - 1 tokens.",
        LAWS,
    ),
    Bug(
        "top-k-of-a-large-vocabulary-keeps-one-less",
        ARRAYS,
        "found[row] = np.partition(candidates, len(candidates) - count)[len(candidates) - count :]",
        "found[row] = np.sort(candidates)[np.clip(np.arange(-count, 0) + 1, -count, -1)]",
        "Top-k of a large vocabulary keeps k - 1 tokens.",
        LAWS,
    ),
    Bug(
        "min-p-of-the-mass",
        TARGET,
        "least = xp.full_like(weights[..., :1], sampling.min_p)",
        "least = sampling.min_p * xp.sum(weights, axis=-1, keepdims=True)",
        "min_p is taken as a probability instead of a fraction of the largest one.",
        LAWS,
    ),
    Bug(
        "threshold-itself-dropped",
        ARRAYS,
        "return np.multiply(weights, values >= threshold, out=weights)",
        "return np.multiply(weights, values > threshold, out=weights)",
        "The token at the threshold of top-k, top-p or min-p is dropped.",
        LAWS,
    ),
    Bug(
        "temperature-twice",
        TARGET,
        "weights /= sampling.temperature\n",
        "weights /= sampling.temperature**2\n",
        "Logits are divided by the temperature twice.",
        LAWS,
    ),
    Bug(
        "temperature-after-top-p",
        TARGET,
        """\
    if sampling.temperature != 1:
        weights /= sampling.temperature
    weights = _warp(exp_in_place(weights), logits, sampling)
""",
        """\
    weights = _warp(exp_in_place(weights), logits, sampling)
    if sampling.temperature != 1:
        weights = weights ** (1 / sampling.temperature)
""",
        "top-p and min-p look at the law of temperature 1.",
        LAWS,
    ),
    Bug(
        "processors-after-temperature",
        TARGET,
        """\
        middle = changed
    return xp.concat([logits[:first, ...], middle, logits[end:, ...]], axis=0)
""",
        """\
        middle = middle + (changed - middle) * (info.sampling.temperature or 1)
    return xp.concat([logits[:first, ...], middle, logits[end:, ...]], axis=0)
""",
        "What a processor adds to the logits is not divided by the temperature.",
        LAWS,
    ),
    Bug(
        "only-the-last-processor",
        TARGET,
        "changed = processor(middle, tokens, positions[first:end])",
        "changed = processor(logits[first:end, ...], tokens, positions[first:end])",
        "Each processor sees the model's logits instead of the outcome of the one before.",
        LAWS,
    ),
    Bug(
        "processors-told-the-position-before",
        TARGET,
        "changed = processor(middle, tokens, positions[first:end])",
        "changed = processor(middle, tokens, positions[first:end] - 1)",
        "Processors take the context of the position before.",
        LAWS,
    ),
    Bug(
        "settings-of-the-first-row-for-all",
        TARGET,
        "if len(groups) <= 1:",
        "if len(groups) <= 9:",
        "Rows of a batch share the sampling settings of one of them.",
        ("tests/test_match.py",),
    ),
    Bug(
        "padding-is-refused",
        TARGET,
        "bad = wanted & ~np.isfinite(highest)",
        "bad = ~np.isfinite(highest)",
        "A provider may leave anything in padding, and is blamed for it.",
        LAWS,
    ),
    Bug(
        "unusable-logits-pass",
        TARGET,
        "    refuse_unusable(highest[..., 0], positions, wanted)\n",
        "",
        "Logits of NaN are made into a law without a word.",
        LAWS,
    ),
    Bug(
        "greedy-takes-the-last-of-the-largest",
        TARGET,
        "point_masses(xp.argmax(logits, axis=-1), logits.shape[-1], logits)",
        "point_masses(logits.shape[-1] - 1 - xp.argmax(xp.flip(logits, axis=-1), axis=-1), logits.shape[-1], logits)",
        "Of equal largest logits, greedy decoding takes the last.",
        LAWS,
    ),
    Bug(
        "absolute-difference",
        ARRAYS,
        "return np.maximum(left, 0, out=left)",
        "return np.abs(left, out=left)",
        "The residual of the public coupling functions has mass where the draft law exceeds the target.",
        ("tests/test_couplings.py",),
    ),
    Bug(
        "absolute-difference-elsewhere",
        ARRAYS,
        "return xp.maximum(difference, xp.zeros((), dtype=difference.dtype, device=array_api_compat.device(difference)))",
        "return xp.abs(difference)",
        "The same in other array libraries.",
        ("tests/test_couplings.py",),
    ),
    Bug(
        "long-rows-compete-without-their-noise",
        ARRAYS,
        "np.multiply(rows[some], others[some], out=product[: len(rows[some])])",
        "np.multiply(rows[some], others[: len(rows[some])], out=product[: len(rows[some])])",
        "Long rows take the noise of the first rows.",
        ("tests/test_arrays.py",),
    ),
)
