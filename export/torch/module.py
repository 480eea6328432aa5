"""A PyTorch decoder as a bundle: `export_module`.

The module's ``forward(input_ids, positions, cache)`` gives logits (B, W, V) and keeps its keys and values in ``cache``, a
`WindowCache`. ``torch.onnx.export`` turns that into the window graph of ``docs/bundle-format.md``: caches in, caches out,
B and W free, written by TensorScatter, opset 24. What comes out is not believed: names, shapes, operators and opset are
compared with the promise (asked for an opset it does not know, the exporter has been seen to write another without
an error), and the logits of the graph with those of the module. The exporter runs no graph itself: `export_module` takes the
function that opens the bundle.

What is compared are the logits of up to `CHECKED_POSITIONS` positions of random tokens; it is no proof for all inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.files import Contents, check_place, read_contents, whole_folder
from coupled_sampling.bundles.manifest import (
    Defaults,
    FileRecord,
    GeneratedTokens,
    Manifest,
    Prompt,
    WindowGraph,
)
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.export.check import Opener, check_opener
from coupled_sampling.export.fill_token import find_fill_token
from coupled_sampling.export.graphs.builder import OPSET, require_onnx, save_graph
from coupled_sampling.export.torch.cache import CacheShape, WindowCache, require_torch
from coupled_sampling.export.torch.check import check_logits, check_window_graph
from coupled_sampling.export.torch.graph import torch_graph, window_module

__all__ = ["CacheShape", "ModuleSettings", "WindowCache", "export_module"]

GRAPH, WEIGHTS = "window.onnx", "window.onnx.data"
LARGEST_SINGLE_FILE = 1_900_000_000
"""Bytes of weights from which they get a file of their own: a protocol buffer ends at 2 GiB."""


@dataclass(frozen=True)
class ModuleSettings:
    """What the bundle of a module is to say, and how its graph is written.

    Parameters
    ----------
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
    tolerance
        Largest difference of a logit that a check allows.

    Raises
    ------
    InvalidArgument
        There is no prompt.

    Examples
    --------
    >>> from coupled_sampling.export.torch.module import ModuleSettings
    >>> settings = ModuleSettings("own", prompts={"start": [0]}, length=60, licence="Apache-2.0")
    >>> settings.kv_length, settings.tolerance
    (True, 0.0001)
    >>> ModuleSettings("own", prompts={})
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: prompts is empty, expected at least one, such as {'start': [0]}
    """

    name: str
    prompts: Mapping[str, Sequence[int] | Prompt]
    description: str = ""
    max_length: int | None = None
    max_window: int | None = None
    length: int | None = None
    generated: tuple[int, int] | None = None
    defaults: Defaults | None = None
    licence: str = "NOASSERTION"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    kv_length: bool = True
    external_data: bool | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InvalidArgument("prompts is empty, expected at least one, such as {'start': [0]}")


def export_module(
    module: Any, out: str | Path, cache: CacheShape, settings: ModuleSettings, *, check: Opener | None
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
    settings
        See `ModuleSettings`.
    check
        What opens the bundle to compare its logits with the module's before it gets its name, such as
        `coupled_sampling.backends.open_model`. It must be said, since an export that nobody ran is a guess: None leaves the
        comparison out, and the manifest says so.

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
        torch, onnxscript, onnx or, for the check, what ``check`` needs is missing.
    OutputError
        ``out`` is not ours to replace, or cannot be written.

    Examples
    --------
    A decoder that attends with what it embeds, and with random weights:

    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention
    >>> from coupled_sampling.backends import open_model
    >>> from coupled_sampling.export.torch.module import CacheShape, ModuleSettings, export_module
    >>> class Decoder(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.token, self.place = torch.nn.Embedding(16, 8), torch.nn.Embedding(32, 8)
    ...         self.head = torch.nn.Linear(8, 16)
    ...     def forward(self, input_ids, positions, cache):
    ...         x = (self.token(input_ids) + self.place(positions))[:, None]  # (B, H, W, D), one head
    ...         keys, values = cache.write(0, x, x)
    ...         return self.head(scaled_dot_product_attention(x, keys, values, attn_mask=cache.mask())[:, 0])
    >>> shape = CacheShape(layers=1, kv_heads=1, head_size=8, columns=32)
    >>> settings = ModuleSettings("own", prompts={"start": [0]})
    >>> bundle = export_module(Decoder().eval(), "own", shape, settings, check=open_model)
    >>> bundle.manifest.vocab_size
    16
    """
    check_opener(check)
    torch, out = require_torch(), Path(out)
    require_onnx()
    _check_module(torch, module)
    replacing = _check_out(out)
    positions = cache.columns if settings.max_length is None else settings.max_length
    if not 1 <= positions <= cache.columns:
        raise InvalidArgument(f"max_length is {positions}, expected 1 to the columns of the cache, {cache.columns}")
    vocab_size = _vocab_size(torch, module, cache, positions)
    first, count = (0, vocab_size) if settings.generated is None else settings.generated
    if first < 0 or count < 1 or first + count > vocab_size:
        raise InvalidArgument(f"generated is {settings.generated}, expected (first, count) inside [0, {vocab_size})")
    wrapped = window_module(module, vocab_size, first, count)
    model = torch_graph(wrapped, cache, settings.kv_length)
    check_window_graph(model, cache, vocab_size, settings.kv_length)
    with whole_folder(out, replacing) as folder:
        files = _save(model, folder, settings.external_data)
        manifest = _manifest(
            settings,
            _promise(cache, positions, settings),
            vocab_size=vocab_size,
            generated=GeneratedTokens(first, count),
            files={file: file_record(folder / file) for file in files},
            description=settings.description or f"{type(module).__name__}, exported from PyTorch.",
            export={"torch": str(torch.__version__), "checked": check is not None},
        )
        write_manifest(folder, manifest)
        if check is not None:
            provider = check(open_bundle(folder.absolute()), rows=2)
            check_logits(wrapped, cache, provider, manifest.generated_tokens, settings.tolerance)
            write_manifest(folder, replace(manifest, fill_token=find_fill_token(provider, manifest)))
    return open_bundle(out.absolute())


