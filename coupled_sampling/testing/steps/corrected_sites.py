"""The laws of redrafts that a table corrects, in float64, with the error that an implementation in a shorter precision may make.

A redraft's law depends on the tokens to its left. After a tie two implementations have different tokens there, and both are right:
so the laws are those under an implementation's own tokens.

A corrected logit is a sum of R + K + 2 products. In a shorter precision each number is rounded, each product, and each partial sum:
its error is at most R + 2 K + 6 roundings of the sum of absolute values. An error of the logits themselves is scaled as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import CoupledStep
from coupled_sampling.corrections import Changes, LowRank
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.steps.margins import Site
from coupled_sampling.testing.steps.rounding import rounded_laws

__all__ = ["corrected_sites", "table_of"]


def table_of(step: CoupledStep) -> LowRank | None:
    """The table that ``step`` corrects redrafts by; None if it does not.

    Raises
    ------
    InvalidArgument
        It corrects them by something else.
    """
    corrections = getattr(step, "corrections", None)
    if not isinstance(corrections, LowRank | None):
        raise InvalidArgument(
            f"other corrects laws by a {type(corrections).__name__}, which has no bound on its rounding; expected a LowRank or None"
        )
    return corrections if step.method.recycles else None


def corrected_sites(
    table: LowRank,
    sites: Sequence[Site],
    tokens: NDArray[np.int64],
    committed: int,
    *,
    logits_error: float,
    unit: float,
) -> list[Site]:
    """``sites`` with the laws that redrafts have under the ``tokens`` (n,) of an implementation, which committed so many.

    Up to the first site of which a table makes no law; those that have not changed are the same objects.
    """
    drafts = [site.draft for site in sites]
    made = list(sites)
    for s in range(committed, len(sites)):
        at = [s - lag for lag in table.lags]
        old, new = (np.array([[one[i] if i >= 0 else 0 for i in at]]) for one in (drafts, tokens))
        if (old == new).all():
            continue
        logits, error = _predicted(table, sites[s], Changes(old, new, np.array([sites[s].position])), unit)
        if not np.isfinite(logits.max()):
            return made[:s]
        error += float(table.stale_scale.max()) * logits_error
        laws = rounded_laws(logits, sites[s].info.sampling, logits_error=error, unit=unit)
        made[s] = replace(sites[s], targets=laws)
    return made


def _predicted(table: LowRank, site: Site, changes: Changes, unit: float) -> tuple[NDArray[np.float64], float]:
    """The logits (V,) that the table predicts, and how far those of a shorter precision may be from them."""
    assert site.logits is not None, "who has a table keeps the logits"
    logits = table.correct(site.logits[None], changes)[0]
    finite = np.isfinite(site.logits)
    steps = sum(
        np.abs(table.neighbours[k, changes.new[0, k]]) + np.abs(table.neighbours[k, changes.old[0, k]])
        for k in range(len(table.lags))
        if changes.new[0, k] != changes.old[0, k]
    )
    sizes = np.abs(table.basis) @ steps + np.abs(table.unigram_scale).max() * np.abs(table.unigram)
    sizes = sizes[finite] + table.stale_scale.max() * np.abs(site.logits[finite])
    rounded = table.basis.shape[1] + 2 * len(table.lags) + 6
    return logits, rounded * unit / 2 * float(sizes.max())
