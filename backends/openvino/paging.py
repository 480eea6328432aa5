"""The window graph with its caches in blocks, which attention reads and writes in place.

Written as the graph has it, a cache would be copied at every pass: OpenVINO's scatter makes a new tensor, and so does keeping one
as a state (ReadValue, Assign). With float32 weights that took 1.0 to 4.3 times ONNX Runtime's time. Its attention over blocks
(`PagedAttentionExtension`, what OpenVINO GenAI serves with) copies nothing. It puts the window's keys and values at positions
``start``, ``start + 1``, ... of each row's blocks and attends to all positions up to each slot's own. That is the contract of a
window, where the last write wins. So each Attention becomes one of these, and the caches' parameters become blocks.

The operator is no part of OpenVINO's stable interface, so its inputs are those of the versions that `runtime` takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.openvino.contexts import Contexts
from coupled_sampling.backends.openvino.reading import Attention, Reading
from coupled_sampling.backends.openvino.runtime import INSTALL, Runtime
from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.errors import MissingDependency

__all__ = ["BLOCK", "paged_model"]

BLOCK = 32
"""Positions in a block, which is the CPU's only size."""

_SHARED = ("subsequence_begins", "block_indices", "block_indices_begins", "max_context_len")


def paged_model(runtime: Runtime, path: Path, graph: WindowGraph, reading: Reading) -> Any:
    """The model that runs: of ``input_ids``, ``start``, caches in blocks and four lists that say where rows and blocks begin.

    Caches have their names (``past_key_values.0.key``) and the shape (blocks, heads, `BLOCK`, head size). Its one output are the
    logits.

    Raises
    ------
    BundleError
        A mask says what attention over blocks cannot.
    MissingDependency
        OpenVINO's attention over blocks takes other inputs than it did.
    """
    contexts = Contexts(runtime, path, reading.model, graph.cache_length, graph.max_window)
    reaches = [contexts.reach(attention.mask) for attention in reading.attentions]
    paging = _Paging(runtime, graph, reading.model)
    for attention, reach in zip(reading.attentions, reaches, strict=True):
        paging.replace(attention, reach)
    results = [result for result in reading.model.get_results() if "logits" in result.input_value(0).get_names()]
    kept = [paging.tokens, paging.start]
    return runtime.package.Model(results, kept + list(paging.parameters.values()), "window")


class _Paging:
    """Replaces the attentions of ``model`` one by one; ``parameters`` are the new ones, by name."""

    def __init__(self, runtime: Runtime, graph: WindowGraph, model: Any) -> None:
        self._runtime, self._graph = runtime, graph
        by_name = {p.output(0).get_any_name(): p for p in model.get_parameters()}
        self.tokens, self.start = by_name["input_ids"], by_name["start"]
        self.parameters: dict[str, Any] = {}
        self._held = runtime.operators.convert(self.start, "i32")
        for name in _SHARED:
            self._parameter(name, [] if name == "max_context_len" else [-1], np.int32)

    def replace(self, attention: Attention, reach: int) -> None:
        """Put attention over blocks in the place of ``attention``, whose slots see the last ``reach`` columns."""
        op, size = self._runtime.operators, self._graph.head_size
        heads = attention.query.get_partial_shape()[1].get_length()
        shape = op.shape_of(attention.query)
        mixed = op.reshape(
            self._attend(attention, heads, reach).output(0),
            op.concat([op.gather(shape, _integers(op, [0, 2]), _integers(op, 0)), _integers(op, [heads, size])], 0),
            False,
        )
        mixed = op.transpose(mixed, _integers(op, [0, 2, 1, 3]))
        attention.stand_in.output(0).replace(mixed.output(0))

    def _attend(self, attention: Attention, heads: int, reach: int) -> Any:
        op, graph, shared = self._runtime.operators, self._graph, self.parameters
        size, kv_heads = graph.head_size, graph.kv_heads
        caches = [
            self._parameter(cache.past, [-1, kv_heads, BLOCK, size], np.float32)
            for cache in (attention.key, attention.value)
        ]

        def flat(slots: Any, count: int) -> Any:
            """(B, count, W, size) as (B * W, count * size)."""
            slots = op.transpose(slots, _integers(op, [0, 2, 1, 3]))
            return op.reshape(slots, _integers(op, [-1, count * size]), False)

        def scalar(value: float, dtype: Any = np.int32) -> Any:
            return op.constant(np.array(value, dtype))

        def nothing(dtype: Any = np.int32) -> Any:
            return op.constant(np.zeros(0, dtype))

        inputs = [
            flat(attention.query, heads),
            flat(attention.key.update, kv_heads),
            flat(attention.value.update, kv_heads),
            *caches,
            self._held,  # positions that each row holds
            shared["subsequence_begins"],
            shared["block_indices"],
            shared["block_indices_begins"],
            scalar(size**-0.5 if attention.scale is None else attention.scale, np.float32),
            scalar(reach),
            nothing(np.float32),  # slopes of ALiBi
            shared["max_context_len"],
            nothing(),  # of which slots scores are wanted
            *(nothing(), nothing(), nothing(np.float32)),  # blocks that are to be rotated
            *(nothing(np.float32), scalar(0), scalar(0)),  # sparse attention
            nothing(np.float32),  # sinks
            *(scalar(0), nothing(), nothing(), nothing()),  # eviction
            nothing(),  # tokens that see each other
            *(nothing(np.uint8), nothing()),  # a mask between the slots of a window
        ]
        try:
            attend = self._runtime.package.op._PagedAttentionExtension([node.output(0) for node in inputs])
        except (AttributeError, RuntimeError, TypeError) as error:  # no stable interface
            raise MissingDependency(
                f"openvino {self._runtime.version} has another attention over blocks than 2026.4 ({in_one_line(error)}): {INSTALL}"
            ) from error
        information = attend.get_rt_info()
        for kind in ("k", "v"):
            information[f"num_{kind}_heads"], information[f"{kind}_head_size"] = kv_heads, size
        return attend

    def _parameter(self, name: str, shape: list[int], dtype: Any) -> Any:
        parameter = self._runtime.operators.parameter(shape, dtype, name=name)
        parameter.output(0).get_tensor().set_names({name})
        self.parameters[name] = parameter
        return parameter


def _integers(op: Any, values: int | list[int]) -> Any:
    return op.constant(np.array(values, np.int64))
