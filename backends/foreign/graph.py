"""What a decoder graph exported by somebody else asks for: read from the graph, never assumed.

Optimum, transformers.js and ONNX Runtime GenAI all write decoders whose caches grow: ``past`` of T columns goes in, ``present``
of T + W comes out. They differ in names, types and extra inputs. `read_graph` recognises the names below and refuses
anything else by name, because an input fed with a guess is a wrong answer that nobody notices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from coupled_sampling.errors import BundleError, InvalidArgument

__all__ = ["Cache", "DecoderGraph", "read_graph", "read_max_length"]

CACHE_NAMES = (
    ("past_key_values.{}.key", "present.{}.key"),
    ("past_key_values.{}.key", "present_key_values.{}.key"),
    ("past_{}_key", "present_{}_key"),
    ("past_key_{}", "present_key_{}"),
    ("past_key_{}_in", "past_key_{}_out"),
)
"""(past, present) names of a layer's keys; its values are named with ``value`` for the last ``key``."""

Types: TypeAlias = Mapping[str, np.dtype[Any]]
"""ONNX Runtime's names of the types that can be fed, and numpy's."""

INTEGER: Types = {"tensor(int64)": np.dtype(np.int64), "tensor(int32)": np.dtype(np.int32)}
FLOATING: Types = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
BOOLEAN: Types = {"tensor(bool)": np.dtype(np.bool_)}

CONTROL: dict[str, tuple[Types, int]] = {
    "input_ids": (INTEGER, 2),
    "attention_mask": (INTEGER, 2),
    "position_ids": (INTEGER, 2),
    "use_cache_branch": (BOOLEAN, 1),
    "num_logits_to_keep": (INTEGER, 0),
}
"""Inputs that are no caches: types and number of axes that can be fed."""

LENGTH_NAMES = (
    "max_target_positions",
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)


class Cache(NamedTuple):
    """One layer's keys or values: (B, heads, T, size)."""

    past: str
    present: str
    heads: int
    size: int


@dataclass(frozen=True)
class DecoderGraph:
    """The inputs and outputs of a decoder graph.

    Attributes
    ----------
    path
        The file.
    control
        Inputs that are no caches, with their numpy types.
    caches
        Keys and values of all layers.
    cache_type, logits_type
        float32 or float16.
    """

    path: Path
    control: Mapping[str, np.dtype[Any]]
    caches: tuple[Cache, ...]
    cache_type: np.dtype[Any]
    logits_type: np.dtype[Any]


def read_graph(path: Path, session: Any) -> DecoderGraph:
    """The inputs and outputs of an opened graph.

    Raises
    ------
    BundleError
        An input or output is missing, unknown, or of a type or shape that cannot be fed.
    """
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    _refuse_encoder_decoder(path, inputs, outputs)
    names = _cache_names(path, inputs, outputs)
    caches = tuple(_cache(path, past, present, inputs[past]) for past, present in names)
    unknown = sorted(set(inputs) - set(CONTROL) - {cache.past for cache in caches})
    if unknown or "input_ids" not in inputs:
        raise BundleError(
            f"{path} has the inputs {_listed(inputs)}, expected input_ids, caches and at most "
            f"{', '.join(name for name in CONTROL if name != 'input_ids')}; "
            + (f"nothing is known about {', '.join(unknown)}" if unknown else "input_ids is missing")
            + ": use a text decoder exported for the task text-generation-with-past"
        )
    control = {name: _control_type(path, inputs[name]) for name in CONTROL if name in inputs}
    if "logits" not in outputs:
        raise BundleError(f"{path} has the outputs {_listed(outputs)}, expected logits among them")
    logits = outputs["logits"]
    if logits.type not in FLOATING:
        raise BundleError(f"{path}: output 'logits' is {logits.type}, expected one of {', '.join(FLOATING)}")
    if len(logits.shape) != 3 or logits.shape[1] == 1:
        raise BundleError(
            f"{path}: output 'logits' has the shape {logits.shape}, expected (batch, window, vocabulary): it gives the last "
            "token's logits only, and checking a window of drafts needs those of every slot; use an export that keeps them"
        )
    return DecoderGraph(path, control, caches, FLOATING[inputs[caches[0].past].type], FLOATING[logits.type])


