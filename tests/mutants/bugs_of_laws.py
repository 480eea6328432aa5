"""From logits to target laws, and the array operations under them."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

LAWS = ("test_target",)
FORMS = ("test_law_forms",)

BUGS = (
    Bug(
        "nucleus-takes-one-more",
        "_nucleus",
        "mass < wanted * (1 - slack)",
        "mass <= wanted * (1 + slack)",
        "Where the largest tokens reach top_p exactly, one more is kept.",
        LAWS,
    ),
    Bug(
        "nucleus-without-the-token-that-crosses",
        "_nucleus",
        "xp.where(short < last, short, xp.full_like(short, last))",
        "xp.where(short > 0, short - 1, short)",
        "The token that makes the mass reach top_p is left out.",
        LAWS,
    ),
    Bug(
        "nucleus-of-unnormalised-weights",
        "_nucleus",
        "xp.sum(xp.astype(weights, floats(weights)), axis=-1, keepdims=True)",
        "xp.ones_like(mass[..., :1])",
        "top_p is compared with weights that do not sum to one.",
        LAWS,
    ),
    Bug(
        "weights-that-tie-by-rounding-are-kept",
        "_nucleus",
        "return drop_below(weights, logits, xp.take_along_axis(ordered, index, axis=-1))",
        "return drop_below(weights, weights, least)",
        "At a temperature of millions all weights round to the same, and top-p keeps them all.",
        (*LAWS, "test_decision_law"),
    ),
    Bug(
        "numbers-of-slots-that-nobody-wants-overflow",
        "target_laws",
        "from_host(usable, logits)",
        "from_host(~bad, logits)",
        "A dead state in the prompt makes numpy warn of an overflow.",
        ("test_step_graph",),
    ),
    Bug(
        "top-p-before-top-k",
        "_warp",
        """\
if top_k is not None:
    weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
if sampling.top_p < 1:
    weights = _nucleus(weights, logits, top_k, sampling.top_p)
""",
        """\
if sampling.top_p < 1:
    weights = _nucleus(weights, logits, None, sampling.top_p)
if top_k is not None:
    weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
""",
        "top_p is measured on the whole law instead of on what top-k has left.",
        LAWS,
    ),
    Bug(
        "top-k-ties-broken-by-the-sort",
        "_warp",
        "drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))",
        "weights * xp.astype(xp.argsort(xp.argsort(-logits, axis=-1), axis=-1) < top_k, weights.dtype)",
        "Of tokens that tie with the k-th, the order of the vocabulary decides which are kept.",
        LAWS,
    ),
    Bug(
        "top-k-keeps-one-less",
        "_largest_of_numpy",
        "np.partition(array, size - count, axis=-1)[..., size - count :]",
        "np.partition(array, size - count, axis=-1)[..., min(size - count + 1, size - 1) :]",
        "Top-k of a small vocabulary keeps k - 1 tokens.",
        LAWS,
    ),
    Bug(
        "top-k-of-a-large-vocabulary-keeps-one-less",
        "_largest_of_numpy",
        "np.partition(candidates, len(candidates) - count)[len(candidates) - count :]",
        "np.sort(candidates)[np.clip(np.arange(-count, 0) + 1, -count, -1)]",
        "Top-k of a large vocabulary keeps k - 1 tokens.",
        LAWS,
    ),
    Bug(
        "min-p-of-the-mass",
        "_warp",
        "xp.full_like(weights[..., :1], sampling.min_p)",
        "sampling.min_p * xp.sum(weights, axis=-1, keepdims=True)",
        "min_p is taken as a probability instead of a fraction of the largest one.",
        LAWS,
    ),
    Bug(
        "threshold-itself-dropped",
        "drop_below",
        "np.multiply(weights, values >= threshold, out=weights)",
        "np.multiply(weights, values > threshold, out=weights)",
        "The token at the threshold of top-k, top-p or min-p is dropped.",
        LAWS,
    ),
    Bug(
        "temperature-twice",
        "target:target_law",
        "weights /= sampling.temperature",
        "weights /= sampling.temperature**2",
        "Logits are divided by the temperature twice.",
        LAWS,
    ),
    Bug(
        "temperature-after-top-p",
        "target:target_law",
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
        "run_processors",
        "logits = as_like(changed, logits)",
        "logits = logits + (as_like(changed, logits) - logits) * (sampling.temperature or 1)",
        "What a processor adds to the logits is not divided by the temperature.",
        ("test_target",),
    ),
    Bug(
        "only-the-last-processor",
        "run_processors",
        "logits = as_like(changed, logits)",
        "logits = as_like(changed, logits) if processor is sampling.processors[-1] else logits",
        "Each processor sees the model's logits instead of the outcome of the one before.",
        ("test_target",),
    ),
    Bug(
        "processors-told-the-position-before",
        "processed",
        "positions[run.start : run.stop]",
        "positions[run.start : run.stop] - 1",
        "Processors take the context of the position before.",
        LAWS,
    ),
    Bug(
        "settings-of-the-first-row-for-all",
        "_laws_of_groups",
        "len(groups) <= 1",
        "len(groups) <= 9",
        "Rows of a batch share the sampling settings of one of them.",
        ("test_match",),
    ),
    Bug(
        "padding-is-refused",
        "target_laws",
        "wanted & ~usable",
        "~usable",
        "A provider may leave anything in padding, and is blamed for it.",
        ("test_target",),
    ),
    Bug(
        "unusable-logits-pass",
        "target_laws",
        "usable = np.isfinite(found)",
        "usable = np.isfinite(found) | True",
        "Logits of NaN are made into a law without a word.",
        ("test_target",),
    ),
    Bug(
        "greedy-takes-the-last-of-the-largest",
        "target:target_law",
        "xp.argmax(logits, axis=-1)",
        "logits.shape[-1] - 1 - xp.argmax(xp.flip(logits, axis=-1), axis=-1)",
        "Of equal largest logits, greedy decoding takes the last.",
        LAWS,
    ),
    Bug(
        "absolute-difference",
        "positive_difference",
        "np.maximum(left, 0, out=left)",
        "np.abs(left, out=left)",
        "The residual of the public coupling functions has mass where the draft law exceeds the target.",
        ("test_couplings",),
    ),
    Bug(
        "absolute-difference-elsewhere",
        "positive_difference",
        "namespace(first).maximum(left, filled((), 0, left))",
        "namespace(first).abs(left)",
        "The same in other array libraries.",
        ("test_couplings",),
    ),
    Bug(
        "long-rows-compete-without-their-noise",
        "argmax_of_product",
        "others[some]",
        "others[: len(rows[some])]",
        "Long rows take the noise of the first rows.",
        ("test_arrays",),
    ),
    Bug(
        "uniform-rounded-to-one",
        "unit_interval",
        "np.minimum(values, 1 - 2.0**-24)",
        "values",
        "Where a library has no float64, a draft of probability one can be refused.",
        ("test_arrays",),
    ),
    Bug(
        "law-of-a-site-without-a-draft",
        "couplings:_corrected",
        "namespace(target_law).where(drafted, weights, target_law)",
        "weights",
        "A free token is drawn from what is left of a law that means nothing.",
        FORMS,
    ),
    Bug(
        "guesses-keep-their-old-laws",
        "DraftLawArray.guessed",
        "xp.where(where[..., None], certain, law)",
        "law",
        "A guess is tested as if it had been drawn from whatever law lies there.",
        FORMS,
    ),
)
