"""`HostStep`: one coupled step over any logits provider, on any arrays.

A step forwards a window, turns its logits into target laws, and treats the sites from the first draft on:

- the draft law q of a recycled draft is the target law of the round before *whether the draft was kept or redrawn
  then*;
  a fresh draft has a point mass, or the law its drafting rule carries; a site without a draft has q = 0, which makes
  its residual the target law itself, so that the free token after an accepted window is an ordinary correction;
- drafts are accepted from the left until the first refusal, which is corrected from this same pass;
- later sites are redrafted by the method's coupling and stay as recycled drafts.

Why it is lossless: let F_i be all that was decided at positions < i in all rounds. Given F_i, the draft at i has law
q_i and q_i is a function of F_i; acceptance and residual uniforms are independent of the noise the draft was drawn
with; and whether the decision at i is reached is a function of F_i. So the committed token has law p_i given its
prefix. This holds whatever the drafting, as long as a draft with a point mass is chosen from what lies to its left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling import arrays
from coupled_sampling.acceptance import acceptance_ratio, residual
from coupled_sampling.arrays import as_like, first_true, from_host, namespace, pick, to_host
from coupled_sampling.contracts import (
    Array,
    Closeable,
    Closing,
    Integers,
    LogitsProvider,
    Outcome,
    PromptObserver,
    Runs,
    Window,
    max_window,
    what_runs,
)
from coupled_sampling.draft_laws import DraftLaws, KeptLaws, Run
from coupled_sampling.errors import ProviderError
from coupled_sampling.methods import Method, find_method
from coupled_sampling.noise import CounterNoise, Noise, Purpose, Sites
from coupled_sampling.target import target_laws

__all__ = ["HostStep", "Slots"]


class Slots(NamedTuple):
    """The sites of one step: slot j of these arrays (B, n) decides position ``sites.position[:, j]``."""

    sites: Sites
    first: int
    """The window slot that slot 0 here is: everything before it only forwards known tokens."""
    has_draft: NDArray[np.bool_]
    """(B, n)."""
    draft: Integers
    """(B, n) the draft to test, anything where there is none."""


class Decided(NamedTuple):
    """What a step decides: tokens (B, n) for every site and the slot (B,) of each row's last committed one."""

    tokens: Array
    last: Array


