"""Which file of a downloaded folder is the decoder: by the names that exporters write, never by guessing among several.

| written by | the decoder |
|---|---|
| Optimum | ``model.onnx``, ``decoder_model_merged.onnx`` |
| transformers.js | the same in ``onnx``, beside variants such as ``model_q4.onnx`` |
| ONNX Runtime GenAI | what ``genai_config.json`` names |

Of several variants the one in floating point is taken, which has the plain name; another is asked for by its own path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from coupled_sampling.backends.foreign.configuration import GENAI
from coupled_sampling.bundles.beside import read_object
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import is_bundle
from coupled_sampling.errors import BundleError

__all__ = ["find_decoder", "is_onnx", "other_graphs"]

NAMES = ("onnx/model.onnx", "model.onnx", "onnx/decoder_model_merged.onnx", "decoder_model_merged.onnx")


def is_onnx(path: Path) -> bool:
    """Whether ``path`` is an ONNX file, or a folder with some that is no bundle."""
    if path.is_dir():
        if any((path / name).is_file() for name in (GENAI, *NAMES)):
            return not is_bundle(path)  # other programs have a manifest.json, too
        own = any((path / name).exists() for name in (MANIFEST, "window.onnx"))
        return not own and bool(_graphs(path))
    return path.is_file() and path.suffix == ".onnx"


def find_decoder(path: Path) -> Path:
    """The decoder's file in a folder, or the file itself.

    Raises
    ------
    BundleError
        There is none, or several that could be meant.
    """
    if path.is_file():
        if is_bundle(path.parent):
            raise BundleError(f"{path} is a graph of the bundle {path.parent}; give the bundle's folder")
        return path
    if not path.is_dir():
        raise BundleError(
            f"{path} is no file and no folder; give the path of an ONNX file, for instance folder/onnx/model.onnx"
        )
    if (path / GENAI).is_file():
        return _named_by_genai(path, read_object(path / GENAI))
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    graphs = _graphs(path)
    if len(graphs) == 1:
        return graphs[0]
    if not graphs:
        raise BundleError(f"{path} has no ONNX file, nor has a folder onnx in it; give the path of the decoder's file")
    raise BundleError(
        f"{path} has {_listed(graphs)}, and none of {', '.join(NAMES)}; give the path of the one that is meant, for instance "
        f"{graphs[0]}"
    )


def other_graphs(graph: Path) -> tuple[str, ...]:
    """Names of the ONNX files in a graph's folder that could have been meant instead of it."""
    return tuple(path.name for path in sorted(graph.parent.glob("*.onnx")) if path.name != graph.name)


def _graphs(folder: Path) -> list[Path]:
    return [path for part in (folder, folder / "onnx") for path in sorted(part.glob("*.onnx")) if path.is_file()]


def _named_by_genai(folder: Path, config: Mapping[str, Any]) -> Path:
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or not name:
        raise BundleError(
            f"{folder / GENAI} names no file as model.decoder.filename, so its model is not one decoder graph; give the path of an "
            "ONNX file"
        )
    parts = PurePosixPath(name).parts
    if ".." in parts or len(parts) > 2 or PurePosixPath(name).is_absolute():
        raise BundleError(
            f"{folder / GENAI} names {name!r} as model.decoder.filename, expected a file in this folder or in one within it; "
            "give the path of the ONNX file itself"
        )
    found = folder / name
    if not found.is_file():
        raise BundleError(f"{found} is missing, {GENAI} names it; copy the folder again")
    return found


def _listed(graphs: list[Path]) -> str:
    names = [path.name for path in graphs]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