def _promise(cache: CacheShape, positions: int, settings: ModuleSettings) -> WindowGraph:
    return WindowGraph(
        file=GRAPH,
        opset=OPSET,
        dtype="float32",
        layers=cache.layers,
        kv_heads=cache.kv_heads,
        head_size=cache.head_size,
        cache_length=cache.columns,
        max_length=positions,
        max_window=positions if settings.max_window is None else settings.max_window,
        has_kv_length=settings.kv_length,
    )


def _manifest(
    settings: ModuleSettings,
    graph: WindowGraph,
    *,
    vocab_size: int,
    generated: GeneratedTokens,
    files: Mapping[str, FileRecord],
    description: str,
    export: Mapping[str, Any],
) -> Manifest:
    """The bundle's manifest: what was asked for, and what the export found."""
    prompts = {
        key: prompt if isinstance(prompt, Prompt) else Prompt(tuple(prompt), (), key)
        for key, prompt in settings.prompts.items()
    }
    longest = max(len(prompt.tokens) for prompt in prompts.values())
    return Manifest(
        name=settings.name,
        description=description,
        files=files,
        window_graph=graph,
        vocab_size=vocab_size,
        generated_tokens=generated,
        length=graph.max_length + 1 - longest if settings.length is None else settings.length,
        prompts=prompts,
        defaults=settings.defaults or Defaults("scd-gumbel", min(16, graph.max_window), "random"),
        licence=settings.licence,
        provenance={**settings.provenance, "export": export},
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


def _check_out(out: Path) -> Contents | None:
    """What is at ``out`` and may be replaced: nothing, an empty folder or a bundle."""
    real = check_place(out)
    empty = real.is_dir() and not any(real.iterdir())
    return read_contents(real) if empty else check_replaceable(out, force=True)


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
