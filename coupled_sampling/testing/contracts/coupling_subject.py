"""A coupling under test, called in the way of its kind: its joint law, and what its kind promises."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import Array
from coupled_sampling.couplings import Decision
from coupled_sampling.testing.contracts.breakpoints import law_of_one, law_of_two

__all__ = ["EXACT", "JUST_BELOW_ONE", "KINDS", "Bound", "Kind", "Law", "Subject", "bounds", "distance"]

Law: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["independent", "maximal", "gumbel", "shared-uniform"]
Bound: TypeAlias = Callable[[Law, Law], tuple[float, float]]
"""``bound(draft_law, target_law) -> (least, most)`` probability of agreement."""

KINDS = ("independent", "maximal", "gumbel", "shared-uniform")
EXACT = 1e-9
JUST_BELOW_ONE = 1 - 2.0**-53


def distance(draft_law: Law, target_law: Law) -> float:
    """Total variation distance."""
    return 0.5 * float(np.abs(draft_law - target_law).sum())


def _tokens(coupled: Any) -> Array:
    """What a coupling returned; `coupled_sampling.couplings.maximal` also says what became of the drafts."""
    return coupled.tokens if isinstance(coupled, Decision) else coupled


def bounds(kind: Kind, draft_law: Law, target_law: Law) -> tuple[float, float]:
    """The promise of ``kind``."""
    variation = distance(draft_law, target_law)
    if kind == "independent":
        return (float((draft_law * target_law).sum()),) * 2
    least = {"maximal": 1 - variation, "gumbel": (1 - variation) / (1 + variation), "shared-uniform": 0.0}[kind]
    return least, 1 - variation


class Subject:
    """The coupling under test, called in the way of its kind."""

    def __init__(self, coupling: Callable[..., Array], kind: Kind, seed: int, samples: int, false_alarm: float) -> None:
        self.kind, self.samples = kind, samples
        self.coupling: Callable[..., Array] = lambda *arguments: _tokens(coupling(*arguments))
        self.random = np.random.default_rng(seed)
        self.false_alarm = false_alarm
        self.joint = functools.lru_cache(maxsize=None)(self._joint)

    def pairs(self) -> list[tuple[Law, Law]]:
        """Pairs of laws, masses multiples of a fraction that the grid sees: near and far, with and without zeros."""
        found = [([1, 1], [1, 1]), ([3, 1], [1, 3]), ([1, 0], [0, 1]), ([2, 1, 1], [1, 1, 2]), ([0, 1, 3], [3, 1, 0])]
        found += [([5, 5, 1, 0, 1], [0, 2, 6, 3, 1]), ([0, 0, 1], [1, 1, 0]), ([4, 3, 2, 1], [4, 3, 1, 2])]
        for size in (3, 4, 5, 6):
            weights = self.random.integers(0, 5, (2, size))
            weights[:, self.random.integers(size)] += 1
            found.append((weights[0].tolist(), weights[1].tolist()))
        return [(np.array(q) / sum(q), np.array(p) / sum(p)) for q, p in found]

    def call(self, draft: Any, draft_law: Law, target_law: Law, *uniforms: Any) -> NDArray[np.int64]:
        """Tokens (n,) for n drafts and uniforms of the same two laws."""
        many = (len(uniforms[0]), len(target_law))
        later = np.broadcast_to(target_law, many)
        if self.kind == "maximal":
            tokens = self.coupling(draft, np.broadcast_to(draft_law, many), later, *uniforms)
        else:
            tokens = self.coupling(later, uniforms[0])
        return np.asarray(to_host(tokens)).astype(np.int64)

    def _joint(self, draft_law: bytes, target_law: bytes) -> Law:
        q, p = np.frombuffer(draft_law), np.frombuffer(target_law)
        size = len(q)
        if self.kind == "gumbel":
            noise = np.random.default_rng(self.random.integers(2**63)).gumbel(size=(self.samples, size))
            first, second = self.call(None, q, q, noise), self.call(None, p, p, noise)
            return np.bincount(first * size + second, minlength=size**2).reshape(size, size) / self.samples
        if self.kind == "shared-uniform":
            both = law_of_one(lambda u: self.call(None, q, q, u) * size + self.call(None, p, p, u), size**2)
            return both.reshape(size, size)
        if self.kind == "independent":
            return np.outer(q, law_of_one(lambda u: self.call(None, q, p, u), size))
        rows = [law_of_two(lambda u, v, x=x: self.call(np.full(len(u), x), q, p, u, v), size) for x in range(size)]  # type: ignore[misc]
        return q[:, None] * np.stack(rows)

    def slack(self, size: int | None) -> float:
        """How far a right coupling's numbers may be off: a law of ``size`` tokens in TV, or a probability if None."""
        if self.kind != "gumbel":
            return EXACT
        alarm = self.false_alarm / 200  # comparisons in all, generously counted
        if size is None:
            return float(np.sqrt(np.log(2 / alarm) / (2 * self.samples)))
        return 0.5 * float(np.sqrt(2 * np.log(2.0**size / alarm) / self.samples))

    def joint_of(self, draft_law: Law, target_law: Law) -> Law:
        """Joint law (V, V): earlier draw by later draw."""
        return self.joint(draft_law.tobytes(), target_law.tobytes())
