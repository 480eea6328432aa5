"""What processors are shown in a window that is a tree: of every slot the tokens on its own path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.contracts import Integers, TreeDecisions, Window
from coupled_sampling.processor_runs import Context

__all__ = ["tree_contexts"]


def tree_contexts(window: Window, tree: TreeDecisions) -> Sequence[Context]:
    """The `coupled_sampling.processor_runs.Context` of every row of ``window``.

    Slots that follow one another share one, so that processors are called once for the path and once for every run of a branch.

    Examples
    --------
    A known token 5, a draft 3, and another guess beside it, 4, with a guess of its own behind it:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one, looks = np.array([1]), Sampling(processors=(lambda logits, tokens, positions: logits,))
    >>> window = Window(
    ...     np.array([[5, 3, 4, 7]]), 2 * one, one, one, 0 * one, one == 1, one, [RowInfo(0, 0, looks)], [np.array([8, 9, 5, 3])],
    ...     [None], branches=2 * one, parents=np.array([[-1, 0, 0, 2]]),
    ... )
    >>> for slots, tokens in tree_contexts(window, window.tree_decisions())[0]:
    ...     print(list(slots), tokens)
    [0, 1] [8 9 5 3]
    [2, 3] [8 9 5 4 7]
    """
    return [
        known if info is None or not info.sampling.processors else _runs(window, tree, b)
        for b, (info, known) in enumerate(zip(window.rows, window.contexts, strict=True))
    ]


def _runs(window: Window, tree: TreeDecisions, row: int) -> list[tuple[range, Integers]]:
    first, start = tree.slots.first, int(window.start[row])
    valid = np.flatnonzero(tree.slots.sites.valid[row]).tolist()
    follows = [column for column in valid[1:] if tree.parents[row, column] == column - 1]
    begins = [column for column in valid if column not in follows]
    found = []
    for begin, end in zip(begins, [*begins[1:], valid[-1] + 1 if valid else 0], strict=False):
        path = np.flatnonzero(tree.sees[row, end - 1])
        own = window.tokens[row, first:][path]
        before = window.contexts[row][: start + first + int(tree.depth[row, path[0]])]
        found.append((range(begin, end), np.concatenate([before, own])))
    return found