def _refuse_encoder_decoder(path: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Half of an encoder-decoder model is named as what it is: its caches are not missing, they are of two kinds."""
    if "encoder_hidden_states" in inputs or any(name.startswith("past_key_values.0.encoder.") for name in inputs):
        raise BundleError(
            f"{path} is the decoder of an encoder-decoder model, which reads an encoder's output: open it with "
            "coupled_sampling.backends.EncoderDecoderProvider"
        )
    if "logits" not in outputs and "last_hidden_state" in outputs:
        raise BundleError(
            f"{path} is an encoder, it has the output last_hidden_state and no logits: open it with "
            "coupled_sampling.backends.Encoder, and the decoder beside it with EncoderDecoderProvider"
        )


def _listed(values: Mapping[str, Any]) -> str:
    names = list(values)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _cache_names(path: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    for keys in CACHE_NAMES:
        pairs = (keys, tuple("value".join(name.rsplit("key", 1)) for name in keys))
        found: list[tuple[str, str]] = []
        while all(past.format(len(found) // 2) in inputs for past, _ in pairs):
            layer = len(found) // 2
            found += [(past.format(layer), present.format(layer)) for past, present in pairs]
        if found and all(present in outputs for _, present in found):
            return found
    patterns = ", ".join(f"{past.format('N')} with {present.format('N')}" for past, present in CACHE_NAMES)
    raise BundleError(
        f"{path} has no caches that are known: its inputs are {_listed(inputs)} and its outputs {_listed(outputs)}, expected "
        f"one of {patterns}, and the same for values; without caches every window would run the whole sequence again: "
        "export it again with caches (task text-generation-with-past)"
    )


def _cache(path: Path, past: str, present: str, value: Any) -> Cache:
    shape = list(value.shape)
    if value.type not in FLOATING or len(shape) != 4 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
        raise BundleError(
            f"{path}: input {past!r} is {value.type} {shape}, expected one of {', '.join(FLOATING)} and the shape "
            "(batch, heads, past, head size) with numbers for heads and head size"
        )
    if isinstance(shape[2], int):
        raise BundleError(
            f"{path}: input {past!r} has {shape[2]} columns always, expected a cache that grows; a graph with static "
            "caches needs an exporter of its own"
        )
    return Cache(past, present, int(shape[1]), int(shape[3]))


def _control_type(path: Path, value: Any) -> np.dtype[Any]:
    types, axes = CONTROL[value.name]
    if value.type not in types or len(value.shape) != axes:
        raise BundleError(
            f"{path}: input {value.name!r} is {value.type} {value.shape}, expected {' or '.join(types)} with {axes} axes"
        )
    if value.name == "input_ids" and isinstance(value.shape[1], int):
        raise BundleError(
            f"{path}: input 'input_ids' takes exactly {value.shape[1]} tokens a call, expected windows of any width"
        )
    return types[value.type]


def read_max_length(path: Path, given: int | None) -> int:
    """Positions to hold: ``given``, or what the configuration beside the graph (or one folder up) says.

    Raises
    ------
    InvalidArgument
        Neither says anything, or ``given`` is more than the model was made for.
    """
    limit, source = _configured_length(path)
    if given is None and limit is None:
        raise InvalidArgument(
            f"max_length is None and there is no config.json or genai_config.json with a length beside {path}; give "
            "max_length, the number of positions the model was made for or fewer"
        )
    if given is not None and limit is not None and given > limit:
        raise InvalidArgument(f"max_length is {given}, expected at most {limit}, which is what {source} says")
    return int(limit if given is None else given)  # type: ignore[arg-type]  # one of them is an integer


def _configured_length(path: Path) -> tuple[int | None, str]:
    for folder in (path.parent, path.parent.parent):
        for name in ("config.json", "genai_config.json"):
            try:
                config = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found = _length_in(config) if isinstance(config, dict) else None
            if found is not None:
                return found, str(folder / name)
    return None, ""


def _length_in(config: dict[str, Any]) -> int | None:
    model = config.get("model")
    candidates = [config.get(name) for name in LENGTH_NAMES]
    candidates.append(model.get("context_length") if isinstance(model, dict) else None)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in ("longrope", "su"):
        # Beyond it all positions are encoded anew, which a cache cannot follow.
        original = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        candidates.insert(0, original)
    return next((int(value) for value in candidates if isinstance(value, int) and value > 0), None)
