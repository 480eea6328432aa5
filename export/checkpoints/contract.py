"""Checkpoints: other people's weights, one tensor at a time and without the framework that wrote them.

A checkpoint is a table of named tensors and a configuration. Opening one reads headers only and refuses what is
truncated, damaged, unsafe or of a type this library cannot read; `Checkpoint.read` then brings in a single tensor, so
that the peak of memory is one tensor and not one model. All formats answer under the names and in the layout of Hugging
Face's files: whoever writes a graph knows one naming only. The formats differ in one function, which reads a tensor.

Nothing here checks what the numbers mean: a file full of zeros is a good checkpoint.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple, Self

from numpy.typing import NDArray

from coupled_sampling.errors import CheckpointError, InvalidArgument

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo"]

_NAMES_SHOWN = 4
_NAMES_COMPARED = 10_000
"""With a name that is missing: each takes some ten microseconds."""


class TensorInfo(NamedTuple):
    """What a header says of a tensor: enough to plan a graph before any weight is read.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.export import open_checkpoint
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/config.json").write_text('{"vocab_size": 32}')
    >>> save_file({"lm_head.weight": np.zeros((32, 8), np.float32)}, "tiny/model.safetensors")
    >>> info = open_checkpoint("tiny").info("lm_head.weight")
    >>> info.shape, info.dtype, info.bytes
    ((32, 8), 'float32', 1024)
    """

    shape: tuple[int, ...]
    """Row-major; a linear layer is (outputs, inputs)."""
    dtype: str
    """As stored: a numpy name such as ``float32`` or ``bfloat16``, or a GGUF block type such as ``Q4_K``."""
    bytes: int
    """Size in the file."""
    file: Path
    """The file, or shard, that holds it."""


class Checkpoint:
    """An opened checkpoint, a context manager. It keeps files open until `close`.

    Parameters
    ----------
    path
        What was opened, for messages.
    kind
        The format.
    config
        The model's configuration under Hugging Face's keys (``hidden_size``, ``num_hidden_layers``, ...).
    tensors
        What there is to read.
    load
        Reads the tensor of a name in ``tensors``: an array of the stored type, or float32 from GGUF's floating types.
    metadata
        Free entries of the file itself; for GGUF all its keys and values, the tokenizer included.
    close
        Lets go of the files.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.export import open_checkpoint
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/config.json").write_text('{"vocab_size": 32}')
    >>> save_file({"lm_head.weight": np.zeros((32, 8), np.float32)}, "tiny/model.safetensors")
    >>> with open_checkpoint("tiny") as checkpoint:
    ...     print(checkpoint.names(), checkpoint.config["vocab_size"], checkpoint.read("lm_head.weight", (32, 8)).shape)
    ('lm_head.weight',) 32 (32, 8)
    """

    def __init__(
        self,
        path: Path,
        kind: Literal["safetensors", "gguf", "torch"],
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        load: Callable[[str], NDArray[Any]],
        metadata: Mapping[str, Any] | None = None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.config: Mapping[str, Any] = MappingProxyType(dict(config))
        self.metadata: Mapping[str, Any] = MappingProxyType(dict(metadata or {}))
        self._tensors = dict(tensors)
        self._load = load
        self._close = close
        self._open = True

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the file."""
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor.

        Raises
        ------
        CheckpointError
            There is none of this name; the message lists names close to it.
        """
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.path} has no tensor {name!r}; {_closest(name, self._tensors)}; "
                "check that this checkpoint is of the family you export"
            )
        return self._tensors[name]

    def read(self, name: str, shape: Iterable[int] | None = None) -> NDArray[Any]:
        """One tensor, in memory of its own.

        Parameters
        ----------
        name
            One of `names`.
        shape
            The shape you rely on, checked before anything is read.

        Returns
        -------
        array
            Of the stored type; GGUF's floating and block types come as float32.

        Raises
        ------
        CheckpointError
            No such tensor, another shape, or a file that has changed or become unreadable since it was opened.
        InvalidArgument
            The checkpoint is closed.
        """
        if not self._open:
            raise InvalidArgument(f"checkpoint {self.path} is closed; read {name!r} before leaving its with block")
        found = self.info(name).shape
        expected = found if shape is None else tuple(shape)
        if found != expected:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has shape {found}, expected {expected}; "
                "its configuration and its weights are not of the same model, or the family is another one"
            )
        try:
            array = self._load(name)
        except OSError as error:
            raise CheckpointError(
                f"{self.info(name).file}: tensor {name!r} cannot be read ({error}); copy or download the file again"
            ) from error
        if array.shape != found:
            raise CheckpointError(
                f"{self.info(name).file}: tensor {name!r} came with shape {array.shape}, the header promised {found}; "
                "the file has changed since it was opened"
            )
        return array

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        if self._open:
            self._open = False
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _closest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names[:_NAMES_COMPARED], _NAMES_SHOWN)
    if close:
        return f"close names are {', '.join(close)}"
    return (
        f"it has {len(names)} tensors: {', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''}"
    )
