"""One row's step, judged in float64: how far every decision is from the threshold that would have made it another.

A step is judged as what its method says it is, from its own accepted run: drafts before the last committed site were
accepted, the last one was refused and corrected (or had no draft), later ones were redrafted. So two implementations are
judged apart, each by itself, and a run that ends early for a tie does not make what follows it wrong.

- race: log of (best product of law and race weight) / (product of the token at hand);
- acceptance: abs(uniform - ratio), where the draft is on the wrong side of it;
- inverse CDF: how far uniform * total is from the token's interval of cumulative sums, relative to the total.

The noise is that of `coupled_sampling.noise`, asked for anew: whoever draws from other noise is far from every threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import RowInfo
from coupled_sampling.methods import Method
from coupled_sampling.noise import Purpose, race_weights
from coupled_sampling.testing.steps.rounding import EXACT, IMPOSSIBLE, Margin, RoundedLaw

__all__ = [
    "Site",
    "Weights",
    "acceptance_margin",
    "chance",
    "draw_margin",
    "judge",
    "race_margin",
    "residual_weights",
    "target_weights",
    "worst",
]

Floats = NDArray[np.float64]


class Weights(NamedTuple):
    """What an inverse-CDF draw is made from: weights (V,), the most they may be, and the error of their sums."""

    values: Floats
    most: Floats
    error: float


@dataclass(frozen=True)
class Site:
    """A position to decide, with all that its decision depends on.

    Parameters
    ----------
    targets
        The laws that the target may have become, the exact one first.
    drafts
        The same of the draft's law; None where the site has no draft.
    draft
        The token to test, anything where there is none.
    uniforms
        (4,) by `coupled_sampling.noise.Purpose`.
    info, position
        Whose race weights, and which.
    logits
        float64 (V,) that ``targets`` are of; None where nobody corrects them.
    """

    targets: list[RoundedLaw]
    drafts: list[RoundedLaw] | None
    draft: int
    uniforms: Floats
    info: RowInfo
    position: int
    logits: Floats | None = None


def worst(*margins: Margin) -> Margin:
    """The one that rounding explains least."""
    return max(margins, key=lambda margin: (margin.strain, margin.margin))


def _best(margins: list[Margin]) -> Margin:
    return min(margins, key=lambda margin: (margin.strain, margin.margin))


def race_margin(law: RoundedLaw, weights: Floats, token: int) -> Margin:
    """How far ``token`` is from winning the race."""
    if not law.law[token] > 0:
        return Margin("race", np.inf, 0.0)
    scores = law.argument + np.log(weights)
    best = int(scores.argmax())
    bound = sum(float(law.error[i] / law.law[i]) for i in (best, token))
    return Margin("race", float(scores[best] - scores[token]), bound)


def acceptance_margin(target: RoundedLaw, draft: RoundedLaw, token: int, uniform: float, accepted: bool) -> Margin:
    """How far ``uniform`` is from the side of the ratio on which ``token`` is accepted, or is not."""
    own, proposed = float(target.law[token]), float(draft.law[token])
    if own <= 0:
        return Margin("acceptance", np.inf, 0.0) if accepted else EXACT
    ratio = own / proposed if proposed > own else 1.0
    error = target.relative(token) + (draft.relative(token) if proposed > 0 else 0.0)
    if (uniform < ratio) == accepted:
        return Margin("acceptance", 0.0, ratio * error)
    return Margin("acceptance", abs(uniform - ratio), ratio * error)


def target_weights(law: RoundedLaw) -> Weights:
    """A law as the weights of a draw."""
    return Weights(law.law, law.law, law.of_sums)


def residual_weights(target: RoundedLaw, draft: RoundedLaw) -> list[Weights]:
    """max(target - draft, 0); and the target law as well, where the residual may be empty by rounding."""
    error = target.error + target.common * target.law + draft.error + draft.common * draft.law
    values = np.maximum(target.law - draft.law, 0)
    most = np.maximum(target.law - draft.law + error, 0)
    total = float(values.sum())
    spread = float(error[most > 0].sum())
    found = []
    if total > 0:
        found.append(Weights(values, most, spread / total + 2 * _sum_part(target)))
    if total <= spread:
        found.append(target_weights(target))
    return found


def _sum_part(law: RoundedLaw) -> float:
    return law.of_sums - float(law.error.sum())


def draw_margin(weights: Weights, uniform: float, token: int) -> Margin:
    """How far ``uniform`` is from the interval of cumulative sums that belongs to ``token``."""
    if not weights.most[token] > 0:
        return Margin("inverse CDF", np.inf, 0.0)
    total = float(weights.values.sum())
    end = float(weights.values[: token + 1].sum()) / total
    begin = end - float(weights.values[token]) / total
    return Margin("inverse CDF", max(begin - uniform, uniform - end, 0.0), weights.error)


def judge(method: Method, sites: list[Site], tokens: NDArray[np.int64], committed: int) -> list[Margin]:
    """How far each site's decision is from its thresholds.

    Parameters
    ----------
    method
        The rules.
    sites
        The row's n sites.
    tokens
        int64 (n,) what an implementation decided.
    committed
        How many it committed.

    Returns
    -------
    list of Margin
        One per site; sites that the method leaves open are `EXACT`.
    """
    last = committed - 1
    if not 0 <= last < len(sites):
        return [IMPOSSIBLE] * len(sites)
    return [_at(method, site, int(token), s - last) for s, (site, token) in enumerate(zip(sites, tokens, strict=True))]


def _at(method: Method, site: Site, token: int, after: int) -> Margin:
    """One site, ``after`` sites past the last committed one."""
    if after > 0 and not method.recycles:
        return EXACT
    if method.acceptance != "rejection":
        kept = site.drafts is not None and token == site.draft
        if kept != (after < 0) and after <= 0 and method.acceptance == "match":
            return IMPOSSIBLE
        return _race(site, token)
    if after < 0:
        return _kept(site, True) if site.drafts is not None and token == site.draft else IMPOSSIBLE
    if after == 0:
        return _corrected(site, token)
    if method.redraft == "gumbel":
        return _race(site, token)
    if method.redraft == "independent":
        uniform = float(site.uniforms[Purpose.REDRAFT])
        return _best([worst(law.cut, draw_margin(target_weights(law), uniform, token)) for law in site.targets])
    choices = [_corrected(site, token)]
    if site.drafts is not None and token == site.draft:
        choices.append(_kept(site, True))
    return _best(choices)


def _race(site: Site, token: int) -> Margin:
    weights = race_weights(site.info.seed, site.info.sequence, site.position, len(site.targets[0].law))
    return _best([worst(law.cut, race_margin(law, weights, token)) for law in site.targets])


def _kept(site: Site, accepted: bool) -> Margin:
    uniform = float(site.uniforms[Purpose.ACCEPT])
    pairs = [(target, draft) for target in site.targets for draft in site.drafts or []]
    return _best([worst(p.cut, q.cut, acceptance_margin(p, q, site.draft, uniform, accepted)) for p, q in pairs])


def _corrected(site: Site, token: int) -> Margin:
    """Refused, if there is a draft, and drawn from what is left."""
    accept, correct = float(site.uniforms[Purpose.ACCEPT]), float(site.uniforms[Purpose.RESIDUAL])
    if site.drafts is None:
        return _best([worst(law.cut, draw_margin(target_weights(law), correct, token)) for law in site.targets])
    return _best(
        [
            worst(
                p.cut, q.cut, acceptance_margin(p, q, site.draft, accept, False), draw_margin(weights, correct, token)
            )
            for p in site.targets
            for q in site.drafts
            for weights in residual_weights(p, q)
        ]
    )


def chance(method: Method, site: Site) -> float:
    """No less than the chance that the noise leaves this site's decision to rounding.

    Of a race: the chance that the two best are within e of each other is at most the mean over both of e. Of a ratio:
    twice its error. Of a draw from K tokens: twice the error at each of K - 1 boundaries, given that it is made.
    """
    law = site.targets[0]
    if len(site.targets) > 1 or (site.drafts is not None and len(site.drafts) != 1):
        return 1.0
    race = 2 * float(law.error.sum())
    draw = 2 * law.of_sums * max(int((law.law > 0).sum()) - 1, 0)
    if method.acceptance != "rejection":
        return min(1.0, race)
    redraft = race if method.redraft == "gumbel" else draw if method.redraft == "independent" else 0.0
    if site.drafts is None:
        return min(1.0, max(draw, redraft))
    other = site.drafts[0]
    own, proposed = float(law.law[site.draft]), float(other.law[site.draft])
    if own <= 0:
        accept = 0.0
    else:
        error = law.relative(site.draft) + (other.relative(site.draft) if proposed > 0 else 0.0)
        accept = 2 * min(1.0, own / proposed if proposed > 0 else 1.0) * error
    left = np.maximum(law.law - other.law, 0)
    # A draw from the residual is made with the chance of a refusal, and its error is relative to what is left.
    refused = min(1.0, max(0.0, 1 - own / proposed) if proposed > 0 else 1.0)
    total = float(left.sum())
    spread = 2 * float((law.error + law.common * law.law + other.error + other.common * other.law).sum())
    within = (spread / total + 4 * law.of_sums) * max(int((left > 0).sum()), 1) if total > 0 else 1.0
    return min(1.0, accept + refused * min(1.0, within) + redraft)
