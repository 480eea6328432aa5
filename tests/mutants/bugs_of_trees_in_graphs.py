"""Bugs of window graphs that take trees: what a slot sees, where it is, and what of the graph is rewritten."""

from planting import Bug

__all__ = ["BUGS"]

TREES = ("test_tree_window",)

BUGS = (
    Bug(
        "slot-0-is-before-every-root",
        "_Tree._sees",
        "graph.op('Where', graph.op('Less', 'parents', graph.integers(0)), slots, 'parents')",
        "graph.op('Max', 'parents', graph.integers(0))",
        "Slots that follow the state below start also see slot 0.",
        TREES,
    ),
    Bug(
        "one-doubling-too-few",
        "_Tree._sees",
        "(max_length - 1).bit_length()",
        "(max_length - 1).bit_length() - 1",
        "A slot at the end of a long path does not see its beginning.",
        TREES,
    ),
    Bug(
        "rows-share-their-parents",
        "_Tree._sees",
        "above = graph.op('Add', above, graph.op('Unsqueeze', first, graph.integers(1)))",
        "above = graph.op('Add', above, graph.op('Mul', graph.op('Unsqueeze', first, graph.integers(1)), graph.integers(0)))",
        "What a slot sees is looked up in the first row.",
        TREES,
    ),
    Bug(
        "positions-by-column-in-sliding-windows",
        "_Tree.mask",
        "graph.op('Unsqueeze', self.column_positions, graph.integers(1))",
        "self.every",
        "A sliding window counts columns, so that slots behind branches see more than it.",
        TREES,
    ),
    Bug(
        "a-mark-in-another-branch-counts",
        "_Tree.picture",
        "graph.op('And', marked, self.visible)",
        "graph.op('And', marked, graph.op('Or', self.visible, graph.op('Not', self.visible)))",
        "A picture begins where a token beside the path begins one.",
        TREES,
    ),
    Bug(
        "one-mask-for-all-layers",
        "_Reading.parts",
        "{mask: self.reach(mask, position) for mask in masks}",
        "{mask: max(self.reach(one, position) for one in masks) for mask in masks}",
        "Layers without a sliding window get that of the others.",
        TREES,
    ),
    Bug(
        "caches-keep-their-columns",
        "tree_window",
        "value.type.tensor_type.shape.dim[2].dim_value = columns",
        "value.type.tensor_type.shape.dim[2].dim_value = parts.max_length",
        "A window of more slots than positions are left cannot be written.",
        TREES,
    ),
)
