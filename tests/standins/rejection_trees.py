"""A sampler that tests several candidates for a position by rejection: as it should be done, and with faults that were released.

It is Jacobi decoding in the open: a window of drafts in a row, each with one sibling beside it, forwarded in one pass as a tree. At
every position the candidates are tested one after another: the first against the target law, the next against what the refusal of
the one before has left of it. Then all later positions are redrafted from the laws of this pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from coupled_sampling import Sampling
from coupled_sampling.arrays import namespace, normalised
from coupled_sampling.couplings import acceptance_probability, residual
from coupled_sampling.noise import Purpose, Sites
from coupled_sampling.target import target_law

__all__ = ["SiblingsFromTheResidual", "SiblingsNamedAfterTheTarget", "TreeByRejection", "UniformAfterTheWindow"]


class Candidate(NamedTuple):
    """A draft, and the law (1, 1, V) that is recorded for it."""

    token: int
    law: Any


class TreeByRejection:
    """The right one, as a `coupled_sampling.testing` ``Decode``, for a window of so many drafts in a row."""

    def __init__(self, window: int = 2) -> None:
        self.window = window

    def __call__(self, model, noise, prompts, lengths):
        return [self._decoded(model, noise, i, *each) for i, each in enumerate(zip(prompts, lengths, strict=True))]

    def _decoded(self, model, noise, sequence, prompt, length):
        tokens, drafts, end = list(prompt), [], len(prompt) + length
        for round_ in range(length):
            ask = Asker(noise, sequence, round_)
            width = min(self.window, end - len(tokens))
            while len(drafts) < width:  # a first guess: the token 0, and its law says so
                drafts.append([Candidate(0, self._certain(model, tokens))])
            path, beside = self._forwarded(model, tokens, drafts)
            new = self._walked(ask, len(tokens), end, drafts, path, beside)
            tokens += new
            if len(tokens) == end:
                break
            # Behind the last known token and each draft of the path there is a law: as many redrafts as are worth one.
            later = range(len(new), min(len(path), len(new) + self.window, len(new) + end - len(tokens)))
            drafts = [
                self._redrafted(ask, len(tokens) + i - len(new), path[i], drafts[i] if i < width else None)
                for i in later
            ]
        return tokens[len(prompt) :]

    def _certain(self, model, tokens):
        law = target_law(model.forward(np.array([tokens]), np.zeros(1, np.int64))[:, -1:], Sampling())
        return _only(law, 0)

    def _forwarded(self, model, tokens, drafts):
        """One pass: the laws behind the last known token and each draft of the path, and behind each sibling, by position."""
        known, path = len(tokens), [candidates[0].token for candidates in drafts]
        siblings = [(i, each.token) for i, candidates in enumerate(drafts) for each in candidates[1:]]
        window = np.array([[*tokens, *path, *(token for _, token in siblings)]])
        end = known + len(path)
        parents = np.array([[*range(-1, end - 1), *(known - 1 + i for i, _ in siblings)]])
        law = target_law(model.forward_tree(window, np.zeros(1, np.int64), parents, range(1)), Sampling())
        beside = {i: law[:, end + n : end + n + 1] for n, (i, _) in enumerate(siblings)}
        return [law[:, slot : slot + 1] for slot in range(known - 1, end)], beside

    def _walked(self, ask, first, end, drafts, path, beside):
        """The tokens that this pass decides, from position ``first`` on; ``end`` is where the sequence does."""
        new = []
        for i, candidates in enumerate(drafts):
            law = path[i]
            for k, candidate in enumerate(candidates):
                if ask.accepts(first + i, k, acceptance_probability(np.array([[candidate.token]]), candidate.law, law)):
                    new.append(candidate.token)
                    break
                law = normalised(residual(law, candidate.law))
            else:
                return [*new, ask.draws(first + i, "corrected", law)]
            if k:  # nothing stands behind a sibling: its own law gives a token for free
                return new if first + i + 1 == end else [*new, ask.draws(first + i + 1, "free", beside[i])]
        return new if first + len(drafts) == end else [*new, self._free(ask, first + len(drafts), path[-1])]

    def _free(self, ask, position, law):
        """The token after a window that was accepted whole."""
        return ask.draws(position, "free", law)

    def _redrafted(self, ask, position, law, before):
        """Candidates for ``position`` from ``law``; ``before`` are those that this pass tested there, None if there were none."""
        first = ask.draws(position, "redraft", law)
        return [Candidate(first, law), *self._sibling(ask, position, law, first, before)]

    def _sibling(self, ask, position, law, first, before):
        left = _without(law, first)
        return [Candidate(ask.draws(position, "sibling", left), left)] if _some(left) else []


class SiblingsFromTheResidual(TreeByRejection):
    """A sibling is drawn from what the new law has more of than the draft's, and recorded as if it came from the new law."""

    def _sibling(self, ask, position, law, first, before):
        drawn_from = law if before is None else normalised(residual(law, before[0].law))
        return [Candidate(ask.draws(position, "sibling", drawn_from), law)]


class SiblingsNamedAfterTheTarget(TreeByRejection):
    """A sibling is drawn as it should be, from the law without the first candidate, and recorded under the whole law."""

    def _sibling(self, ask, position, law, first, before):
        return [Candidate(each.token, law) for each in super()._sibling(ask, position, law, first, before)]


class UniformAfterTheWindow(TreeByRejection):
    """After a window that was accepted whole the next token is any token."""

    def _free(self, ask, position, law):
        xp = namespace(law)
        return ask.draws(position, "free", normalised(xp.ones_like(law)))


_NUMBERS = {"corrected": 2, "free": 3, "redraft": 4, "sibling": 5}
"""Whose uniform it is, behind those of the candidates 0 and 1."""


class Asker:
    """The noise of one sequence and round, with a uniform of its own for every question."""

    def __init__(self, noise, sequence, round_):
        self._noise, self._sequence, self._round = noise, sequence, round_

    def _sites(self, position, number):
        one = np.ones(1, np.uint64)
        return Sites(
            one * 0,
            one * (10 * self._sequence + number),
            np.array([self._round]),
            np.array([[position]]),
            np.ones((1, 1), bool),
        )

    def accepts(self, position, candidate, probability):
        sites = self._sites(position, candidate)
        return bool(np.asarray(self._noise.bernoulli(probability, sites, Purpose.ACCEPT, where=sites.valid))[0, 0])

    def draws(self, position, what, law):
        sites = self._sites(position, _NUMBERS[what])
        return int(np.asarray(self._noise.categorical(law, sites, Purpose.REDRAFT, where=sites.valid))[0, 0])


def _only(law, token):
    xp, one = namespace(law), np.arange(law.shape[-1]) == token
    return xp.where(xp.asarray(one[None, None]), xp.ones_like(law), xp.zeros_like(law))


def _without(law, token):
    xp, one = namespace(law), np.arange(law.shape[-1]) == token
    return normalised(xp.where(xp.asarray(one[None, None]), xp.zeros_like(law), law))


def _some(law):
    return bool(namespace(law).any(law > 0))
