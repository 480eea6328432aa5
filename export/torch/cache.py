"""The cache that a PyTorch decoder writes and reads while it is exported, or run to check the export.

A window graph holds no state: caches come in as ``past`` and leave as ``present``. `WindowCache` offers that to an
attention layer as two calls: `WindowCache.write` puts the window's keys and values into columns
``start[b], ..., start[b] + W - 1`` and returns what to attend to, and `WindowCache.mask` says who may attend to what.
Within ``torch.onnx.export`` a write becomes the operator TensorScatter (opset 24), elsewhere its exact equivalent, a
scatter along the columns that returns a new tensor.

Importing this module loads no torch. Nothing here checks the bounds of ``start`` during an export: in a graph the caller
does that, see ``docs/bundle-format.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coupled_sampling.errors import InvalidArgument, MissingDependency

__all__ = ["CacheShape", "WindowCache", "require_torch"]

INSTALL = "pip install 'coupled-sampling[torch]'"


def require_torch() -> Any:
    """The module ``torch``.

    Raises
    ------
    MissingDependency
        It is not installed, or has no ``torch.onnx.ops``.
    """
    try:
        import torch
        import torch.onnx.ops
    except ImportError as error:
        raise MissingDependency(
            f"exporting a PyTorch module needs torch with torch.onnx.ops (tried with 2.13), which is missing: {INSTALL}"
        ) from error
    return torch


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a decoder's caches: ``2 * layers`` tensors (B, ``kv_heads``, ``columns``, ``head_size``), float32.

    Parameters
    ----------
    layers
        Layers that have keys and values.
    kv_heads
        Heads of the keys and values; with grouped queries fewer than those of the queries.
    head_size
        D: width of one head.
    columns
        S: positions the caches can hold.

    Examples
    --------
    >>> from coupled_sampling.export.torch.module import CacheShape
    >>> CacheShape(layers=2, kv_heads=2, head_size=8, columns=128).columns
    128
    >>> CacheShape(layers=2, kv_heads=2, head_size=8, columns=0)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: cache.columns is 0, expected an integer >= 1
    """

    layers: int
    kv_heads: int
    head_size: int
    columns: int

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_size", "columns"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgument(f"cache.{name} is {value!r}, expected an integer >= 1")

    def zeros(self, rows: int) -> list[Any]:
        """Empty caches for ``rows`` rows: key of layer 0, value of layer 0, key of layer 1, ..."""
        torch = require_torch()
        shape = (rows, self.kv_heads, self.columns, self.head_size)
        return [torch.zeros(shape, dtype=torch.float32) for _ in range(2 * self.layers)]


class WindowCache:
    """Caches around one window; the third argument of an exported module's ``forward``.

    Parameters
    ----------
    caches
        Key and value of each layer in turn, (B, H_kv, S, D) each; they are not changed.
    positions
        int64 (B, W): position of every slot.
    kv_length
        Attend only to columns below it; None means all S.

    Examples
    --------
    Two slots at positions 0 and 1, and a third to come:

    >>> import torch
    >>> from coupled_sampling.export.torch.module import CacheShape, WindowCache
    >>> cache = WindowCache(CacheShape(layers=1, kv_heads=1, head_size=4, columns=3).zeros(1), torch.tensor([[0, 1]]))
    >>> keys, values = cache.write(0, torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    >>> keys.shape
    torch.Size([1, 1, 3, 4])
    >>> cache.mask()[0, 0].tolist()
    [[True, False, False], [True, True, False]]
    """

    def __init__(self, caches: Sequence[Any], positions: Any, kv_length: Any = None) -> None:
        self._torch = require_torch()
        self._past = list(caches)
        self._present: list[Any] = [None] * len(self._past)
        self._positions = positions
        self._columns = self._past[0].shape[2] if kv_length is None else kv_length
        columns = self._torch.arange(self._columns, device=positions.device)
        self._mask = (columns <= positions[:, :, None])[:, None]

    def mask(self) -> Any:
        """Boolean (B, 1, W, columns): slot j attends to columns up to ``start + j``, True where it does.

        For ``scaled_dot_product_attention(..., attn_mask=cache.mask())`` as it is.
        """
        return self._mask

    def write(self, layer: int, key: Any, value: Any) -> tuple[Any, Any]:
        """Write the window's keys and values, then return all that may be attended to.

        Parameters
        ----------
        layer
            0, ..., layers - 1; each is written once per call of ``forward``.
        key, value
            float32 (B, H_kv, W, D), rotated or otherwise position-dependent already.

        Returns
        -------
        tuple
            Keys and values (B, H_kv, columns, D), as many columns as `mask` has.

        Raises
        ------
        InvalidArgument
            There is no such layer, it was written before, or a shape or type is another.
        """
        layers = len(self._past) // 2
        if not 0 <= layer < layers:
            raise InvalidArgument(f"layer is {layer}, expected 0 to {layers - 1}: CacheShape has {layers} layers")
        if self._present[2 * layer] is not None:
            raise InvalidArgument(f"layer {layer} is written twice in one forward; give every layer its own number")
        written = []
        for index, name, update in ((2 * layer, "key", key), (2 * layer + 1, "value", value)):
            self._present[index] = self._written(self._past[index], update, f"{name} of layer {layer}")
            written.append(self._present[index][:, :, : self._columns])
        return written[0], written[1]

    def present(self) -> list[Any]:
        """The caches with the window in them, in the order they came.

        Raises
        ------
        InvalidArgument
            The module wrote some layer never: it would go on from a cache without this window.
        """
        for index, cache in enumerate(self._present):
            if cache is None:
                raise InvalidArgument(
                    f"forward never wrote layer {index // 2} of the cache, expected cache.write(layer, key, value) in "
                    f"each of {len(self._present) // 2} layers; a module that ignores the cache cannot be exported"
                )
        return self._present

    def _written(self, past: Any, update: Any, name: str) -> Any:
        torch = self._torch
        if torch.onnx.is_in_onnx_export():
            start = self._positions[:, 0]
            attributes = {"axis": -2, "mode": "linear"}
            return torch.onnx.ops.symbolic(
                "TensorScatter", (past, update, start), attributes, dtype=past.dtype, shape=past.shape, version=24
            )
        rows, width = self._positions.shape
        expected = (rows, past.shape[1], width, past.shape[3])
        if tuple(update.shape) != expected or update.dtype != past.dtype:
            raise InvalidArgument(
                f"{name} is {update.dtype} {tuple(update.shape)}, expected {past.dtype} {expected}, which is (B, "
                "kv_heads, W, head_size); correct the module or the CacheShape"
            )
        index = self._positions[:, None, :, None].expand(update.shape)
        return past.scatter(2, index, update)
