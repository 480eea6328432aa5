"""A table model with the usual faults of windows that are trees, one class each, and the check that must name it."""

import numpy as np

from coupled_sampling.testing import TableProvider
from coupled_sampling.trees import Tree
from standins.ranged import Ranged

__all__ = [
    "BROKEN_TREES",
    "NoRoomBehind",
    "OneShape",
    "OneStart",
    "SeesItsParent",
    "SeesWhatIsBehind",
    "TreesOfTheFirstRows",
]


class _Slots(TableProvider):
    """Says of each slot what ``seen`` makes of the state below, the tokens, and the slot's path."""

    def write_tree(self, tokens, start, parents, rows):
        below = {b: tuple(self._held[row, : start[b]].tolist()) for b, row in enumerate(rows)}
        contexts, tree = super().write_tree(tokens, start, parents, rows), Tree.of(parents)
        for b, j in contexts:
            contexts[b, j] = (*below[b], *self.seen(tokens[b].tolist(), tree.path(b, j).tolist(), j))
        return contexts


class SeesAllBefore(_Slots):
    """The mask of windows without branches."""

    def seen(self, tokens, path, slot):
        return tokens[: slot + 1]


class SeesItsParent(_Slots):
    """And nothing further up."""

    def seen(self, tokens, path, slot):
        return [tokens[k] for k in path[-2:]]


class BlindToItself(_Slots):
    def seen(self, tokens, path, slot):
        return [tokens[k] for k in path[:-1]]


class RootsFollowTheLast(_Slots):
    """A parent of -1 is an index like any other, from the end."""

    def seen(self, tokens, path, slot):
        return [*tokens[-1:] * (path[0] > 0), *(tokens[k] for k in path)]


class RootsFollow(TableProvider):
    """A second root follows the slot before it."""

    def write_tree(self, tokens, start, parents, rows):
        return super().write_tree(tokens, start, np.where(parents < 0, np.arange(parents.shape[1]) - 1, parents), rows)


class OneShape(TableProvider):
    """All rows have the first one's tree."""

    def write_tree(self, tokens, start, parents, rows):
        return super().write_tree(tokens, start, np.repeat(parents[:1], len(parents), axis=0), rows)


class OneStart(TableProvider):
    """All rows have the first one's start."""

    def write_tree(self, tokens, start, parents, rows):
        return super().write_tree(tokens, np.full_like(start, start[0]), parents, rows)


class NoRoomBehind(TableProvider):
    """Promises columns that it has not."""

    def write_tree(self, tokens, start, parents, rows):
        if (start + tokens.shape[1] > self.max_length).any():
            raise IndexError("out of range")
        return super().write_tree(tokens, start, parents, rows)


class WritesByPosition(TableProvider):
    """The last branch of a position is what is left."""

    def write_tree(self, tokens, start, parents, rows):
        contexts, tree = super().write_tree(tokens, start, parents, rows), Tree.of(parents)
        for b, row in enumerate(rows):
            self._held[row, start[b] + tree.depth[b]] = tokens[b]
        return contexts


class ForgetsTheLeadingSlots(TableProvider):
    """Trees leave nothing."""

    def write_tree(self, tokens, start, parents, rows):
        contexts = super().write_tree(tokens, start, parents, rows)
        for b, row in enumerate(rows):
            self._held[row, start[b] + 1 :] = -1
        return contexts


class SeesWhatIsBehind(TableProvider):
    """A tree that follows a wider one sees what that has left behind the last of its own columns."""

    left = 0, ()

    def write(self, tokens, start):
        self.left = 0, ()
        return super().write(tokens, start)

    def write_tree(self, tokens, start, parents, rows):
        contexts, end = super().write_tree(tokens, start, parents, rows), int(start[0]) + tokens.shape[1]
        first, left = self.left
        self.left = int(start[0]), tokens[0].tolist()
        behind = left[max(0, end - first) :]
        return {(b, j): (*c[: start[b]], *behind, *c[start[b] :]) for (b, j), c in contexts.items()}


class LosesChains(TableProvider):
    """Takes a short cut where there are no branches, and leaves no state."""

    def write_tree(self, tokens, start, parents, rows):
        contexts = super().write_tree(tokens, start, parents, rows)
        if (parents == np.arange(parents.shape[1]) - 1).all():
            self._held[:, start[0] :] = -1
        return contexts


class TreesOfTheFirstRows(Ranged):
    def write_tree(self, tokens, start, parents, rows):
        return super().write_tree(tokens, start, parents, range(len(rows)))


class WritesParents(TableProvider):
    """Makes indices of what is given."""

    def forward_tree(self, tokens, start, parents, rows):
        logits = super().forward_tree(tokens, start, parents, rows)
        parents[parents < 0] = 0
        return logits


class WantsToOwnParents(TableProvider):
    def forward_tree(self, tokens, start, parents, rows):
        if not parents.flags.writeable:
            raise BufferError("cannot export a read-only array")
        return super().forward_tree(tokens, start, parents, rows)


class TakesAnyParents(TableProvider):
    """Whatever they are, it makes a tree of them."""

    def forward_tree(self, tokens, start, parents, rows):
        parents = np.resize(parents, tokens.shape)
        return super().forward_tree(tokens, start, np.clip(parents, -1, np.arange(tokens.shape[1]) - 1), rows)


class TooFewColumns(TableProvider):
    @property
    def max_columns(self):
        return self.max_length - 1


class ColumnsOfNoInteger(TableProvider):
    @property
    def max_columns(self):
        return 1.5 * self.max_length


BROKEN_TREES = {
    SeesAllBefore: "trees",
    SeesItsParent: "trees",
    BlindToItself: "trees",
    RootsFollowTheLast: "trees",
    RootsFollow: "trees",
    OneShape: "trees",
    OneStart: "trees",
    NoRoomBehind: "trees",
    WritesByPosition: "tree-state",
    ForgetsTheLeadingSlots: "tree-state",
    SeesWhatIsBehind: "tree-state",
    LosesChains: "tree-chain",
    TreesOfTheFirstRows: "tree-rows",
    WritesParents: "tree-read-only",
    WantsToOwnParents: "tree-read-only",
    TakesAnyParents: "trees-refused",
    TooFewColumns: "tree-columns",
    ColumnsOfNoInteger: "tree-columns",
}
