"""Whether an exported graph is what it should be: its interface against the promise, its logits against the module.

The module's logits come from one pass over whole sequences, so that they depend on no cache and no window. Two things
must equal them: the module itself, window by window, which shows that it uses its cache and its mask; and the graph as a
logits provider, which shows that the export is right. The windows are ragged, and each
is forwarded with wrong tokens in its second half first, so that state must be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.bundles.manifest import GeneratedTokens
from coupled_sampling.contracts import Array, LogitsProvider, max_window
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import OPSET
from coupled_sampling.export.torch.cache import CacheShape, require_torch

__all__ = ["CHECKED_POSITIONS", "check_logits", "check_window_graph"]

CHECKED_POSITIONS = 48
"""Positions that are compared, if the model has so many."""

Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], Array]


def check_window_graph(model: Any, cache: CacheShape, vocab_size: int, kv_length: bool) -> None:
    """Refuse an ``onnx.ModelProto`` that is not the window graph promised.

    Raises
    ------
    InvalidArgument
        Another opset, input, output or number of TensorScatter; a custom operator, an initializer without data, or
        ``nonpad_kv_seqlen``.
    """
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset != OPSET:
        raise InvalidArgument(
            f"the exported graph has opset {opset}, expected {OPSET}: torch or onnxscript is too old; upgrade both"
        )
    _check_interface(model, cache, vocab_size, kv_length)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    custom = sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    if custom:
        raise InvalidArgument(
            f"the exported graph has operators {custom}, expected standard ones only; rewrite the module"
        )
    scatters = sum(node.op_type == "TensorScatter" for node in nodes)
    if scatters != 2 * cache.layers:
        raise InvalidArgument(f"the exported graph has {scatters} TensorScatter, expected {2 * cache.layers}")
    if any(node.op_type == "Attention" and len(node.input) > 6 and node.input[6] for node in nodes):
        raise InvalidArgument("the exported graph uses nonpad_kv_seqlen of Attention, expected a mask: cache.mask()")
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) and not tensor.ByteSize() > len(tensor.name) + 8:
            raise InvalidArgument(f"weight {tensor.name!r} has no data in the exported graph; export again")


def _check_interface(model: Any, cache: CacheShape, vocab_size: int, kv_length: bool) -> None:
    float32, int64 = 1, 7
    held = (float32, ("B", cache.kv_heads, cache.columns, cache.head_size))
    expected: dict[str, tuple[int, tuple[str | int, ...]]] = {
        "input_ids": (int64, ("B", "W")),
        "start": (int64, ("B",)),
        "logits": (float32, ("B", "W", vocab_size)),
    }
    if kv_length:
        expected["kv_length"] = (int64, (1,))
    for layer in range(cache.layers):
        for part in ("key", "value"):
            expected |= {f"past_key_values.{layer}.{part}": held, f"present.{layer}.{part}": held}
    found = {}
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        found[value.name] = (tensor.elem_type, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim))
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise InvalidArgument(
                f"the exported graph has {name!r} as {found.get(name, 'nothing')}, expected "
                f"{expected.get(name, 'nothing of that name')} (type, shape); B and W must stay free: take them from "
                "tensor shapes and branch on neither"
            )


def check_logits(
    wrapped: Any, cache: CacheShape, provider: LogitsProvider, generated: GeneratedTokens, tolerance: float
) -> float:
    """Refuse a bundle whose logits are not the module's.

    Parameters
    ----------
    wrapped
        The module with the inputs and outputs of a window graph.
    cache
        Sizes of its caches.
    provider
        The bundle, opened with two rows.
    generated
        The tokens to compare with.
    tolerance
        Largest difference allowed.

    Returns
    -------
    float
        The largest difference between graph and module.

    Raises
    ------
    InvalidArgument
        They differ, or are not finite.
    """
    count = min(provider.max_length, CHECKED_POSITIONS)
    random = np.random.default_rng(0)
    tokens = random.integers(generated.first, generated.first + generated.count, (2, count))
    expected = _eager(wrapped, cache)(tokens, np.zeros(2, np.int64))
    if np.isnan(expected).any() or np.isposinf(expected).any():
        raise InvalidArgument("the module's logits have NaN or +inf, expected finite ones or -inf; check the weights")
    widths = [width for width in (5, 1, count) if width <= min(max_window(provider), count)]
    own = max(_worst(_eager(wrapped, cache), tokens, expected, width) for width in widths)
    if not own <= tolerance:
        raise InvalidArgument(
            f"the module's logits differ by {own:.1e} between windows and one whole pass, allowed {tolerance:.0e}: its "
            "attention must use the keys and values that cache.write returns, with attn_mask=cache.mask(), and "
            "take positions from the argument positions; nothing was written"
        )
    exported = max(_worst(provider.forward, tokens, expected, width) for width in widths)
    alone = max(_worst(provider.forward, tokens[:1], expected[:1], width) for width in widths)
    worst = max(exported, alone)
    if not worst <= tolerance:
        raise InvalidArgument(
            f"logits of the graph differ from the module's by {worst:.1e}, allowed {tolerance:.0e}: the exported "
            "graph is not the module; does it branch on B or W, or on values? Nothing was written"
        )
    return worst


def _eager(wrapped: Any, cache: CacheShape) -> Forward:
    """The module itself with its caches kept, as a logits provider's ``forward``."""
    torch = require_torch()
    held = [cache.zeros(2)]

    def forward(tokens: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[Any]:
        with torch.no_grad():
            logits, *held[0] = wrapped(torch.from_numpy(tokens), torch.from_numpy(start), held[0])
        result: NDArray[Any] = logits.numpy()
        return result

    return forward


def _worst(forward: Forward, tokens: NDArray[np.int64], expected: NDArray[Any], width: int) -> float:
    """Largest difference over ragged windows that go forward, backward and over wrong tokens."""
    random = np.random.default_rng(width)
    rows, count = tokens.shape
    start, end, worst = np.zeros(rows, np.int64), count - width, 0.0
    while True:
        slots = start[:, None] + np.arange(width)
        window = np.take_along_axis(tokens, slots, 1)
        half_wrong = window.copy()
        half_wrong[:, width // 2 :] = window[:, ::-1][:, width // 2 :]
        forward(half_wrong, start)
        logits = to_host(forward(window, start))
        target = np.take_along_axis(expected, slots[..., None], 1)
        if not np.array_equal(np.isneginf(logits), np.isneginf(target)):
            return float("inf")
        finite = np.isfinite(target)
        worst = max(worst, float(np.abs(logits[finite] - target[finite]).max()))
        if (start == end).all():
            return worst if np.isfinite(worst) else float("inf")
        start = np.minimum(start + np.maximum(1, width - random.integers(0, width // 2 + 1, rows)), end)
