"""What a decoder graph exported by somebody else asks for: read from the graph, never assumed.

Optimum, transformers.js and ONNX Runtime GenAI all write decoders whose caches grow: ``past`` of T columns goes in, ``present``
of T + W comes out. They differ in names, types and extra inputs. `read_graph` recognises the names below and refuses
anything else by name, because an input fed with a guess is a wrong answer that nobody notices.

A mask of 2 axes says which columns are no padding. One of 4 axes, (batch, 1, window, past + window), says of each slot what it
sees: true for what it does, or as a float 0 for that and the least number for the rest, which is added to the scores. With it and
with ``position_ids``, windows may be trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.session import require_onnxruntime
from coupled_sampling.errors import BundleError

__all__ = ["Cache", "DecoderGraph", "call_graph", "columns_of", "read_graph"]

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
BY_SLOT: Types = {**BOOLEAN, **FLOATING}
"""Types of a mask that says of each slot what it sees. Integers could be meant either way."""

CONTROL: dict[str, tuple[Types, int]] = {
    "input_ids": (INTEGER, 2),
    "attention_mask": (INTEGER, 2),
    "position_ids": (INTEGER, 2),
    "use_cache_branch": (BOOLEAN, 1),
    "num_logits_to_keep": (INTEGER, 0),
}
"""Inputs that are no caches: types and number of axes that can be fed."""

SIZES = (64, 128, 96, 80, 256, 32, 48, 112, 160, 192)
HEADS = (*range(1, 65), 72, 80, 96, 128)
"""What is tried where neither the graph nor a configuration says it: sizes of heads, and how many there are."""

OTHER_SIZES = tuple(size for size in range(8, 513, 8) if size not in SIZES)
FEW_HEADS = range(1, 13)
"""What is tried after that. Each try runs a part of the model, so that not all of them can be."""


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
    masks_by_slot: bool = False
    """Whether ``attention_mask`` has 4 axes."""

    @property
    def takes_trees(self) -> bool:
        """Whether it can be told what each slot of a window sees, and where it stands."""
        return self.masks_by_slot and "position_ids" in self.control

    def refuse_trees(self) -> None:
        """Raise `BundleError` if it cannot."""
        if not self.takes_trees:
            raise BundleError(
                f"{self.path} has {', '.join(self.control)}{', a mask of 2 axes' * (not self.masks_by_slot)}, expected "
                "position_ids and an attention_mask of 4 axes, which say where a branch stands and what it sees; leave trees out"
            )

    def mask(self, valid: NDArray[np.bool_], width: int, sees: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """What to feed as ``attention_mask``.

        Parameters
        ----------
        valid
            bool (B, T + W) columns of the past and of the window that are no padding.
        width
            W.
        sees
            bool (B, W, W) what each slot sees of the window; None where each sees those before it, and itself.
        """
        if not self.masks_by_slot:
            return valid
        visible = np.repeat(valid[:, None, None], width, axis=2)
        visible[:, 0, :, -width:] = np.tri(width, dtype=np.bool_) if sees is None else sees
        dtype = self.control["attention_mask"]
        return visible if dtype == np.bool_ else np.where(visible, dtype.type(0), np.finfo(dtype).min)


def columns_of(max_length: int) -> int:
    """How many columns windows that are trees may have where caches grow: room for one of ``max_length`` slots anywhere."""
    return 2 * max_length


def read_graph(path: Path, session: Any, sizes: tuple[int | None, int | None] = (None, None)) -> DecoderGraph:
    """The inputs and outputs of an opened graph.

    Parameters
    ----------
    path
        Its file, for messages.
    session
        An ``onnxruntime.InferenceSession`` of it.
    sizes
        Heads of the caches and the size of one, where they are known elsewhere: some graphs have names for them instead of numbers.

    Raises
    ------
    BundleError
        An input or output is missing, unknown, or of a type or shape that cannot be fed.
    """
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    _refuse_encoder_decoder(path, inputs, outputs)
    names = _cache_names(path, inputs, outputs)
    caches = tuple(_cache(path, inputs[past], outputs[present], sizes) for past, present in names)
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
    by_slot = "attention_mask" in inputs and len(inputs["attention_mask"].shape) == 4
    types = FLOATING[inputs[caches[0].past].type], FLOATING[logits.type]
    graph = DecoderGraph(path, control, caches, *types, masks_by_slot=by_slot)
    return graph if all(cache.heads and cache.size for cache in caches) else _with_sizes(graph, session)


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


def _cache(path: Path, past: Any, present: Any, sizes: tuple[int | None, int | None]) -> Cache:
    """A cache as the graph has it; 0 stands for a size that neither it nor ``sizes`` tells."""
    shape = list(past.shape)
    if past.type not in FLOATING or len(shape) != 4:
        raise BundleError(
            f"{path}: input {past.name!r} is {past.type} {shape}, expected one of {', '.join(FLOATING)} and the shape "
            "(batch, heads, past, head size)"
        )
    if isinstance(shape[2], int):
        raise BundleError(
            f"{path}: input {past.name!r} has {shape[2]} columns always, expected a cache that grows; a graph with static "
            "caches needs an exporter of its own"
        )
    out = list(present.shape) if len(present.shape) == 4 else shape
    heads, size = (
        next((int(value) for value in (shape[axis], out[axis], known) if isinstance(value, int)), 0)
        for axis, known in zip((1, 3), sizes, strict=True)
    )
    return Cache(past.name, present.name, heads, size)


def _with_sizes(graph: DecoderGraph, session: Any) -> DecoderGraph:
    """The graph with sizes of caches that it takes and gives back, found by trying: all layers are taken to be alike."""
    for heads, size in _tried(graph.caches[0]):
        caches = tuple(cache._replace(heads=cache.heads or heads, size=cache.size or size) for cache in graph.caches)
        found = replace(graph, caches=caches)
        try:
            _, *presents = call_graph(found, session, past=0, columns=0, width=2)
        except Exception:  # wrong sizes; ONNX Runtime's exceptions share no base class but Exception
            continue
        if all(made.shape == (1, cache.heads, 2, cache.size) for cache, made in zip(caches, presents, strict=True)):
            return found
    raise BundleError(
        f"{graph.path}: input {graph.caches[0].past!r} has no number of heads or no size of one, there is no config.json or "
        "genai_config.json beside it that says them, and no usual ones fit; put the configuration beside the graph"
    )


def _tried(cache: Cache) -> Iterator[tuple[int, int]]:
    if cache.heads or cache.size:
        every = (*SIZES, *OTHER_SIZES)
        yield from product((cache.heads,) if cache.heads else HEADS, (cache.size,) if cache.size else every)
        return
    for sizes, counts in ((SIZES, HEADS), (OTHER_SIZES, FEW_HEADS)):
        for size in sizes:
            yield from ((heads, size) for heads in counts)


def call_graph(graph: DecoderGraph, session: Any, past: int, columns: int, width: int) -> list[NDArray[Any]]:
    """Logits and presents of one row of zeros, ``columns`` of past of which ``past`` are said to be valid."""
    control = {
        "input_ids": np.zeros((1, width)),
        "attention_mask": graph.mask(np.ones((1, past + width), np.bool_), width),
        "position_ids": past + np.arange(width)[None],
        "use_cache_branch": np.array([past > 0]),
        "num_logits_to_keep": np.array(0),
    }
    feeds = {name: control[name].astype(dtype) for name, dtype in graph.control.items()}
    feeds |= {cache.past: np.zeros((1, cache.heads, columns, cache.size), graph.cache_type) for cache in graph.caches}
    options = require_onnxruntime().RunOptions()
    # A refusal is an answer here, not something to print.
    options.log_severity_level = 4
    found: list[NDArray[Any]] = session.run(["logits", *(cache.present for cache in graph.caches)], feeds, options)
    return found


def _control_type(path: Path, value: Any) -> np.dtype[Any]:
    types, axes = CONTROL[value.name]
    if value.name == "attention_mask" and len(value.shape) == 4:
        return _type_of_slot_mask(path, value)
    if value.type not in types or len(value.shape) != axes:
        raise BundleError(
            f"{path}: input {value.name!r} is {value.type} {value.shape}, expected {' or '.join(types)} with {axes} axes"
        )
    if value.name == "input_ids" and isinstance(value.shape[1], int):
        raise BundleError(
            f"{path}: input 'input_ids' takes exactly {value.shape[1]} tokens a call, expected windows of any width"
        )
    return types[value.type]


def _type_of_slot_mask(path: Path, value: Any) -> np.dtype[Any]:
    """The type of a mask of 4 axes, which must take windows and pasts of any width."""
    _, heads, *widths = value.shape
    if (
        value.type not in BY_SLOT
        or (isinstance(heads, int) and heads != 1)
        or any(isinstance(size, int) for size in widths)
    ):
        raise BundleError(
            f"{path}: input {value.name!r} is {value.type} {value.shape}, expected {' or '.join(BY_SLOT)} of the shape (batch, 1, "
            "window, past + window)"
        )
    return BY_SLOT[value.type]