class HostStep(Closing):
    """One coupled step over ``provider``; laws stay in the provider's array library and on its device.

    Parameters
    ----------
    provider
        Any `LogitsProvider`.
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    noise
        Where draws come from; default `CounterNoise`.

    Notes
    -----
    Nothing larger than (B, W) reaches the host: each site's largest logit (is it usable), the tokens and the counts.
    """

    def __init__(
        self, provider: LogitsProvider, method: str | Method = "scd-gumbel", noise: Noise | None = None
    ) -> None:
        self.provider = provider
        self.noise: Noise = CounterNoise() if noise is None else noise
        self.method = find_method(method)
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size)
        self.max_length = int(provider.max_length)
        self.max_window = max_window(provider)
        self._laws = KeptLaws()

    @property
    def runs(self) -> Runs:
        """What runs the provider; steps are decided here."""
        return replace(what_runs(self.provider), step="host")

    def close(self) -> None:
        """Forget all laws and close the provider, if it can be closed."""
        for row in range(self.batch_size):
            self._laws.forget(row)
        if isinstance(self.provider, Closeable):
            self.provider.close()

    def begin(self, row: int, prompt: Integers) -> None:
        """Forget what ``row`` held; tell the provider, if it wants to know, which ``prompt`` comes."""
        self._laws.forget(row)
        if isinstance(self.provider, PromptObserver):
            self.provider.begin(row, prompt)

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        ProviderError
            The provider's logits have a wrong shape or type, or cannot be made into a law (`InvalidLogits`).
        """
        rows, width = window.tokens.shape
        tokens, committed = np.zeros((rows, width), np.int64), np.zeros(rows, np.int64)
        logits = self._forward(window)
        if not window.draws.any():
            return Outcome(tokens, committed)
        slots = self._slots(window)
        sites = slots.sites
        logits = logits[:, slots.first :, :]
        memory = self._laws.room(logits)
        target = target_laws(logits, window.rows, window.contexts, sites.position, sites.valid, memory)
        decided = self._decide(target, slots, window)
        tokens[:, slots.first :] = to_host(decided.tokens)
        first_new = np.maximum(window.known - 1 - slots.first, 0)
        committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)
        if self.method.recycles and self.method.acceptance == "rejection":
            # Last of all: a step that fails before must find the laws of its drafts when it is tried again.
            self._remember(target, slots, decided)
        return Outcome(tokens, committed)

    def _forward(self, window: Window) -> Array:
        logits = self.provider.forward(window.tokens, window.start)
        expected = (*window.tokens.shape, self.vocab_size)
        shape = getattr(logits, "shape", None)
        if shape is None or tuple(shape) != expected:
            raise ProviderError(
                f"forward returned {type(logits).__name__} of shape {None if shape is None else tuple(shape)}, "
                f"expected logits of shape {expected}: (rows, window, vocabulary)"
            )
        if not arrays.is_floating(logits):
            raise ProviderError(f"forward returned logits of type {logits.dtype}, expected a floating type")
        return logits

    def _slots(self, window: Window) -> Slots:
        """The sites from the first one that any row decides to the end of the window."""
        rows, width = window.tokens.shape
        opening = window.known - 1
        first = int(opening[window.draws].min())
        slot = np.arange(first, width)
        end = np.where(window.draws, window.known + window.recycled + window.fresh, 0)
        valid = (slot >= opening[:, None]) & (slot < end[:, None])
        draft = np.zeros((rows, width - first), np.int64)
        draft[:, :-1] = window.tokens[:, first + 1 :]
        sites = Sites(
            seed=np.array([0 if info is None else info.seed for info in window.rows], np.uint64),
            sequence=np.array([0 if info is None else info.sequence for info in window.rows], np.uint64),
            round=window.round,
            position=window.start[:, None] + slot + 1,
            valid=valid,
        )
        return Slots(sites, first, valid & (slot + 1 < end[:, None]), draft)

    def _decide(self, target: Array, slots: Slots, window: Window) -> Decided:
        """Accept, correct and redraft by the method's rules."""
        if self.method.acceptance != "rejection":
            return self._decide_by_match(target, slots)
        laws = self._draft_laws(target, slots, window)
        draft = from_host(slots.draft, target)
        has_draft = from_host(slots.has_draft, target)
        everywhere = self.method.redraft == "maximal"
        kept = has_draft & self.noise.bernoulli(
            acceptance_ratio(pick(target, draft), laws.of_drafts(target)),
            slots.sites,
            Purpose.ACCEPT,
            where=has_draft,
            leading=not everywhere,
        )
        refused = from_host(slots.sites.valid, target) & ~kept
        last = first_true(refused)
        if everywhere:
            return Decided(self._correct(target, laws, refused, slots), last)
        return Decided(self._redraft(target, laws, last, slots), last)

    def _decide_by_match(self, target: Array, slots: Slots) -> Decided:
        """Every site takes the target's own token under its position's noise; drafts that equal it are accepted."""
        xp = namespace(target)
        valid = from_host(slots.sites.valid, target)
        own = self.noise.shared(target, slots.sites, where=valid)
        kept = from_host(slots.has_draft, target) & (own == from_host(slots.draft, target))
        return Decided(xp.astype(own, xp.int64), first_true(valid & ~kept))

    def _correct(self, target: Array, laws: DraftLaws, refused: Array, slots: Slots) -> Array:
        """Maximal coupling at every site: the draft where it is kept, else a draw from the residual."""
        if isinstance(target, np.ndarray):
            rows, at = np.nonzero(refused)
            return self._corrected(target, laws, rows, at, slots)
        weights = residual(target, laws.dense(target))
        drawn = self.noise.categorical(weights, slots.sites, Purpose.RESIDUAL, where=refused)
        return namespace(target).where(refused, drawn, from_host(slots.draft, target))

    def _corrected(self, target: Array, laws: DraftLaws, rows: Integers, at: Integers, slots: Slots) -> Integers:
        """The drafts (B, n), in numpy, with a draw from the residual at the sites ``(rows[k], at[k])``."""
        sites = slots.sites
        each = Sites(
            seed=sites.seed[rows],
            sequence=sites.sequence[rows],
            round=sites.round[rows],
            position=sites.position[rows, at][:, None],
            valid=np.ones((len(rows), 1), bool),
        )
        weights = laws.residuals(target, rows, at)[:, None, :]
        drawn = self.noise.categorical(weights, each, Purpose.RESIDUAL, where=from_host(each.valid, target))
        tokens = np.array(slots.draft)
        tokens[rows, at] = to_host(drawn)[:, 0]
        return tokens

    def _redraft(self, target: Array, laws: DraftLaws, last: Array, slots: Slots) -> Array:
        """Drafts before the ``last`` committed site, its correction, and the method's redrafts after it."""
        at_last = to_host(last)
        rows = np.flatnonzero(slots.sites.valid.any(axis=1))
        tokens = from_host(self._corrected(target, laws, rows, at_last[rows], slots), target)
        later = from_host(slots.sites.valid & (np.arange(slots.draft.shape[1]) > at_last[:, None]), target)
        if self.method.redraft == "independent":
            redrawn = self.noise.categorical(target, slots.sites, Purpose.REDRAFT, where=later)
        elif self.method.redraft == "gumbel":
            redrawn = self.noise.shared(target, slots.sites, where=later)
        else:
            return tokens
        return namespace(target).where(later, redrawn, tokens)

    def _draft_laws(self, target: Array, slots: Slots, window: Window) -> DraftLaws:
        """Laws of the window's drafts: recalled for recycled ones, given or point masses for fresh ones."""
        runs = []
        for b in range(len(window.start)):
            own: list[Run] = []
            recycled, fresh = int(window.recycled[b]), int(window.fresh[b])
            at = int(window.known[b]) - 1 - slots.first
            if window.draws[b] and recycled:
                position = int(window.start[b] + window.known[b])
                own.append(Run(at, at + recycled, self._laws.recall(b, int(window.round[b]) - 1, position, recycled)))
            if window.draws[b] and fresh:
                carried = window.fresh_laws[b]
                laws = None if carried is None else as_like(carried, target)
                own.append(Run(at + recycled, at + recycled + fresh, laws))
            runs.append(own)
        return DraftLaws(slots.draft, runs)

    def _remember(self, target: Array, slots: Slots, decided: Decided) -> None:
        """Record the law that every redrafted site now has: this round's target law, kept or redrawn."""
        for b in np.flatnonzero(slots.sites.valid.any(axis=1)).tolist():
            self._laws.keep(b, int(slots.sites.round[b]), int(slots.sites.position[b, 0]), target[b, ...])
