"""What the decoder of an encoder-decoder model asks for, as Optimum and transformers.js export it: read from its graphs.

Such a decoder has two kinds of caches. Those of its own tokens, ``past_key_values.N.decoder.*``, grow as any decoder's do. Those
of the encoder's output, ``past_key_values.N.encoder.*``, are computed once and never change. So there are two things to run, and
they come in one of two forms:

- **merged**: one file, ``decoder_model_merged.onnx``, with both as branches of an If; ``use_cache_branch`` chooses;
- **a pair**: ``decoder_model.onnx``, which reads the encoder's output and gives both kinds of caches, and
  ``decoder_with_past_model.onnx``, which takes them.

`find_graphs` finds the files, `read_graphs` recognises their inputs and outputs and refuses anything else by name, because an input
fed with a guess is a wrong answer that nobody notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.backends.foreign.graph import BOOLEAN, FLOATING, INTEGER, Cache, Types
from coupled_sampling.errors import BundleError

__all__ = ["EncoderDecoderGraph", "Files", "find_graphs", "read_graphs"]

MERGED, FIRST, NEXT = "decoder_model_merged", "decoder_model", "decoder_with_past_model"
"""How Optimum names the three files; what follows, such as ``_q4`` or ``_fp16``, is the same in a pair."""

CONTROL: dict[str, tuple[Types, int]] = {
    "input_ids": (INTEGER, 2),
    "encoder_hidden_states": (FLOATING, 3),
    "encoder_attention_mask": (INTEGER, 2),
    "decoder_attention_mask": (INTEGER, 2),
    "cache_position": (INTEGER, 1),
    "position_ids": (INTEGER, 2),
    "use_cache_branch": (BOOLEAN, 1),
}
"""Inputs that are no caches: types and number of axes that can be fed."""


MOST_NUMBERS = 2**25
"""Of an encoder's output, which is made up at opening: ten times those of the largest Whisper, 1500 x 1280, and more."""


class Files(NamedTuple):
    """The graph that reads an encoder's output, and the one that goes on: the same file where they are merged."""

    first: Path
    next: Path


@dataclass(frozen=True)
class EncoderDecoderGraph:
    """The inputs and outputs of an encoder-decoder model's decoder.

    Attributes
    ----------
    path
        The file that is run for every window.
    first_path
        The file that reads an encoder's output; the same one if both are merged.
    first_control, control
        Inputs that are no caches, with their numpy types: of the graph that reads an encoder's output, and of the one that is
        run for every window.
    caches
        Keys and values of the decoder's own tokens, all layers.
    encoder_caches
        Keys and values of the encoder's output, all layers: ``present`` is what the first graph calls them.
    states
        (S, D): the encoder's output; None where the graph leaves a size open.
    cache_type, logits_type
        float32 or float16.
    first_caches
        Caches that the first graph wants although it does not look at them, as merged ones do.
    """

    path: Path
    first_path: Path
    first_control: Mapping[str, np.dtype[Any]]
    control: Mapping[str, np.dtype[Any]]
    caches: tuple[Cache, ...]
    encoder_caches: tuple[Cache, ...]
    states: tuple[int | None, int | None]
    cache_type: np.dtype[Any]
    logits_type: np.dtype[Any]
    first_caches: tuple[Cache, ...]


def find_graphs(path: Path) -> Files:
    """The decoder's files, from one of them, from their folder or from the folder above an ``onnx``.

    Raises
    ------
    BundleError
        There are none, or one of a pair is missing.
    """
    if path.is_dir():
        for folder in (path, path / "onnx"):
            for name in (MERGED, FIRST):
                if (folder / f"{name}.onnx").is_file():
                    return find_graphs(folder / f"{name}.onnx")
        raise BundleError(
            f"{path} has no {MERGED}.onnx and no {FIRST}.onnx, nor has its folder onnx; give the file itself if it has another name"
        )
    if not path.is_file():
        raise BundleError(f"{path} is no file and no folder; give the folder of an export, or its {MERGED}.onnx")
    if path.stem.startswith(MERGED):
        return Files(path, path)
    for start, other in ((NEXT, FIRST), (FIRST, NEXT)):
        if path.stem.startswith(start):
            beside = path.with_name(other + path.name.removeprefix(start))
            if not beside.is_file():
                raise BundleError(
                    f"{path} is one of a pair, and {beside.name} does not lie beside it: put it there, or give {MERGED}.onnx, "
                    "which has both"
                )
            return Files(beside, path) if start == NEXT else Files(path, beside)
    return Files(path, path)


