"""Opening whatever a user points at: the one place that tells formats apart, and refuses what is no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.gguf_checkpoint import open_gguf
from coupled_sampling.export.checkpoints.safetensors_reader import CONFIG, INDEX, SINGLE, open_safetensors
from coupled_sampling.export.checkpoints.torch_archive import is_archive, open_torch_archive
from coupled_sampling.fields import check_path

__all__ = ["open_checkpoint"]

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".jit")
USUAL = ("model.pt", "pytorch_model.bin")
"""Names of the weights where a folder has other things in such files, too."""
EXPECTED = (
    f"expected a Hugging Face folder ({CONFIG} with {SINGLE} or {INDEX} and its shards), one .safetensors file with "
    f"{CONFIG} beside it, one .gguf file, or an archive of PyTorch such as {USUAL[0]}"
)
EXPORTED = (
    "already exported by somebody else: the commands inspect, generate, compare and verify take it as it is, as does "
    "coupled_sampling.backends.open_onnx; export takes the checkpoint that it was made of"
)


def open_checkpoint(source: str | Path, check: Callable[[Path, Mapping[str, Any]], object] | None = None) -> Checkpoint:
    """Open a checkpoint by reading its headers; close it, or use it in a ``with`` block.

    Parameters
    ----------
    source
        A Hugging Face folder, a ``.safetensors`` file with ``config.json`` beside it, a ``.gguf`` file, or an archive of PyTorch
        (``.pt``, ``.pth``, ``.bin``, ``.jit``) or the folder of one. Nothing in it is run, and ``config.json`` may be missing.
    check
        Called with the path and the configuration of a folder or ``.safetensors`` file before any weights are looked at. What it
        raises comes before what may be wrong with these. It is not called for GGUF files and archives.

    Returns
    -------
    Checkpoint
        Under Hugging Face's tensor names and configuration keys; those of an archive are its own.

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
        return _open_pickled(source)
    if source.suffix == ".onnx":
        raise CheckpointError(f"{source} is an ONNX graph, {EXPORTED}")
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
        usual = [name for name in USUAL if name in pickled]
        if not usual and len(pickled) > 1:
            raise CheckpointError(
                f"{folder} holds {len(pickled)} files of PyTorch ({', '.join(pickled[:4])}), expected one, or one that is called "
                f"{' or '.join(USUAL)}; name one of them. Where they are shards of one model, take its safetensors files"
            )
        return _open_pickled(folder / (usual or pickled)[0])
    if any(True for part in (folder, folder / "onnx") for _ in part.glob("*.onnx")):
        raise CheckpointError(f"{folder} holds ONNX graphs and no weights beside them, {EXPORTED}")
    found = ", ".join(names[:4]) if names else "an empty folder"
    raise CheckpointError(f"{folder} is no checkpoint, found {found}; {EXPECTED}")


def _open_pickled(source: Path) -> Checkpoint:
    if is_archive(source):
        return open_torch_archive(source)
    raise CheckpointError(
        f"{source} is a pickle and no archive of PyTorch 1.6 or later, and is not read: loading it runs whatever code is in it. "
        "Take the model's safetensors files, or convert where PyTorch is at hand and you trust the file: "
        "model = AutoModelForCausalLM.from_pretrained(folder); model.save_pretrained(new_folder, safe_serialization=True)"
    )
