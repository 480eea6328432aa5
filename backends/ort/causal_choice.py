"""Which writing of the window graph runs: the one with masks, or the one without where this runtime computes it rightly.

Without a mask, ONNX Runtime's CUDA kernels look at filled columns only, and in half precision it takes Flash Attention. But what a
causal window sees has differed between versions, with no error. So before the graph without masks is used, both run on three
small windows, on the runtime, device and files at hand: several slots and one, ragged rows, columns behind a row's length that hold
something. Their logits must agree. If they do not, or if it cannot be run, the graph with masks is used, and
`coupled_sampling.contracts.Runs` says why.

The outcome is kept for as long as the process lives, by version, execution provider, device, how it is opened there, and the
SHA-256 of the files. The check opens the model twice, one after the other, so that the memory is that of one.

On the CPU nothing is chosen and nothing compared. Its kernel looks at the whole cache, so that the graph with masks is up to four
times as fast where caches are long, and as fast where they are short (``benchmarks/causal_window.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.ort.cuda_session import CudaSession
from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.bundles.manifest import Manifest, WindowGraph
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, ProviderError

__all__ = ["ROWS", "ChosenWindow", "choose_window", "skips_empty_columns"]

ROWS = 2
"""Rows of the windows that are compared."""

_WIDTH = 8
_GOLDEN = (5**0.5 - 1) / 2
_FLOAT32, _HALF = 1e-3, 0.1
"""How far logits may be apart, in standard deviations, by the type of the caches. Kernels that round otherwise stay below a tenth
of that; windows that see other columns are apart by more."""

_FOUND: dict[tuple[str, ...], str] = {}
"""Why the graph with masks has to be used, by what was compared; empty if it need not be."""


class ChosenWindow(NamedTuple):
    """An opened writing of the window graph, and what to say of it."""

    opened: CudaSession
    causal: bool
    said: str


def skips_empty_columns(manifest: Manifest) -> bool:
    """Whether a bundle has a graph without masks for which CUDA has a kernel that looks at filled columns only.

    There are two: Flash Attention, in half precision, and the memory-efficient kernel, which in float32 wants as many heads of keys
    as of queries. Both want heads whose size is a multiple of 8. What is left otherwise looks at the whole cache; there the graph
    with masks is better, which gives it the beginning only.
    """
    causal, graph = manifest.causal_graph, manifest.window_graph
    if causal is None or graph.head_size % 8:
        return False
    return graph.dtype != "float32" or causal.heads == graph.kv_heads


def choose_window(
    bundle: Bundle,
    runtime: tuple[str, ...],
    open_graph: Callable[[bool], CudaSession],
    over: Callable[[CudaSession, bool], OrtProvider],
) -> ChosenWindow:
    """The writing of a bundle's window graph to use, opened.

    Parameters
    ----------
    bundle
        A bundle for which `skips_empty_columns`.
    runtime
        What the outcome depends on besides the bundle: version, execution provider, device, how it is opened there.
    open_graph
        Opens a session of the graph without masks (True) or with them (False).
    over
        A provider of `ROWS` rows over such a session.

    Raises
    ------
    BundleError, ProviderError, MissingDependency
        The graph with masks cannot be opened or run.
    """
    # Weights are in files of their own, so that all digests are in it.
    key = (*runtime, *(record.sha256 for _, record in sorted(bundle.manifest.files.items())))
    if key not in _FOUND:
        tried = "masked"  # that many rows of it may want more memory than the rows that are asked for
        try:
            expected = _logits_of(bundle, open_graph, over, causal=False)
            tried = "causal"
            found = _logits_of(bundle, open_graph, over, causal=True)
            _FOUND[key] = _difference(expected, found, bundle.manifest.window_graph.dtype)
        except (BundleError, ProviderError) as error:
            _FOUND[key] = f"the {tried} one cannot be run to compare them: {in_one_line(error)}"
    refusal = _FOUND[key]
    return ChosenWindow(open_graph(not refusal), not refusal, f"masked, {refusal}" if refusal else "causal")


def _logits_of(
    bundle: Bundle,
    open_graph: Callable[[bool], CudaSession],
    over: Callable[[CudaSession, bool], OrtProvider],
    *,
    causal: bool,
) -> list[NDArray[np.float32]]:
    """What a writing makes of the windows, each (`ROWS`, W, V). Its weights are given back."""
    windows = _compared_windows(bundle.manifest.window_graph, bundle.manifest.vocab_size)
    with over(open_graph(causal), causal) as provider:
        return [np.array(provider.forward(tokens, start), np.float32) for tokens, start in windows]


def _compared_windows(graph: WindowGraph, vocab_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Tokens (`ROWS`, W) and starts: a prompt, a window of ragged rows, and a slot of each, where more was written before."""
    width = max(1, min(_WIDTH, graph.max_window, graph.max_length // 2))
    first = 0
    for slots, starts in ((width, (0, 0)), (width, (width, width // 2)), (1, (2 * width - 1, width // 2))):
        last = first + ROWS * slots
        tokens = (np.arange(first, last) * _GOLDEN % 1 * vocab_size).astype(np.int64)  # spread over the vocabulary
        yield tokens.reshape(ROWS, slots), np.minimum(np.array(starts, np.int64), graph.max_length - slots)
        first = last


def _difference(expected: list[NDArray[Any]], found: list[NDArray[Any]], dtype: str) -> str:
    """What to say of logits that are not ``expected``; empty if they are, as far as the type of the caches goes."""
    apart = 0.0
    for one, other in zip(expected, found, strict=True):
        generated = np.isfinite(one)
        if not generated.any():
            return "the masked one's logits are not finite, so that they show nothing"
        with np.errstate(invalid="ignore"):  # of -inf and -inf
            squares = np.where(generated, one - other, 0.0) ** 2
        deviation = max(float(one[generated].std()), 1e-12)
        each = np.sqrt(squares.sum(axis=-1) / np.maximum(generated.sum(axis=-1), 1)) / deviation
        apart = max(apart, float(np.nan_to_num(each, nan=np.inf).max()))  # NaN is as far apart as can be
    if apart <= (_FLOAT32 if dtype == "float32" else _HALF):
        return ""
    return f"the causal one's logits are off by {apart:.2g} standard deviations"
