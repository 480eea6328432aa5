"""A PyTorch decoder as a bundle: `export_module`.

The module's ``forward(input_ids, positions, cache)`` gives logits (B, W, V) and keeps its keys and values in ``cache``, a
`WindowCache`. ``torch.onnx.export`` turns that into the window graph of ``docs/bundle-format.md``: caches in, caches out,
B and W free, written by TensorScatter, opset 24. What comes out is not believed: names, shapes, operators and opset are
compared with the promise (asked for an opset it does not know, the exporter has been seen to write another without
an error), and the logits of ONNX Runtime with those of the module.

What is compared are the logits of up to `CHECKED_POSITIONS` positions of random tokens; it is no proof for all inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.manifest import MANIFEST, Defaults, GeneratedTokens, Manifest, Prompt, WindowGraph
from coupled_sampling.bundles.opening import Bundle, file_record, open_bundle, write_manifest
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.export.graphs.builder import OPSET, require_onnx, save_graph
from coupled_sampling.export.torch.cache import CacheShape, WindowCache, require_torch
from coupled_sampling.export.torch.check import check_logits, check_window_graph
from coupled_sampling.export.torch.graph import torch_graph, window_module

__all__ = ["CacheShape", "WindowCache", "export_module"]

GRAPH, WEIGHTS = "window.onnx", "window.onnx.data"
LARGEST_SINGLE_FILE = 1_900_000_000
"""Bytes of weights from which they get a file of their own: a protocol buffer ends at 2 GiB."""


def export_module(
    module: Any,
    out: str | Path,
    cache: CacheShape,
    *,
    name: str,
    prompts: Mapping[str, Sequence[int] | Prompt],
    description: str = "",
    max_length: int | None = None,
    max_window: int | None = None,
    length: int | None = None,
    generated: tuple[int, int] | None = None,
    defaults: Defaults | None = None,
    licence: str = "NOASSERTION",
    provenance: Mapping[str, Any] | None = None,
    kv_length: bool = True,
    external_data: bool | None = None,
    check: bool = True,
    tolerance: float = 1e-4,
) -> Bundle:
    """Export a decoder, check the graph against it, and write a bundle that needs no PyTorch.

    Parameters
    ----------
    module
        A ``torch.nn.Module`` in evaluation mode, float32, on the CPU, with ``forward(input_ids, positions, cache)``:
        int64 (B, W), int64 (B, W) and a `WindowCache` to logits (B, W, V).
    out
        Folder to write: a new one, an empty one, or a bundle that is replaced.
    cache
        Sizes of its caches.
    name, description
        For people.
    prompts
        At least one; tokens by name, or a `Prompt`.
    max_length
        Positions that mean something; None means all columns of the cache.
    max_window
        Most slots in one call; None means ``max_length``.
    length
        Tokens per generation; None means all that fit after the longest prompt.
    generated
        First of the tokens that can be generated, and their number; None means all. Others get logits of -inf.
    defaults
        Recommended settings; None means ``scd-gumbel``, a window of at most 16 and random drafts.
    licence
        SPDX identifier of the weights' licence. The default says that none is stated.
    provenance
        Free JSON; what the export found is added as ``export``.
    kv_length
        Give the graph the input ``kv_length``, which saves time while sequences are short.
    external_data
        Keep the weights in a file of their own; None means when they do not fit into one.
    check
        Compare ONNX Runtime's logits with the module's.
    tolerance
        Largest difference allowed.

    Returns
    -------
    Bundle
        The bundle written, opened.

    Raises
    ------
    InvalidArgument
        The module cannot be exported, or the graph is not the module. Nothing was written.
    BundleError
        A length, prompt or default contradicts another.
    MissingDependency
        torch, onnxscript, onnx or, for the check, onnxruntime is missing.
    OutputError
        ``out`` is not ours to replace, or cannot be written.
    """
    torch, out = require_torch(), Path(out)
    require_onnx()
    _check_module(torch, module)
    _check_out(out)
    positions = cache.columns if max_length is None else max_length
    if not 1 <= positions <= cache.columns:
        raise InvalidArgument(f"max_length is {positions}, expected 1 to the columns of the cache, {cache.columns}")
    named = {key: p if isinstance(p, Prompt) else Prompt(tuple(p), (), key) for key, p in prompts.items()}
    if not named:
        raise InvalidArgument("prompts is empty, expected at least one, such as {'start': [0]}")
    vocab_size = _vocab_size(torch, module, cache, positions)
    first, count = (0, vocab_size) if generated is None else generated
    if first < 0 or count < 1 or first + count > vocab_size:
        raise InvalidArgument(f"generated is {generated}, expected (first, count) inside [0, {vocab_size})")
    wrapped = window_module(module, vocab_size, first, count)
    model = torch_graph(wrapped, cache, kv_length)
    check_window_graph(model, cache, vocab_size, kv_length)
    window = positions if max_window is None else max_window
    longest = max(len(prompt.tokens) for prompt in named.values())
    with whole_folder(out) as folder:
        files = _save(model, folder, external_data)
        manifest = Manifest(
            name=name,
            description=description or f"{type(module).__name__}, exported from PyTorch.",
            files={file: file_record(folder / file) for file in files},
            window_graph=_promise(cache, positions, window, kv_length),
            vocab_size=vocab_size,
            generated_tokens=GeneratedTokens(first, count),
            length=positions + 1 - longest if length is None else length,
            prompts=named,
            defaults=defaults or Defaults("scd-gumbel", min(16, window), "random"),
            licence=licence,
            provenance={**(provenance or {}), "export": {"torch": str(torch.__version__), "checked": check}},
        )
        write_manifest(folder, manifest)
        if check:
            check_logits(wrapped, cache, folder, tolerance)
    return open_bundle(out.absolute())


def _promise(cache: CacheShape, positions: int, window: int, kv_length: bool) -> WindowGraph:
    return WindowGraph(
        file=GRAPH,
        opset=OPSET,
        dtype="float32",
        layers=cache.layers,
        kv_heads=cache.kv_heads,
        head_size=cache.head_size,
        cache_length=cache.columns,
        max_length=positions,
        max_window=window,
        has_kv_length=kv_length,
    )


def _check_module(torch: Any, module: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgument(f"module is {type(module).__name__}, expected a torch.nn.Module")
    try:
        inspect.signature(module.forward).bind(None, None, None)
    except TypeError as error:
        raise InvalidArgument(
            f"module.forward has the signature {inspect.signature(module.forward)}, expected "
            f"forward(input_ids, positions, cache): {error}; write a small module with it around yours"
        ) from error
    training = [key or type(module).__name__ for key, part in module.named_modules() if part.training]
    if training:
        raise InvalidArgument(
            f"module is in training mode ({training[0]}), where dropout is random; call module.eval() before"
        )
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise InvalidArgument(
                f"{key} is {tensor.dtype} on {tensor.device}, expected float32 on cpu; call module.float().cpu()"
            )


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise OutputError(f"{out} exists and is not a bundle; it is left alone: choose another folder")


def _vocab_size(torch: Any, module: Any, cache: CacheShape, positions: int) -> int:
    """V, from one window in PyTorch, which also shows whether the module and the sizes of its caches agree."""
    width = min(3, positions)
    slots = torch.arange(width).expand(2, width)
    window = WindowCache(cache.zeros(2), slots)
    with torch.no_grad():
        logits = module(torch.zeros(2, width, dtype=torch.int64), slots, window)
    window.present()
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or tuple(logits.shape[:2]) != (2, width):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InvalidArgument(f"forward returned {found} for (B, W) = (2, {width}), expected logits (B, W, V)")
    return int(logits.shape[2])


def _save(model: Any, folder: Path, external_data: bool | None) -> list[str]:
    """Write graph and weights; names of the files."""
    onnx = require_onnx()
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if external_data is False and size > LARGEST_SINGLE_FILE:
        raise InvalidArgument(f"external_data is False, expected None or True for {size / 1e9:.1f} GB of weights")
    if external_data is False or (external_data is None and size <= LARGEST_SINGLE_FILE):
        save_graph(model, folder / GRAPH)
        return [GRAPH]
    try:
        onnx.save_model(
            model, str(folder / GRAPH), save_as_external_data=True, all_tensors_to_one_file=True, location=WEIGHTS
        )
        onnx.checker.check_model(str(folder / GRAPH))
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; choose a folder that is yours") from error
    except onnx.checker.ValidationError as error:
        raise InvalidArgument(f"model is not a valid ONNX graph: {error}") from error
    return [file for file in (GRAPH, WEIGHTS) if (folder / file).exists()]
