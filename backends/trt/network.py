"""A graph as a TensorRT network: parsed, its attention checked, its profiles set.

The network is strongly typed: it computes in the types the graph is written in. Two things are looked at after parsing, since a
network without them would run and be wrong: every Attention must have kept its mask, and every cache must be written by a KV
cache layer, whose output shares its input's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.backends.trt.messages import EngineError, MessageLog
from coupled_sampling.backends.trt.options import BuildOptions, Profile

__all__ = ["Network", "parse_network", "set_profiles"]


class Network(NamedTuple):
    """A parsed network. ``builder`` and ``definition`` are TensorRT's, which writes into ``log``; the counts are of layers."""

    log: MessageLog
    builder: Any
    definition: Any
    attentions: int
    caches: int


def parse_network(flavour: Flavour, path: Path, options: BuildOptions, log: MessageLog) -> Network:
    """Parse ``path``.

    Parameters
    ----------
    flavour, log
        Which TensorRT, and its log.
    path
        An ONNX file, weights beside it.
    options
        ``decomposable`` is what matters here.

    Raises
    ------
    EngineError
        TensorRT does not accept the graph: names the node and its operator. Or it lost a mask or a cache.
    """
    trt = flavour.module
    log.clear()
    builder = log.made(f"starting {flavour.name} {flavour.version}", trt.Builder, log.logger)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    flags = 0 if strong is None else 1 << int(strong)
    definition = log.made("making a network", builder.create_network, flags)
    parser = log.made("making a parser", trt.OnnxParser, definition, log.logger)
    if not parser.parse_from_file(str(path)):
        raise log.error(f"parsing {path.name} with {flavour.name} {flavour.version}", _parser_errors(parser))
    attentions = _check_attention(trt, definition, options.decomposable)
    kinds = [definition.get_layer(i).type for i in range(definition.num_layers)]
    written = sum(kind == trt.LayerType.KV_CACHE_UPDATE for kind in kinds)
    names = [definition.get_input(i).name for i in range(definition.num_inputs)]
    expected = sum(name.startswith("past_key_values.") for name in names)
    if written != expected:
        raise EngineError(
            f"{flavour.name} {flavour.version} made {written} KV cache layers of {path.name}, which has {expected} caches; "
            "the others would be copied or lost: please report it"
        )
    return Network(log, builder, definition, attentions, written)


def _parser_errors(parser: Any) -> str:
    texts = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        kind = str(error.code()).rsplit(".", 1)[-1]
        texts.append(f"{kind} at node {error.node_name()!r} ({error.node_operator() or 'the graph'}): {error.desc()}")
    return "; ".join(texts)


def _check_attention(trt: Any, definition: Any, splits: bool) -> int:
    """Set ``decomposable`` and refuse an Attention without its mask; returns how many there are."""
    count = 0
    for i in range(definition.num_layers):
        layer = definition.get_layer(i)
        if layer.type != trt.LayerType.ATTENTION_INPUT:
            continue
        layer.__class__ = trt.IAttentionInputLayer  # how TensorRT's Python API gives a layer its own type
        attention = layer.attention
        mask = attention.mask
        if mask is None or mask.dtype != trt.DataType.BOOL or len(mask.shape) != 4:
            raise EngineError(
                f"Attention {attention.name!r} came out of the parser without its boolean mask of 4 axes: every slot would see "
                "all columns; export the bundle again, with an explicit mask"
            )
        attention.decomposable = splits
        count += 1
    return count


def set_profiles(network: Network, config: Any, options: BuildOptions) -> None:
    """Add the profiles of ``options``, which must fit the graph, to ``config``.

    Raises
    ------
    EngineError
        An input of the network is none of a window graph, or TensorRT refuses a profile.
    """
    log = network.log
    for profile in options.profiles():
        target = log.made("making an optimisation profile", network.builder.create_optimization_profile)
        for i in range(network.definition.num_inputs):
            _set_input(log, target, network.definition.get_input(i), profile)
        if config.add_optimization_profile(target) < 0:
            raise log.error(f"adding the optimisation profile {profile}")


def _set_input(log: MessageLog, target: Any, tensor: Any, profile: Profile) -> None:
    shape = tuple(tensor.shape)
    if tensor.is_shape_tensor:
        if tensor.name != "kv_length":
            raise EngineError(f"input {tensor.name!r} decides shapes, expected kv_length only; is this a window graph?")
        low, high = profile.columns
        values = ([low], [high], [high])
        log.done(f"setting the values of {tensor.name} to {values}", target.set_shape_input, tensor.name, *values)
    elif -1 in shape:
        if shape.count(-1) > 2 or shape[0] != -1 or -1 in shape[2:]:
            raise EngineError(
                f"input {tensor.name!r} is {shape}, expected (B, ...) or (B, W, ...); is this a window graph?"
            )
        ends = [_filled(shape, profile.rows[i], profile.window[i]) for i in (0, 1, 1)]
        log.done(f"setting the shapes of {tensor.name} to {ends}", target.set_shape, tensor.name, *ends)


def _filled(shape: tuple[int, ...], rows: int, width: int) -> tuple[int, ...]:
    sizes = (rows, width, *shape[2:])[: len(shape)]
    return tuple(size if found == -1 else found for found, size in zip(shape, sizes, strict=True))
