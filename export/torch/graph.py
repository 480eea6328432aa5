"""From a PyTorch module to the ONNX graph of a window, by ``torch.onnx.export(dynamo=True)``.

B and W are free dimensions. The example that is traced has B = 2 and W = 3: a size of one would be taken for a constant,
and equal sizes for one and the same.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.export.graphs.builder import OPSET, require_onnx
from coupled_sampling.export.torch.cache import INSTALL, CacheShape, WindowCache, require_torch

__all__ = ["torch_graph", "window_module"]


def window_module(module: Any, vocab_size: int, first: int, count: int) -> Any:
    """A ``torch.nn.Module`` around ``module`` with the inputs and outputs of a window graph.

    Its ``forward(input_ids, start, caches, kv_length=None)`` gives logits (B, W, ``vocab_size``), -inf for tokens outside
    ``first``, ..., ``first + count - 1``, then the caches in the order of ``caches``.
    """
    torch = require_torch()

    base: Any = torch.nn.Module

    class Window(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.whole = count == vocab_size
            never = torch.ones(vocab_size, dtype=torch.bool)
            never[first : first + count] = False
            self.register_buffer("never", never)

        def forward(self, input_ids: Any, start: Any, caches: Any, kv_length: Any = None) -> Any:
            positions = start[:, None] + torch.arange(input_ids.shape[1])
            columns = None
            if kv_length is not None:
                columns = kv_length.item()
                torch._check(columns >= 1)
                torch._check(columns <= caches[0].shape[2])
            cache = WindowCache(caches, positions, columns)
            logits = self.module(input_ids, positions, cache)
            if not self.whole:
                logits = logits.masked_fill(self.never, -torch.inf)
            return logits, *cache.present()

    return Window().eval()


def torch_graph(wrapped: Any, cache: CacheShape, kv_length: bool) -> Any:
    """The window graph of ``wrapped``, a `window_module`.

    Returns
    -------
    onnx.ModelProto
        As the exporter wrote it, without its stack traces; `coupled_sampling.export.torch.check` checks it.

    Raises
    ------
    InvalidArgument
        torch cannot export the module.
    MissingDependency
        ``onnxscript`` is missing.
    """
    torch = require_torch()
    rows, width = 2, 3
    dim = torch.export.Dim
    free_rows, free_width = dim("B", min=1), dim("W", min=1)
    arguments: list[Any] = [torch.zeros(rows, width, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)]
    arguments.append(cache.zeros(rows))
    shapes: list[Any] = [{0: free_rows, 1: free_width}, {0: free_rows}, [{0: free_rows}] * (2 * cache.layers)]
    parts = [f"{layer}.{part}" for layer in range(cache.layers) for part in ("key", "value")]
    names = ["input_ids", "start", *(f"past_key_values.{part}" for part in parts)]
    if kv_length:
        arguments.append(torch.tensor([cache.columns]))
        shapes.append({})
        names.append("kv_length")
    try:
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise MissingDependency(
            f"torch.onnx.export needs the package onnxscript, which is missing: {INSTALL}"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name")
            program = torch.onnx.export(
                wrapped,
                tuple(arguments),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes),
                input_names=names,
                output_names=["logits", *(f"present.{part}" for part in parts)],
                verbose=False,
            )
    except Exception as error:
        # The exporter's errors share no base class but Exception.
        raise InvalidArgument(
            f"torch.onnx.export cannot export {type(wrapped.module).__name__}: {error}\nB and W must stay free: take them "
            "from tensor shapes, branch on neither; if only the number of columns is the trouble, pass kv_length=False"
        ) from error
    return _cleaned(program.model_proto)


def _cleaned(model: Any) -> Any:
    """Without the stack traces that the exporter leaves in every node, and the paths in them."""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del item.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    onnx = require_onnx()
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(list(model.opset_import)))
    return model
