"""How often the target's token is among the candidates of a draft law's race: what a rule for branches can hope for.

Both laws race with the same noise: a token's time is an exponential variable over its probability, and the earliest wins. Let the
target's race be won by token j, at time t. The time is exponential of rate 1, whichever token wins. Behind token j in the target's
race, token l comes before it in the draft law's with probability 1 - exp(-a_l t), where a_l = max(r_j q_l - p_l, 0) and
r_j = p_j / q_j, independently of the others. So the number of tokens before j is no larger than a Poisson variable of mean m_j t,
with m_j the sum of the a_l, and this is geometric once t is drawn: K or more come before j with probability at most
(m_j / (1 + m_j))^K. For K = 1 that is exact, and it is the Gumbel coupling's probability to agree, which is no less than
(1 - TV) / (1 + TV).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.testing.arguments import check_count, check_law

__all__ = ["least_hit_rate"]


def least_hit_rate(
    draft_law: Sequence[Any] | NDArray[Any], target_law: Sequence[Any] | NDArray[Any], candidates: int
) -> float:
    """The least probability that the token which a position draws is among the best candidates of an earlier law's race.

    It is sum over j of p_j (1 - (m_j / (1 + m_j))^K), with m_j the sum over l of max(r_j q_l - p_l, 0) and r_j = p_j / q_j.

    Parameters
    ----------
    draft_law
        (V,) q, under which the candidates were ranked.
    target_law
        (V,) p, under which the position draws, with the same noise.
    candidates
        K, how many of the best are held.

    Raises
    ------
    InvalidArgument
        A law is none, or they are not as long as each other; ``candidates`` is below 1.

    Examples
    --------
    A second candidate saves nearly half of the misses:

    >>> from coupled_sampling.testing import least_hit_rate
    >>> [round(least_hit_rate([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], candidates), 3) for candidates in (1, 2, 3)]
    [0.631, 0.804, 0.888]
    """
    q = np.array(check_law("draft_law", draft_law), np.float64)
    p = np.array(check_law("target_law", target_law, len(q)), np.float64)
    count = check_count("candidates", candidates)
    possible = (p > 0) & (q > 0)  # a token that the draft law forbids is no candidate
    ratio = p[possible] / q[possible]
    behind = np.maximum(ratio[:, None] * q - p, 0).sum(axis=1)
    return float((p[possible] * (1 - (behind / (1 + behind)) ** count)).sum())
