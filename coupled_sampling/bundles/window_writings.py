"""What a manifest says of the window graph's other writings: the same model for other windows, or for other kernels."""

from __future__ import annotations

from dataclasses import dataclass

from coupled_sampling.bundles.records import expect
from coupled_sampling.fields import check_fields

__all__ = ["CausalGraph", "TreeGraph"]


@dataclass(frozen=True)
class TreeGraph:
    """The window graph for windows that are trees: the same model, with the further input ``parents``.

    Parameters
    ----------
    file
        Name of the ONNX file in the bundle.
    cache_length
        Static number of columns of its caches, which differ from the window graph's in nothing else. A window of W slots needs W of
        them from its start on.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> open_bundle("fashion").manifest.tree_graph
    TreeGraph(file='window-tree.onnx', cache_length=480)
    """

    file: str
    cache_length: int

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CausalGraph:
    """The window graph once more, without masks and without ``kv_length``; see ``docs/bundle-format.md``.

    Parameters
    ----------
    file
        Name of the ONNX file in the bundle.
    heads
        Heads of queries, a multiple of the window graph's ``kv_heads``: which kernels a runtime has depends on whether they are as
        many.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> open_bundle("fashion").manifest.causal_graph
    CausalGraph(file='window-causal.onnx', heads=6)
    """

    file: str
    heads: int

    def __post_init__(self) -> None:
        check_fields(self)
        expect(self.heads >= 1, "causal_graph.heads", self.heads, "an integer >= 1")
