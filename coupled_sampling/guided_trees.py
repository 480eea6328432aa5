"""Windows that are trees for the two rows of a guided one: `coupled_sampling.guided_rows`, with branches.

The unconditional row has the same tree, moved by the row's *shift*. Three things may be in the way:

- a slot at a position that the unconditional row does not have: before its prompt begins, or behind the end of the request. It is
  left out of the tree, and those that follow it in the first case begin at position 0;
- a slot where the unconditional prompt still goes on: it has the prompt's token, beside whatever else. What follows it sees that;
- columns. Slots side by side take as many as they are, and a row that is shifted upwards may have fewer left than the window is
  wide. Then it begins lower, with tokens that were shown before, and what does not fit goes into further calls, path by path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import read_only
from coupled_sampling.contracts import Integers
from coupled_sampling.guided_rows import GuidedRows, PairedWindow, Scale, Unconditional
from coupled_sampling.trees import Tree, chain

__all__ = ["BEFORE", "BEHIND", "GuidedTrees", "PairedTrees", "TreeWindow"]

BEFORE, BEHIND = -1, -2
"""Partners of slots that have none: before the unconditional prompt begins, and behind the end of the model's memory."""


class TreeWindow(NamedTuple):
    """What `coupled_sampling.contracts.Trees.forward_tree` is called with."""

    tokens: Integers
    """(n, W)."""
    start: Integers
    """(n,)."""
    parents: Integers
    """(n, W)."""

    def frozen(self) -> TreeWindow:
        """The same, read-only."""
        return TreeWindow(*map(read_only, self))


class PairedTrees(NamedTuple):
    """Windows for a model of two rows for each guided one: the conditional row, then the unconditional one."""

    calls: Sequence[TreeWindow]
    """One as a rule, of 2B rows. Conditional rows are the same in all of them, and the last one leaves the state wanted."""
    partner: Integers
    """(B, W) where the unconditional logits of each slot are: call * W + slot, or `BEFORE` or `BEHIND`."""
    scale: NDArray[np.float64]
    """(B, W) the guidance scale of each slot."""
    rows: range
    """The guided rows."""


