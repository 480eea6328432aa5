"""What an engine is built for: buckets of window shapes, precision, and the builder's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, NamedTuple

from coupled_sampling.backends.trt.precision import PRECISIONS
from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.errors import InvalidArgument

__all__ = ["BuildOptions", "Profile", "bucket_of"]


class Profile(NamedTuple):
    """One optimisation profile: the windows it takes, (smallest, largest), tuned for the largest."""

    rows: tuple[int, int]
    window: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class BuildOptions:
    """Options of an engine. All of them are part of its fingerprint.

    Parameters
    ----------
    row_buckets
        Numbers of rows B to tune for; the largest is ``batch_size``. Rows are never padded, since a row that is not in a call
        keeps its state; a bucket is a range of B with its own kernels.
    window_buckets
        Numbers of slots W to tune for; narrower windows are padded to the next of them, and the largest is ``max_window``.
    column_buckets
        Values of ``kv_length``: a call attends to the smallest that holds its windows. The largest is the length of the caches,
        which is also what () means. More of them read less of a long cache and cost a profile and graphs each.
    precision
        "float32", "float16" or "bfloat16"; see `coupled_sampling.backends.trt.precision`.
    tf32
        Whether float32 products may be rounded to 10 bits of mantissa. Faster, and logits of one position differ
        by more between window widths.
    decomposable
        Whether Attention may be split into several kernels where there is no fused one: in float32 there is none, in the others
        it depends on the size of a head. With False such a build fails.
    optimization_level
        0 to 5: how long TensorRT searches for fast kernels.
    workspace_bytes
        Most scratch memory a kernel may use; None leaves it to TensorRT.
    detailed
        Whether the engine keeps the names and kernels of its layers, for profilers.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends.trt import BuildOptions
    >>> options = BuildOptions(row_buckets=(4,), window_buckets=(1, 8, 512), precision="float16")
    >>> options.fitted(open_bundle("fashion").manifest.window_graph).window_buckets  # the model has 196 positions
    (1, 8, 196)
    """

    row_buckets: tuple[int, ...] = (1,)
    window_buckets: tuple[int, ...] = (1, 8, 16, 32, 64)
    column_buckets: tuple[int, ...] = ()
    precision: str = "float32"
    tf32: bool = False
    decomposable: bool = True
    optimization_level: int = 3
    workspace_bytes: int | None = None
    detailed: bool = False

    def __post_init__(self) -> None:
        for name in ("row_buckets", "window_buckets", "column_buckets"):
            object.__setattr__(self, name, _buckets(name, getattr(self, name)))
        if self.precision not in PRECISIONS:
            raise InvalidArgument(
                f"precision is {self.precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}"
            )
        level = self.optimization_level
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 5:
            raise InvalidArgument(f"optimization_level is {level!r}, expected an integer from 0 to 5")
        size = self.workspace_bytes
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InvalidArgument(f"workspace_bytes is {size!r}, expected a number of bytes >= 1, or None")

    @property
    def batch_size(self) -> int:
        """Most rows in a call."""
        return self.row_buckets[-1]

    @property
    def max_window(self) -> int:
        """Most slots in a call."""
        return self.window_buckets[-1]

    def fitted(self, graph: WindowGraph) -> BuildOptions:
        """These options for ``graph``: window buckets cut at its ``max_window``, column buckets up to its caches' length.

        Raises
        ------
        InvalidArgument
            A column bucket is longer than the caches, or the graph has no ``kv_length``.
        """
        windows = sorted({min(bucket, graph.max_window) for bucket in self.window_buckets})
        columns = set(self.column_buckets)
        if columns and not graph.has_kv_length:
            raise InvalidArgument(
                f"column_buckets is {self.column_buckets}, but the graph has no input kv_length; expected ()"
            )
        if columns and max(columns) > graph.cache_length:
            raise InvalidArgument(
                f"column_buckets is {self.column_buckets}, expected at most {graph.cache_length}, the columns of the caches"
            )
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"window_buckets": windows, "column_buckets": sorted(columns | {graph.cache_length})}
        return BuildOptions(**values)

    def profiles(self) -> list[Profile]:
        """One profile for each row bucket and window bucket."""
        smallest = self.column_buckets[0] if self.column_buckets else 1
        largest = self.column_buckets[-1] if self.column_buckets else 1
        ranges = (_ranges(buckets) for buckets in (self.row_buckets, self.window_buckets))
        return [Profile(rows, window, (smallest, largest)) for rows, window in product(*ranges)]

    def profile_of(self, rows: int, width: int) -> int:
        """Index of the profile for windows of this shape."""
        row, window = self.row_buckets, self.window_buckets
        return row.index(bucket_of(row, rows)) * len(window) + window.index(bucket_of(window, width))

    def record(self) -> dict[str, Any]:
        """The options as JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def bucket_of(buckets: Sequence[int], value: int) -> int:
    """The smallest of ``buckets`` that holds ``value``; one must."""
    return next(bucket for bucket in buckets if bucket >= value)


def _ranges(buckets: Sequence[int]) -> list[tuple[int, int]]:
    return [(before + 1, bucket) for before, bucket in zip((0, *buckets), buckets, strict=False)]


def _buckets(name: str, given: Any) -> tuple[int, ...]:
    values = [given] if isinstance(given, int) else list(given)
    wrong = any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values)
    if wrong or (not values and name != "column_buckets"):
        raise InvalidArgument(f"{name} is {given!r}, expected integers >= 1")
    return tuple(sorted(set(values)))
