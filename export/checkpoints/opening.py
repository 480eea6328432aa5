"""Opening whatever a user points at: the one place that tells formats apart, and refuses what is no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.gguf_checkpoint import open_gguf
from coupled_sampling.export.checkpoints.safetensors_reader import CONFIG, INDEX, SINGLE, open_safetensors
from coupled_sampling.fields import check_path

__all__ = ["open_checkpoint"]

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
EXPECTED = (
    f"expected a Hugging Face folder ({CONFIG} with {SINGLE} or {INDEX} and its shards), one .safetensors file with "
    f"{CONFIG} beside it, or one .gguf file"
)


def open_checkpoint(source: str | Path, check: Callable[[Path, Mapping[str, Any]], object] | None = None) -> Checkpoint:
    """Open a checkpoint by reading its headers; close it, or use it in a ``with`` block.

    Parameters
    ----------
    source
        A Hugging Face folder, a ``.safetensors`` file with ``config.json`` beside it, or a ``.gguf`` file.
    check
        Called with the path and the configuration of a folder or ``.safetensors`` file before any weights are looked at. What it
        raises comes before what may be wrong with these. The architectures of GGUF files that can be read are known here.

    Returns
    -------
    Checkpoint
        Under Hugging Face's tensor names and configuration keys, whatever the format.

    Raises
    ------
    CheckpointError
        There is nothing, or nothing whole, safe and known, at ``source``.
    MissingDependency
        The package that reads this format is not installed.

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.export import open_checkpoint
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    >>> save_file({"lm_head.weight": np.zeros((32, 8), np.float32)}, "tiny/model.safetensors")
    >>> with open_checkpoint("tiny") as checkpoint:
    ...     print(checkpoint.kind, checkpoint.info("lm_head.weight").shape)
    safetensors (32, 8)
    """
    source = check_path("source", source)
    if source.is_dir():
        return _open_folder(source, check)
    if not source.is_file():
        raise CheckpointError(f"no checkpoint {str(source)!r}: nothing is there; {EXPECTED}")
    if source.suffix == ".safetensors":
        return open_safetensors(source, check)
    if source.suffix == ".gguf":
        return open_gguf(source)
    if source.suffix in PICKLED:
        raise _pickled(source, source.name)
    raise CheckpointError(f"{source} is no checkpoint that this library reads: {EXPECTED}")


def _open_folder(folder: Path, check: Callable[[Path, Mapping[str, Any]], object] | None) -> Checkpoint:
    names = sorted(path.name for path in folder.iterdir())
    if INDEX in names or any(name.endswith(".safetensors") for name in names):
        return open_safetensors(folder, check)
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        raise CheckpointError(
            f"{folder} holds GGUF files, each a checkpoint of its own; name one: {', '.join(gguf[:4])}"
        )
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise _pickled(folder, ", ".join(pickled[:4]))
    found = ", ".join(names[:4]) if names else "an empty folder"
    raise CheckpointError(f"{folder} is no checkpoint, found {found}; {EXPECTED}")


def _pickled(source: Path, names: str) -> CheckpointError:
    return CheckpointError(
        f"{source} holds pickled weights ({names}), which are not read: loading a pickle runs whatever code is in it. "
        "Take the model's safetensors files, or convert where PyTorch is at hand and you trust the file: "
        "model = AutoModelForCausalLM.from_pretrained(folder); model.save_pretrained(new_folder, safe_serialization=True)"
    )
