"""A bundle's window graph as OpenVINO reads it, with its attentions found.

OpenVINO has no TensorScatter, and makes of an Attention many operators that are hard to tell apart afterwards. So it is told how to
read both. A TensorScatter becomes a ScatterElementsUpdate, which means the same. An Attention becomes its own query: a stand-in,
which `coupled_sampling.backends.openvino.paging` replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.openvino.runtime import Runtime
from coupled_sampling.backends.window_tensors import CACHE, window_tensors
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError

__all__ = ["Attention", "Reading", "Written", "read_window_graph"]

_ATTRIBUTES = {"scale": 0.0, "softcap": 0.0, "is_causal": 0, "qk_matmul_output_mode": 0}
"""Those of Attention that say what it computes, with a value of their type."""


class Written(NamedTuple):
    """A cache that an attention reads: the name of what it was before the window, and the window's part (B, H, W, D)."""

    past: str
    update: Any


class Attention(NamedTuple):
    """An attention of the graph: its inputs, its scale (None is by the size of its heads), and what stands in for its output."""

    query: Any
    key: Written
    value: Written
    mask: Any
    scale: float | None
    stand_in: Any


class _Met(NamedTuple):
    """An Attention as it was met, of which nothing is known yet but what it was given."""

    inputs: list[Any]
    attributes: dict[str, float]
    stand_in: Any


@dataclass(frozen=True)
class Reading:
    """A model and its attentions, in the order of the graph."""

    model: Any
    attentions: tuple[Attention, ...]


def read_window_graph(runtime: Runtime, bundle: Bundle) -> Reading:
    """Read the window graph of ``bundle``.

    Raises
    ------
    BundleError
        OpenVINO cannot read it, it is not what the manifest promises, or its attention is not over the caches alone.
    """
    path = bundle.window_graph
    met: list[_Met] = []

    def scatter(node: Any) -> Any:
        return _scattered(runtime, node).outputs()

    def attention(node: Any) -> Any:
        # ``node`` is gone after this call, and what is raised in it arrives as text.
        inputs = [node.get_input(i) for i in range(node.get_input_size())]
        given = {name: node.get_attribute(name, none) for name, none in _ATTRIBUTES.items() if node.has_attribute(name)}
        met.append(_Met(inputs, given, runtime.operators.relu(inputs[0])))
        return met[-1].stand_in.outputs()

    core = runtime.package.Core()
    for name, convert in (("TensorScatter", scatter), ("Attention", attention)):
        core.add_extension(runtime.conversion(name, convert))
    try:
        model = core.read_model(str(path))
    except Exception as error:
        # Its exceptions share no base class but Exception.
        # What was raised in here is the last of pages.
        cause = in_one_line(str(error).rpartition("ValueError: ")[2])
        raise BundleError(f"OpenVINO {runtime.version} cannot read {path}: {cause}; use the back end cpu") from error
    _check_tensors(bundle, model)
    return Reading(model, tuple(_attention(path, each) for each in met))


def _scattered(runtime: Runtime, node: Any) -> Any:
    """TensorScatter of (past, update, start) along the columns, in OpenVINO's operators."""
    op, (past, update, start) = runtime.operators, (node.get_input(i) for i in range(3))
    if (axis := node.get_attribute("axis", -2)) not in (-2, 2) or node.get_attribute("mode", "linear") != "linear":
        raise ValueError(f"TensorScatter along axis {axis} or around the end, expected along axis -2 of a cache")
    one, two, zero = (op.constant(np.array(value, np.int64)) for value in (1, 2, 0))
    shape = op.shape_of(update)
    slots = op.range(zero, op.gather(shape, two, zero), one, "i64")
    columns = op.add(op.unsqueeze(start, one), op.unsqueeze(slots, zero))  # (B, W)
    heads_and_sizes = op.constant(np.array([1, 3], np.int64))
    indices = op.broadcast(op.unsqueeze(columns, heads_and_sizes), shape)
    return op.scatter_elements_update(past, indices, update, two)


def _attention(path: Path, met: _Met) -> Attention:
    """What an Attention was given, as far as it can be run."""
    inputs, given = met.inputs, dict(met.attributes)
    scale = given.pop("scale", None)
    unlike = {name: value for name, value in given.items() if value}
    if len(inputs) != 4 or unlike:
        raise BundleError(
            f"{path}: an Attention has {len(inputs)} inputs and {unlike or 'no attributes'}, expected query, key, value and mask, "
            "and no attribute but scale, which is all that OpenVINO's attention over blocks has; use the back end cpu"
        )
    query, key, value, mask = inputs
    return Attention(query, _written(path, key), _written(path, value), mask, scale, met.stand_in)


def _written(path: Path, read: Any) -> Written:
    """The cache that an attention reads, which must be all columns of it, or its first ``kv_length``."""
    node = read.get_node()
    if node.get_type_name() == "Slice":
        first, last = node.input_value(1).get_node(), node.input_value(2)
        if first.get_type_name() == "Constant" and not first.data.any() and "kv_length" in last.get_names():
            node = node.input_value(0).get_node()
    if node.get_type_name() == "ScatterElementsUpdate":
        past = node.input_value(0)
        if past.get_node().get_type_name() == "Parameter":
            return Written(past.get_any_name(), node.input_value(2))
    raise BundleError(
        f"{path}: an Attention reads something else than the first kv_length columns of a cache that the window was just written "
        "to; use the back end cpu"
    )


def _check_tensors(bundle: Bundle, model: Any) -> None:
    """Refuse a graph whose inputs and outputs are not what the manifest promises."""
    types = {"int64": "i64", "float32": "f32", CACHE: "f32"}
    expected = {
        name: (types[tensor.dtype], tuple(size if isinstance(size, int) else None for size in tensor.axes))
        for name, tensor in window_tensors(bundle.manifest).items()
    }
    found: Mapping[str, Any] = {
        tensor.get_any_name(): (tensor.get_element_type().get_type_name(), _sizes(tensor.get_partial_shape()))
        for tensor in (*model.inputs, *model.outputs)
    }
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise BundleError(
                f"{bundle.window_graph}: input or output {name!r} is {found.get(name, 'missing')}, the manifest "
                f"promises {expected.get(name, 'none of that name')}; export the bundle again"
            )


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in shape)
