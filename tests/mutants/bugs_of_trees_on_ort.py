"""Bugs of windows with branches where ONNX Runtime runs them, on the command line and in what is told of them."""

from planting import Bug

__all__ = ["BUGS"]

ORT = ("test_ort_trees",)
FOREIGN = ("test_concatenated_trees",)

BUGS = (
    Bug(
        "trees-run-as-chains",
        "OrtProvider._forward",
        "chain(count, width) if parents is None else parents",
        "chain(count, width)",
        "Every slot of a tree sees all slots before it, whatever its parent is.",
        ORT,
    ),
    Bug(
        "room-for-windows-without-branches-alone",
        "OrtProvider.__init__",
        "most = graph.cache_length if trees else self.max_window",
        "most = self.max_window",
        "On a GPU with CUDA graphs a window that is wide because of branches does not fit in its memory.",
        ORT,
    ),
    Bug(
        "slots-of-a-tree-at-positions-of-a-chain",
        "ConcatenatedProvider._control",
        "np.arange(width) if tree is None else tree.depth",
        "np.arange(width)",
        "A branch's guesses stand as many positions too late as there are slots between.",
        FOREIGN,
    ),
    Bug(
        "foreign-trees-unchecked",
        "ConcatenatedProvider.__init__",
        "if isinstance(self, _ConcatenatedTrees):\n    check_trees(self, tolerance)",
        "",
        "A graph that takes positions and masks and does not go by them is decoded with.",
        FOREIGN,
    ),
    Bug(
        "branches-for-every-method",
        "DecodingSettings.by",
        "self.branches if found.refuses_branches is None else 0",
        "self.branches",
        "Beside scd-match with branches nothing else can be measured, ar least of all.",
        ("test_branches_option", "test_bundle_settings"),
    ),
    Bug(
        "branches-of-discarded-tokens-told",
        "Row._commit",
        "min(accepted, self.committed) - self.given",
        "accepted - self.given",
        "A trace names tokens of branches behind the stop token that ended the sequence.",
        ("test_bookkeeping",),
    ),
)