def read_graphs(files: Files, first: Any, following: Any) -> EncoderDecoderGraph:
    """The inputs and outputs of the opened graphs ``first`` and ``following``, which may be one.

    Raises
    ------
    BundleError
        An input or output is missing, unknown, or of a type or shape that cannot be fed.
    """
    inputs, outputs = _values(following)
    first_inputs, first_outputs = _values(first)
    _refuse_encoder(files.first, first_inputs, first_outputs)
    own = _caches(files.next, inputs, "decoder")
    encoders = _caches(files.next, inputs, "encoder")
    if files.first == files.next and "use_cache_branch" not in inputs:
        raise BundleError(
            f"{files.next} takes caches always, so that nothing computes the encoder's: give {MERGED}.onnx, or the folder of a "
            f"pair of {FIRST}.onnx and {NEXT}.onnx"
        )
    for path, needed, given in (
        (files.next, [cache.present for cache in own], outputs),
        (files.first, [cache.present for cache in (*own, *encoders)], first_outputs),
    ):
        missing = [name for name in needed if name not in given]
        if missing:
            raise BundleError(
                f"{path} has no output {missing[0]!r}, but {files.next.name} takes {_past(missing[0])!r}: the layers of the export "
                "are named wrongly (Optimum does so where encoder and decoder have different numbers of layers); export it again"
            )
    control = _control(files.next, inputs)
    first_control = control if files.first == files.next else _control(files.first, first_inputs)
    if "encoder_hidden_states" not in first_control:
        raise BundleError(
            f"{files.first} has the inputs {_listed(first_inputs)}, expected encoder_hidden_states among them"
        )
    kinds = {inputs[cache.past].type for cache in (*own, *encoders)}
    if len(kinds) > 1:
        raise BundleError(f"{files.next} has caches of the types {', '.join(sorted(kinds))}, expected one type")
    states = _states(files.first, first_inputs["encoder_hidden_states"])
    return EncoderDecoderGraph(
        path=files.next,
        first_path=files.first,
        first_control=first_control,
        control=control,
        caches=own,
        encoder_caches=encoders,
        states=states,
        cache_type=FLOATING[kinds.pop()],
        logits_type=_logits(files, outputs),
        first_caches=tuple(cache for cache in (*own, *encoders) if cache.past in first_inputs),
    )


def _states(path: Path, value: Any) -> tuple[int | None, int | None]:
    """(S, D) of an encoder's output, None for a size that the graph leaves open."""
    length, size = (given if isinstance(given, int) and given > 0 else None for given in value.shape[1:])
    if (length or 1) * (size or 1) > MOST_NUMBERS:
        raise BundleError(
            f"{path}: input {value.name!r} has the shape {value.shape}, expected at most {MOST_NUMBERS} numbers for one encoder's "
            "output; export it again"
        )
    return length, size


def _values(session: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return ({v.name: v for v in session.get_inputs()}, {v.name: v for v in session.get_outputs()})


def _refuse_encoder(path: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    if "logits" not in outputs and "last_hidden_state" in outputs:
        raise BundleError(
            f"{path} is an encoder: it has the output last_hidden_state and no logits. Open it with Encoder, and the decoder "
            f"beside it ({MERGED}.onnx) here"
        )
    if "encoder_hidden_states" not in inputs and "past_key_values.0.key" in inputs:
        raise BundleError(
            f"{path} is a decoder without an encoder: it has no input encoder_hidden_states. Open it with ConcatenatedProvider"
        )


def _listed(values: Mapping[str, Any]) -> str:
    names = list(values)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _past(present: str) -> str:
    return present.replace("present", "past_key_values", 1)


def _caches(path: Path, inputs: Mapping[str, Any], kind: str) -> tuple[Cache, ...]:
    """Keys and values of all layers, of the decoder or of the encoder."""
    found: list[Cache] = []
    while f"past_key_values.{len(found) // 2}.{kind}.key" in inputs:
        layer = len(found) // 2
        for part in ("key", "value"):
            past = f"past_key_values.{layer}.{kind}.{part}"
            if past not in inputs:
                raise BundleError(f"{path} has no input {past!r}, but that of the layer's keys")
            found.append(_grown_or_fixed_cache(path, past, f"present.{layer}.{kind}.{part}", inputs[past]))
    if not found:
        raise BundleError(
            f"{path} has the inputs {_listed(inputs)}, expected past_key_values.N.decoder.key, past_key_values.N.encoder.key and "
            "the same for values: export it again with caches (a task with -with-past)"
        )
    return tuple(found)


def _grown_or_fixed_cache(path: Path, past: str, present: str, value: Any) -> Cache:
    shape = list(value.shape)
    if value.type not in FLOATING or len(shape) != 4 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
        raise BundleError(
            f"{path}: input {past!r} is {value.type} {shape}, expected one of {', '.join(FLOATING)} and the shape "
            "(batch, heads, past, head size) with numbers for heads and head size"
        )
    return Cache(past, present, int(shape[1]), int(shape[3]))


def _control(path: Path, inputs: Mapping[str, Any]) -> dict[str, np.dtype[Any]]:
    names = [name for name in inputs if not name.startswith("past_key_values.")]
    unknown = sorted(set(names) - set(CONTROL))
    if unknown or "input_ids" not in names:
        raise BundleError(
            f"{path} has the inputs {', '.join(names)} besides caches, expected input_ids and at most "
            f"{', '.join(name for name in CONTROL if name != 'input_ids')}; "
            + (f"nothing is known about {', '.join(unknown)}" if unknown else "input_ids is missing")
        )
    for name in names:
        types, axes = CONTROL[name]
        value = inputs[name]
        if value.type not in types or len(value.shape) != axes:
            raise BundleError(
                f"{path}: input {name!r} is {value.type} {value.shape}, expected {' or '.join(types)} with {axes} axes"
            )
    width = inputs["input_ids"].shape[1]
    if isinstance(width, int):
        raise BundleError(
            f"{path}: input 'input_ids' takes exactly {width} tokens a call, expected windows of any width"
        )
    return {name: CONTROL[name][0][inputs[name].type] for name in CONTROL if name in names}


def _logits(files: Files, outputs: Mapping[str, Any]) -> np.dtype[Any]:
    if "logits" not in outputs:
        raise BundleError(f"{files.next} has the outputs {_listed(outputs)}, expected logits among them")
    logits = outputs["logits"]
    if logits.type not in FLOATING or len(logits.shape) != 3:
        raise BundleError(
            f"{files.next}: output 'logits' is {logits.type} {logits.shape}, expected one of {', '.join(FLOATING)} and the shape "
            "(batch, window, vocabulary)"
        )
    return FLOATING[logits.type]
