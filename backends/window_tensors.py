"""The tensors of a window graph: names, types and shapes, as every back end binds and checks them.

Buffers hold the most rows and slots there can be, and a window has the beginning of each: the first rows of a buffer are where they
always are. A cache is one buffer under two names, past and present, which is how a graph writes it in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from coupled_sampling.bundles.manifest import Manifest, WindowGraph
from coupled_sampling.errors import BundleError

__all__ = [
    "CACHE",
    "WindowTensor",
    "cache_names",
    "cache_shape",
    "causal_window_graph",
    "tree_window_graph",
    "window_tensors",
]

CACHE = "cache"
"""The type of caches, which is the graph's own or what a back end converts it to."""

_ROWS, _SLOTS = "rows", "slots"


class WindowTensor(NamedTuple):
    """An input or output. Its type is "int64", "float32" or `CACHE`."""

    is_input: bool
    dtype: str
    axes: tuple[int | str, ...]

    def shape(self, rows: int, slots: int) -> tuple[int, ...]:
        """Its shape in a window of that many rows and slots."""
        sizes = {_ROWS: rows, _SLOTS: slots}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.axes)


def tree_window_graph(manifest: Manifest) -> WindowGraph:
    """What a bundle's tree graph promises: all that the window graph does, in a file and caches of its own.

    Raises
    ------
    BundleError
        The bundle has none.
    """
    tree = manifest.tree_graph
    if tree is None:
        raise BundleError(manifest.why_no_trees)
    return replace(manifest.window_graph, file=tree.file, cache_length=tree.cache_length)


def causal_window_graph(manifest: Manifest) -> WindowGraph:
    """What a bundle's graph without masks promises: all that the window graph does, in a file of its own, and no ``kv_length``.

    Raises
    ------
    BundleError
        The bundle has none.
    """
    causal = manifest.causal_graph
    if causal is None:
        raise BundleError(
            f"the bundle {manifest.name} has no graph without masks; `coupled-sampling step-graphs` makes a copy that has one, if "
            "the model can do without"
        )
    return replace(manifest.window_graph, file=causal.file, has_kv_length=False)


def window_tensors(manifest: Manifest, *, trees: bool = False, causal: bool = False) -> dict[str, WindowTensor]:
    """All inputs and outputs of a bundle's window graph by name, or of its writing for trees or without masks.

    ``docs/bundle-format.md`` is the reference.
    """
    graph = causal_window_graph(manifest) if causal else manifest.window_graph
    graph = tree_window_graph(manifest) if trees else graph
    cache = (_ROWS, *cache_shape(graph, 0)[1:])
    tensors = {
        "input_ids": WindowTensor(True, "int64", (_ROWS, _SLOTS)),
        "start": WindowTensor(True, "int64", (_ROWS,)),
        "logits": WindowTensor(False, "float32", (_ROWS, _SLOTS, manifest.vocab_size)),
    }
    if trees:
        tensors["parents"] = WindowTensor(True, "int64", (_ROWS, _SLOTS))
    if graph.has_kv_length:
        tensors["kv_length"] = WindowTensor(True, "int64", (1,))
    for past, present in cache_names(graph):
        tensors |= {past: WindowTensor(True, CACHE, cache), present: WindowTensor(False, CACHE, cache)}
    return tensors


def cache_names(graph: WindowGraph) -> list[tuple[str, str]]:
    """(past, present) names of all caches."""
    parts = [f"{layer}.{part}" for layer in range(graph.layers) for part in ("key", "value")]
    return [(f"past_key_values.{part}", f"present.{part}") for part in parts]


def cache_shape(graph: WindowGraph, rows: int) -> tuple[int, int, int, int]:
    """The shape of a cache of that many rows."""
    return (rows, graph.kv_heads, graph.cache_length, graph.head_size)