class GuidedTrees(GuidedRows):
    """Pairs of rows of a model that takes trees, in so many ``columns``; the rest is as for `GuidedRows`."""

    def __init__(
        self,
        unconditional: Unconditional,
        batch_size: int,
        vocab_size: int,
        max_length: int,
        scale: Scale,
        columns: int,
    ) -> None:
        super().__init__(unconditional, batch_size, vocab_size, max_length, scale)
        self._columns = columns
        self.max_columns = columns - (max_length - self.max_length)
        """Columns of a guided row that are sure to fit, as `GuidedRows.max_length` are positions."""
        self._shown = np.zeros((batch_size, max_length), np.int64)
        """By row and position; what stands below a window's start."""

    def fork(self, source: int, targets: Sequence[int], length: int) -> Iterator[tuple[int, list[int], int]]:
        """See `GuidedRows.fork`."""
        yield from super().fork(source, targets, length)
        self._shown[list(targets), :length] = self._shown[source, :length]

    def paired(self, tokens: Integers, start: Integers, first: int = 0) -> PairedWindow:
        """See `GuidedRows.paired`."""
        for row, (own, begin) in enumerate(zip(tokens, start.tolist(), strict=True), first):
            self._shown[row, begin : begin + len(own)] = own
        return super().paired(tokens, start, first)

    def trees(self, tokens: Integers, start: Integers, parents: Integers, first: int = 0) -> PairedTrees:
        """The windows of both rows for the tree ``tokens`` (n, W), ``parents`` (n, W) of the guided rows from ``first`` on."""
        rows, width = tokens.shape
        tree, own = Tree.of(parents), TreeWindow(tokens, start, parents)
        leading = tree.leading().tolist()
        partner, scale = np.empty((rows, width), np.int64), np.empty((rows, width))
        beside: list[list[_Window]] = []
        for b in range(rows):
            pair, begin = self._pair(first + b), int(start[b])
            self._shown[first + b, begin : begin + leading[b]] = tokens[b, : leading[b]]
            windows, partner[b] = self._unconditional_tree(own, tree, b, first + b)
            beside.append(windows)
            scale[b] = pair.scales[np.clip(begin + tree.depth[b] + 1 - pair.prompt_length, 0, len(pair.scales) - 1)]
        count = max(map(len, beside))
        calls = [TreeWindow(*(np.repeat(array, 2, axis=0) for array in own)) for _ in range(count)]
        for b, windows in enumerate(beside):
            missing = count - len(windows)
            partner[b] += np.where(partner[b] >= 0, missing * width, 0)
            for call, window in zip(calls, [*windows[-1:] * missing, *windows], strict=True):
                call.tokens[2 * b + 1], call.start[2 * b + 1], call.parents[2 * b + 1] = window
        return PairedTrees([call.frozen() for call in calls], partner, scale, range(first, first + rows))

    def tree_openings(self, paired: PairedTrees) -> Iterator[TreeWindow]:
        """Windows to forward before ``paired``, as `GuidedRows.openings` has them, for a model that cannot forward rows alone."""
        width = paired.scale.shape[1]
        for row, first, pair in self._unopened(paired.rows, width):
            begin = min(first, self._columns - width)
            prompt = pair.unconditional[begin : min(begin + width, pair.shift)]
            window = TreeWindow(*(array.copy() for array in paired.calls[-1]))
            place = 2 * row + 1
            window.tokens[place], window.start[place], window.parents[place] = 0, begin, -1
            window.tokens[place, : len(prompt)] = prompt
            window.parents[place, : len(prompt)] = chain(1, len(prompt))
            yield window.frozen()

    def _unconditional_tree(self, own: TreeWindow, tree: Tree, b: int, row: int) -> tuple[list[_Window], Integers]:
        """What the unconditional row of ``row`` forwards in each call, and the partners (W,) of the row's own slots."""
        pair, width = self._pair(row), own.tokens.shape[1]
        prompt = pair.unconditional
        position = int(own.start[b]) + pair.shift + tree.depth[b]
        tokens = np.where(position < len(prompt), prompt[np.clip(position, 0, len(prompt) - 1)], own.tokens[b])
        begin = min(max(0, int(own.start[b]) + pair.shift), self._inner_length - 1)
        again = max(0, begin + width - self._columns)
        below = pair.window(self._shown[row], 0, begin - again)[:again]
        kept = np.flatnonzero((position >= 0) & (position < self._inner_length))
        partner = np.where(position < 0, BEFORE, BEHIND)
        windows: list[_Window] = []
        # What has the leading slots comes last, and stays.
        for call, slots in enumerate(reversed(_parts(tree.sees[b], kept, width - again))):
            shown, parents = np.zeros(width, np.int64), np.full(width, -1)
            new = again + np.arange(len(slots))
            shown[:again], parents[:again], shown[new] = below, np.arange(-1, again - 1), tokens[slots]
            place = np.full(
                width + 1, again - 1
            )  # of a slot whose parent is no slot here; its last entry is for a parent of -1
            place[slots] = new
            parents[new] = place[own.parents[b, slots]]
            partner[slots] = call * width + new
            windows.append(_Window(shown, begin - again, parents))
        return windows, partner


class _Window(NamedTuple):
    """A row of a `TreeWindow`."""

    tokens: Integers
    start: int
    parents: Integers


def _parts(sees: NDArray[np.bool_], kept: Integers, room: int) -> list[Integers]:
    """The slots ``kept`` in parts of at most ``room``, each with all that its slots see; the first slots in the first part."""
    if len(kept) <= room:
        return [kept]
    parts = [np.zeros(len(sees), np.bool_)]
    among = np.zeros(len(sees), np.bool_)
    among[kept] = True
    for slot in kept:
        path = sees[slot] & among
        if (parts[-1] | path).sum() > room:
            parts.append(np.zeros(len(sees), np.bool_))
        parts[-1] |= path
    return [np.flatnonzero(part) for part in parts]
