"""The rule of SJD-PAC (arXiv 2603.18599), mended, as a small decoder of its own: several candidates a position under rejection.

What is forwarded, as the paper and its released code say: a tree of ``depth`` levels whose root is the last committed token and
whose nodes have ``width`` children each (the same candidates under every parent), and behind the tree's first branch a chain, up to
the number of slots. Paper: width 4, depth 3; code: 3 and 3. After a pass

1. the tree is walked from its root: at each position the candidates are tested one after another, and where all are refused, the
   token is drawn from what is left of the target law (proactive drafting);
2. every later draft of the path is kept or redrawn by the same test against the law of this pass (adaptive continuation: the
   maximal coupling), and gets ``width - 1`` siblings where the next tree will have them.

What is mended, see ``docs/losslessness.md``: siblings are drawn from the recorded law without the earlier ones, renormalised, and
the walk tests them so (released: drawn from the residual, recorded under the law). After a fully accepted window the next token is
drawn from the target law (released: uniformly). Both mistakes can be switched on, to see that the proof sees them.

What is assumed in its favour: a token committed on a side branch need not be forwarded again (their code copies its state), so that
re-entering tokens take no slot here; and the last slot's law gives one more draft (theirs draws that one uniformly).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Laws = NDArray[np.float64]
Choose = Callable[[Laws], int]
"""Draws an index from weights that add up to 1."""
LawsOf = Callable[[Sequence[int], Sequence[int], Sequence[int]], Laws]
"""The target laws (n, V) of the n nodes of a tree, by their tokens and parents; node 0 is the last of the committed tokens."""


class Draft(NamedTuple):
    """What is guessed for one position: candidates in their order, and the law of the first one."""

    candidates: tuple[int, ...]
    law: tuple[float, ...]


@dataclass(frozen=True)
class Pac:
    """The rule, and how much it forwards."""

    slots: int
    width: int = 4
    depth: int = 3
    copies: int | None = None
    """Fresh drafts repeat the token so far back, if it was generated (a point mass); None draws them uniformly, as published."""
    siblings_from_residual: bool = False
    """First mistake of the released code."""
    uniform_after_all: bool = False
    """Second mistake of the released code."""

    @property
    def reach(self) -> int:
        """Drafts of the path: the tree's levels below its root, and the chain."""
        nodes = sum(self.width**level for level in range(self.depth))
        return self.depth - 1 + self.slots - nodes

    def advance(
        self,
        committed: tuple[int, ...],
        drafts: tuple[Draft, ...],
        length: int,
        prompt: int,
        laws_of: LawsOf,
        choose: Choose,
        vocab_size: int,
    ) -> tuple[tuple[int, ...], tuple[Draft, ...]]:
        """One pass: what is committed after it (``length`` tokens at most), and the drafts of the positions behind."""
        drafts = self._filled(
            committed, drafts, min(self.reach, length - 1 - len(committed)), prompt, choose, vocab_size
        )
        tokens, parents, children = self._tree(committed[-1], drafts)
        laws = laws_of(committed, tokens, parents)
        node, made = 0, []
        while True:
            token, after = self._tested(laws[node], drafts, len(made), [tokens[k] for k in children[node]], choose)
            made.append(token)
            if after is None:
                break
            node = children[node][after]
        if self.uniform_after_all and len(made) == len(drafts) + 1:
            made[-1] = choose(np.full(vocab_size, 1 / vocab_size))
        # The laws of the positions behind: of the walk's end and first children below it, then of the path.
        line = [node]
        while children[line[-1]]:
            line.append(children[line[-1]][0])
        on_path = range(len(made) - 1 + len(line), len(drafts) + 1)
        behind = [laws[k] for k in line[1:]] + [laws[k] for k in on_path]
        found = []
        for i, law in enumerate(behind[: length - 1 - len(committed) - len(made)]):
            place = len(made) + i
            found.append(self._redrafted(law, drafts[place] if place < len(drafts) else None, i, choose))
        return committed + tuple(made), tuple(found)

    def _filled(
        self,
        committed: tuple[int, ...],
        drafts: tuple[Draft, ...],
        wanted: int,
        prompt: int,
        choose: Choose,
        vocab_size: int,
    ) -> tuple[Draft, ...]:
        """``drafts`` up to ``wanted``, with fresh ones behind."""
        made = list(drafts[:wanted])
        line = [*committed, *(draft.candidates[0] for draft in made)]
        while len(made) < wanted:
            if self.copies is None:
                uniform = np.full(vocab_size, 1 / vocab_size)
                made.append(Draft(self._with_siblings(choose(uniform), uniform, len(made), choose), tuple(uniform)))
            else:
                source = len(line) - self.copies
                token = line[source] if source >= prompt else line[-1]
                made.append(Draft((token,), tuple(np.eye(vocab_size)[token])))
            line.append(made[-1].candidates[0])
        return tuple(made)

    def _tree(self, root: int, drafts: tuple[Draft, ...]) -> tuple[list[int], list[int], list[list[int]]]:
        """Tokens, parents and children of the nodes: the path first, then the other branches level by level."""
        tokens, parents = [root], [-1]
        for draft in drafts:
            parents.append(len(tokens) - 1)
            tokens.append(draft.candidates[0])
        children: list[list[int]] = [[node + 1] for node in range(len(drafts))] + [[]]
        level = [0]
        for draft in drafts[: self.depth - 1]:
            below = []
            for parent in level:
                for token in draft.candidates[len(children[parent]) :]:
                    children[parent].append(len(tokens))
                    children.append([])
                    tokens.append(token)
                    parents.append(parent)
                below += children[parent]
            level = below
        return tokens, parents, children

    def _tested(
        self, target: Laws, drafts: tuple[Draft, ...], place: int, candidates: list[int], choose: Choose
    ) -> tuple[int, int | None]:
        """The token of a position, and which of its candidates that is: refusals walk target and draft law along."""
        draft_law = np.array(drafts[place].law) if candidates else target
        for k, token in enumerate(candidates):
            if _bernoulli(min(1.0, target[token] / draft_law[token]), choose):
                return token, k
            target = _normal(np.maximum(target - draft_law, 0))
            draft_law = _without(draft_law, token)
        return choose(target), None

    def _redrafted(self, law: Laws, draft: Draft | None, place: int, choose: Choose) -> Draft:
        """A draft with the law ``law``: the one that was there, if it stands."""
        rest, token = law, None
        if draft is not None:
            token, before = draft.candidates[0], np.array(draft.law)
            rest = np.maximum(law - before, 0)
            rest = _normal(rest) if rest.sum() > 1e-12 else law
            if not _bernoulli(min(1.0, law[token] / before[token]), choose):
                token = None
        first = choose(rest) if token is None else token
        source = rest if self.siblings_from_residual else law
        return Draft(self._with_siblings(first, source, place, choose), tuple(law))

    def _with_siblings(self, first: int, law: Laws, place: int, choose: Choose) -> tuple[int, ...]:
        candidates = [first]
        while len(candidates) < (self.width if place < self.depth - 1 else 1):
            law = _without(law, candidates[-1])
            if not law.any():
                break
            candidates.append(choose(law))
        return tuple(candidates)


def _bernoulli(probability: float, choose: Choose) -> bool:
    return probability > 0 and (probability >= 1 or choose(np.array([probability, 1 - probability])) == 0)


def _normal(law: Laws) -> Laws:
    """``law`` normalised; where it is empty but for rounding, as it is."""
    total = law.sum()
    return law / total if total > 0 else law


def _without(law: Laws, token: int) -> Laws:
    law = law.copy()
    law[token] = 0
    return _normal(law)
