"""Bugs of windows with branches in the CUDA kernels, in Python. Those of the kernels' own source are in their tests."""

from planting import Bug

__all__ = ["BUGS"]

TREES = ("test_cuda_trees",)

BUGS = (
    Bug(
        "kernels-see-no-branches",
        "KernelStep._fill_table",
        "0 if window.branches is None else window.branches",
        "0",
        "Slots of branches decide nothing: no walk leaves the path.",
        TREES,
    ),
    Bug(
        "depth-counted-by-slots",
        "Plan.run",
        "placed[0], placed[1] = tree.parents, tree.depth",
        "placed[0], placed[1] = tree.parents, np.arange(tokens.shape[1])",
        "A branch is drawn with the noise of a later position, and its tokens are put there.",
        TREES,
    ),
    Bug(
        "corrected-logits-of-one-slot-are-kept",
        "Plans._made",
        "shape.candidates > 0",
        "False",
        "The kernels write corrected logits beyond their memory.",
        TREES,
    ),
    Bug(
        "failure-told-of-another-branch",
        "close_tree",
        "window.tokens[b, tree.path(b, slot)[first + 1 :]].tolist() == tokens[b, first:depth].tolist()",
        "True",
        "A text that fails says of another slot's logits what is wrong with them.",
        TREES,
    ),
    Bug(
        "branches-with-guidance",
        "KernelStep.refuses_branches",
        "self._guided is not None",
        "False",
        "A guided window with branches is forwarded without its unconditional rows.",
        TREES,
    ),
    Bug(
        "candidates-of-what-was-committed",
        "tree_outcomes:candidates_of",
        "window.known - 1 + outcome.committed",
        "window.known - 1 + np.maximum(outcome.committed - 1, 0)",
        "Candidates stand one position too early, and the first of them are garbage.",
        TREES,
    ),
)
