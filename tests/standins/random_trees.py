"""Windows that are trees, drawn at random, and what the same provider says of each path alone."""

import numpy as np

from coupled_sampling.trees import Tree


def random_parents(rows, width, seed=0, leading=1):
    """Parents of windows whose first ``leading`` slots follow one another; each other slot follows any slot before it."""
    random = np.random.default_rng(seed)
    parents = np.stack([[random.integers(-1, slot) if slot else -1 for slot in range(width)] for _ in range(rows)])
    parents[:, :leading] = np.arange(-1, leading - 1)
    return parents.astype(np.int64)


def by_paths(provider, tokens, start, parents, row=0):
    """Logits (W, V) of one row's tree, its paths scored one after the other in windows without branches."""
    tree = Tree.of(parents)
    rows = range(row, row + 1)
    return np.stack(
        [
            provider.forward_rows(tokens[:, tree.path(0, slot)], start, rows)[0, -1].copy()
            for slot in range(tokens.shape[1])
        ]
    )
