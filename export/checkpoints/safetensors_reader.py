"""Hugging Face folders: ``config.json`` and weights as safetensors, whole or in shards.

A safetensors file is a JSON header (name, type, shape, place of each tensor) followed by the bytes. The library
``safetensors`` checks the header against the file; this module adds what it does not know: which files belong
together, what a configuration says about quantisation, and messages that name file, tensor and remedy.

Quantised weights (GPTQ, AWQ, bitsandbytes, fp8) are refused: their tensors are parts of numbers, to be put together by
rules of their own. Format: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.json_files import (
    CONFIGURATION,
    INDEX_OF_SHARDS,
    SAFETENSORS_HEADER,
    SmallFile,
    read_object,
)
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError, TensorInfo

__all__ = ["CONFIG", "INDEX", "SINGLE", "open_safetensors", "read_config", "refuse_quantised_config"]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""safetensors' name of a type, numpy's name, bytes of an element."""

QUANTISED_PARTS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "fp8 or int8",
    "weight_scale_inv": "fp8",
    "SCB": "bitsandbytes int8",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
}
"""Last part of a tensor's name, which only the named scheme writes."""


def open_safetensors(source: Path, check: Callable[[Path, Mapping[str, Any]], object] | None = None) -> Checkpoint:
    """Open a folder or a single ``.safetensors`` file with ``config.json`` beside it; ``check`` is that of `open_checkpoint`.

    Raises
    ------
    CheckpointError
        Files are missing, truncated, damaged or contradict each other, or the weights are quantised.
    MissingDependency
        ``safetensors`` is not installed.
    """
    folder = source if source.is_dir() else source.parent
    config = read_config(folder)
    if check is not None:
        check(source, config)
    refuse_quantised_config(folder / CONFIG, config)
    index: Mapping[str, str] = {}
    if source.is_dir() and not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        index = _read_index(folder / INDEX)
    files = sorted({folder / file for file in index.values()}) if index else [_single_file(source)]
    handles: dict[Path, Any] = {}
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        handles[file] = _open_file(file, named_by=INDEX if index else None)
        metadata.update(handles[file].metadata() or {})
        for name, info in _table(file, handles[file]).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in both {tensors[name].file} and {file.name}, expected in one shard; "
                    "the folder mixes two models: download it again"
                )
            tensors[name] = info
    for name, shard in index.items():
        if name not in tensors:
            raise CheckpointError(
                f"{folder / INDEX} places tensor {name!r} in {shard}, which does not hold it; download both again"
            )
    return Checkpoint(
        source,
        "safetensors",
        config,
        tensors,
        lambda name: _load(handles[tensors[name].file], name),
        metadata,
        handles.clear,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder, whose entries that say what the model is are of the right type.

    Raises
    ------
    CheckpointError
        It is missing, or damaged.
    """
    config = _read_object(folder / CONFIG, CONFIGURATION, "the model's configuration")
    _check_identity(folder / CONFIG, config)
    return config


def _load(handle: Any, name: str) -> NDArray[Any]:
    array: NDArray[Any] = handle.get_tensor(name)
    return array


def _open_file(file: Path, named_by: str | None) -> Any:
    try:
        import ml_dtypes  # noqa: F401 - the library makes bfloat16 arrays of it
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependency(
            "reading safetensors needs the packages safetensors and ml_dtypes: pip install 'coupled-sampling[export]'"
        ) from error
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, {named_by or 'the checkpoint'} names it; download this shard")
    _check_header(file)
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {_diagnosis(file)} ({error})") from error


def _check_header(file: Path) -> None:
    """Refuse a header that is there and too large, before the library makes objects of it."""
    with file.open("rb") as stream:
        announced = int.from_bytes(stream.read(8), "little")
    if announced <= file.stat().st_size:  # else the file is truncated, which the library finds
        SAFETENSORS_HEADER.check_size(announced, file, CheckpointError)


def _table(file: Path, handle: Any) -> dict[str, TensorInfo]:
    table = {}
    for name in handle.offset_keys():
        entry = handle.get_slice(name)
        kind, shape = entry.get_dtype(), tuple(entry.get_shape())
        scheme = QUANTISED_PARTS.get(name.rpartition(".")[2])
        if scheme is not None:
            raise CheckpointError(
                f"{file}: tensor {name!r} is part of {scheme} quantised weights, which are not read; "
                "use the unquantised checkpoint of this model or a GGUF file"
            )
        if kind not in TYPES:
            raise CheckpointError(
                f"{file}: tensor {name!r} is of type {kind}, expected one of {', '.join(TYPES)}; "
                "use the checkpoint in bfloat16 or float32"
            )
        dtype, size = TYPES[kind]
        table[name] = TensorInfo(shape, dtype, math.prod(shape) * size, file)
    if not table:
        raise CheckpointError(f"{file} holds no tensors; download it again")
    return table


def _diagnosis(file: Path) -> str:
    """What is wrong with a file that the library refused, with the numbers it does not give."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return f"it has {size} bytes and its first 8 announce a header of {length}: truncated or another format"
        try:
            header = json.loads(stream.read(length))
            end = (
                8
                + length
                + max((entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_"), default=0)
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "its header is damaged; download it again"
    if end != size:
        return f"it has {size} bytes, its header promises {end}: truncated or appended to; download it again"
    return "its header contradicts itself; download it again"


def _single_file(source: Path) -> Path:
    if source.is_file():
        return source
    files = sorted(source.glob("*.safetensors"))
    if (source / SINGLE) in files or len(files) == 1:
        return source / SINGLE if (source / SINGLE) in files else files[0]
    raise CheckpointError(
        f"{source} holds {len(files)} .safetensors files ({', '.join(file.name for file in files[:3])}, ...) and no {INDEX} "
        "says which belong together; download the index too, or name one file"
    )


def _read_index(path: Path) -> Mapping[str, str]:
    places = _read_object(path, INDEX_OF_SHARDS, "the index of the shards").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f"{path}: weight_map is {shown(places)}, expected an object of tensor names and file names"
        )
    for name, file in places.items():
        if Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{path} places tensor {name!r} in {file!r}, expected a file name in the same folder")
    return places


def _read_object(path: Path, kind: SmallFile, role: str) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing, expected {role}; copy it there from where the weights came from")
    return read_object(path, kind, CheckpointError)


def _check_identity(path: Path, config: Mapping[str, Any]) -> None:
    """Families are found by these two; everything else is checked by the family that reads it."""
    kind, classes = config.get("model_type"), config.get("architectures")
    if not (kind is None or isinstance(kind, str)):
        raise CheckpointError(f"{path}: model_type is {shown(kind)}, expected a text or null; copy the file again")
    if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
        raise CheckpointError(
            f"{path}: architectures is {shown(classes)}, expected a list of texts or null; copy the file again"
        )


def refuse_quantised_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says that weights are parts of numbers: `CheckpointError`."""
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
    raise CheckpointError(
        f"{path}: quantization_config says that the weights are quantised by {shown(method)}, which is not read; "
        "use the unquantised checkpoint of this model or a GGUF file"
    )
