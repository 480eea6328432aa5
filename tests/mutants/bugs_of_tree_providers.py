"""Bugs of providers that take windows with branches: paths in rows of a batch, and the two rows of a guided one."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

PATHS = ("test_rows_as_paths",)
GUIDED = ("test_guidance_of_trees",)

BUGS = (
    Bug(
        "spare-row-begins-where-the-window-does",
        "RowsAsPaths._begins",
        "first if _UNKNOWN in run[:first] else min(common_length(self._held[row], run), first)",
        "first",
        "Behind a branch that was not taken, a spare row goes on from that branch.",
        PATHS,
    ),
    Bug(
        "first-row-left-on-a-branch",
        "RowsAsPaths.forward_tree",
        "reversed(range(rounds))",
        "range(rounds)",
        "Where a tree takes several calls, the sequence's own row ends in the state of another path.",
        PATHS,
    ),
    Bug(
        "spare-rows-remember-the-request-before",
        "_Told.begin",
        "self._held[spare] = _NOTHING",
        "pass",
        "Branches behind a copied prompt stand on the state of the request before, where the tokens are the same.",
        PATHS,
    ),
    Bug(
        "path-in-place-of-another",
        "_Paths.of",
        "order = [own, *(i for i in range(len(paths)) if i != own)]",
        "order = list(range(len(paths)))",
        "The longest path is taken for the row's own.",
        PATHS,
    ),
    Bug(
        "unconditional-parents-not-moved",
        "GuidedTrees._unconditional_tree",
        "place[own.parents[b, slots]]",
        "own.parents[b, slots]",
        "Where slots are left out of the unconditional row's tree, the others hang from wrong ones.",
        GUIDED,
    ),
    Bug(
        "unconditional-prompt-replaced-by-branches",
        "GuidedTrees._unconditional_tree",
        "prompt[np.clip(position, 0, len(prompt) - 1)]",
        "own.tokens[b]",
        "In a tree the unconditional row goes on with the row's own prompt.",
        GUIDED,
    ),
    Bug(
        "branches-kept-beside-the-path",
        "GuidedTrees._unconditional_tree",
        "reversed(_parts(tree.sees[b], kept, width - again))",
        "_parts(tree.sees[b], kept, width - again)",
        "Where columns are short, the unconditional row ends in the state of a branch.",
        GUIDED,
    ),
    Bug(
        "guidance-of-a-slot-not-of-its-position",
        "GuidedTrees.trees",
        "begin + tree.depth[b] + 1 - pair.prompt_length",
        "begin + np.arange(width) + 1 - pair.prompt_length",
        "A branch has the guidance scale of a later token.",
        GUIDED,
    ),
)
