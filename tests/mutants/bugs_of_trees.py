"""Windows that are trees: who sees whom, which branches are chosen, what is walked, and what of it is kept."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

SHAPES = ("test_trees",)
CHOSEN = ("test_branching",)
WALKED = ("test_tree_steps", "test_tree_decoding")
SHOWN = ("test_tree_contexts", "test_tree_steps", "test_tree_decoding")

BUGS = (
    Bug(
        "a-slot-sees-two-steps-of-its-path",
        "Tree.of",
        "above = above[row, above]",
        "above = np.full_like(above, width)",
        "What a slot sees ends with its parent: the doubling stops after the first time.",
        SHAPES,
    ),
    Bug(
        "leading-slots-counted-through-a-branch",
        "Tree.leading",
        "np.arange(-1, width - 1)",
        "np.minimum(np.arange(-1, width - 1), self.parents)",
        "A slot that follows an earlier one than the one before it counts as leading, and its state as valid.",
        SHAPES,
    ),
    Bug(
        "a-parent-below-the-state",
        "check_parents",
        "(parents < -1)",
        "(parents < -2)",
        "A parent that is none passes for the state below the window.",
        SHAPES,
    ),
    Bug(
        "siblings-of-a-branch-forgotten",
        "_Search.run",
        "self._push(parent, depth, previous, place + 1, before)",
        "",
        "Of each position only one candidate beside the path is tried behind the same beginning.",
        CHOSEN,
    ),
    Bug(
        "a-branch-as-likely-as-its-last-token",
        "_Search.run",
        "self._push(len(self._path) + len(parents), depth + 1, candidate, 0, -chance)",
        "self._push(len(self._path) + len(parents), depth + 1, candidate, 0, 1.0)",
        "The probability of what stands before a candidate is left out: deep branches push likelier ones aside.",
        CHOSEN,
    ),
    Bug(
        "branches-beyond-the-last-position",
        "checked_branches",
        "depths[-1] >= context.reach",
        "depths[-1] > context.reach",
        "A rule may guess for a position that the sequence does not have.",
        CHOSEN,
    ),
    Bug(
        "a-branch-stands-without-its-parent",
        "decide_tree",
        "xp.any(sees & refused[:, None, :], axis=-1)",
        "refused",
        "A branch is walked whose last draft stands, whatever became of the drafts before it.",
        WALKED,
    ),
    Bug(
        "redrafts-in-the-order-of-the-slots",
        "decide_tree",
        "xp.where(site <= reach, ordered[:, : site.shape[0]], site)",
        "site + 0 * ordered[:, : site.shape[0]]",
        "The tokens of the path are committed where a branch was walked.",
        WALKED,
    ),
    Bug(
        "rows-that-decide-nothing-lie-below-the-first-slot",
        "Window.tree_decisions",
        "np.maximum(tree.depth[:, first:] - first, 0)",
        "tree.depth[:, first:] - first",
        "Padding has a depth below 0, and a step fails where all rows that draw begin late.",
        WALKED,
    ),
    Bug(
        "positions-of-a-tree-counted-by-slot",
        "Window.tree_decisions",
        "self.start[:, None] + tree.depth[:, first:] + 1",
        "self.start[:, None] + np.arange(first, self.tokens.shape[1]) + 1",
        "A branch's own token is drawn with the noise of its column and not of its position.",
        WALKED,
    ),
    Bug(
        "state-of-a-branch-taken-for-cached",
        "Row.apply",
        "self.cached = first + (int(differs.argmax()) if differs.any() else stood)",
        "self.cached = first + stood",
        "Tokens that were drafts of branches count as cached, though the path's drafts were written there.",
        WALKED,
    ),
    Bug(
        "state-beyond-the-path-taken-for-cached",
        "Row.apply",
        "min(count - 1, len(drafts))",
        "count - 1",
        "Where a branch went on behind the path, its tokens count as cached.",
        WALKED,
    ),
    Bug(
        "candidates-of-the-round-before-last",
        "Row.apply",
        "self.candidates = outcome.candidates.get(b)",
        "self.candidates = outcome.candidates.get(b, self.candidates)",
        "Where a step tells no candidates, those of an earlier one stay, for positions that are committed since.",
        CHOSEN,
    ),
    Bug(
        "branches-stand-behind-the-drafts-they-name",
        "_with_branches",
        "own.parents + int(window.known[b])",
        "own.parents + int(window.known[b]) - 1",
        "Each branch follows the slot before its parent.",
        WALKED,
    ),
    Bug(
        "branches-beyond-the-columns",
        "Assembly._branches",
        "min(most - (ends[b] - row.cached), self.columns - ends[b])",
        "most - (ends[b] - row.cached)",
        "Towards the end of a model without columns to spare a row gets more branches than there is room for.",
        WALKED,
    ),
    Bug(
        "no-draft-left-to-the-path",
        "Row.reach",
        "self.committed - self.cached + 1",
        "self.committed - self.cached",
        "As many branches as a window has slots leave the path no draft, so that there is never a candidate.",
        CHOSEN,
    ),
    Bug(
        "processors-shown-the-path-beside-a-branch",
        "tree_contexts:_runs",
        "np.concatenate([before, own])",
        "np.concatenate([window.contexts[row][: start + first], window.tokens[row, first : first + len(own)]])",
        "A processor is shown the path's drafts where a branch has its own.",
        SHOWN,
    ),
    Bug(
        "noise-of-a-tree-by-column",
        "CounterNoise._weights",
        "return held[index] if kind is _Races else namespace(held).take(held, from_host(index, like), axis=0)",
        "return held[np.minimum(np.arange(len(index)), len(held) - 1)]",
        "Slots of a tree get the noise of consecutive positions.",
        WALKED,
    ),
    Bug(
        "candidates-without-the-draw-in-front",
        "Candidates.led",
        "tokens[i, 0] = redrafts[i]",
        "",
        "A redraft that is not the best of its race is not the first candidate.",
        ("test_branching", "test_trees_exactly"),
    ),
)
