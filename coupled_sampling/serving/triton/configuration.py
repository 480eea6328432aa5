"""``config.pbtxt``: what Triton is told of a model, as text in the format of Protocol Buffers.

``max_batch_size`` is 0, so that Triton's batchers leave requests alone: the engine batches by itself, and better, since prompts may
differ in length and a sequence joins or leaves the batch at any step. Answers are decoupled, one for each commit.

The last line of a file that is written here is a hash of what is above it. It tells such a file from one that somebody has edited,
which is never replaced.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import hashlib

from coupled_sampling import __version__
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.serving.triton.settings import TritonSettings
from coupled_sampling.serving.triton.tensors import Tensor, inputs_of, outputs_of

__all__ = ["CONFIG", "as_written", "configuration", "sealed"]

CONFIG = "config.pbtxt"
"""The file's name."""

_HEAD = """\
# Written by `coupled-sampling triton`, version {version}. Change it as you like; `--replace` then leaves it alone.
# The engine batches requests by itself, at every step, whatever their lengths: hence no batching by Triton.
"""

_SEAL = "# sha256 of the lines above: "


def configuration(name: str, manifest: Manifest, settings: TritonSettings, bundle: str) -> str:
    """The text of the file.

    Parameters
    ----------
    name
        What clients call the model; that of its folder.
    manifest
        What the model is.
    settings
        How it is served.
    bundle
        Where the bundle is: a folder in that of the version, or an absolute path.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving.triton.configuration import configuration
    >>> from coupled_sampling.serving.triton.settings import TritonSettings
    >>> text = configuration("fashion", open_bundle("fashion").manifest, TritonSettings(), "bundle")
    >>> text.splitlines()[2:5]
    ['name: "fashion"', 'backend: "python"', 'max_batch_size: 0']
    """
    parts = [
        _HEAD.format(version=__version__),
        f'name: {_quoted(name)}\nbackend: "python"\nmax_batch_size: 0\nmodel_transaction_policy {{ decoupled: true }}\n',
        *(_tensor("input", tensor) for tensor in inputs_of(manifest)),
        *(_tensor("output", tensor) for tensor in outputs_of(manifest)),
        _instances(settings.gpus),
        *(_parameter(key, value) for key, value in {"bundle": bundle, **settings.parameters}.items()),
    ]
    return sealed("".join(parts))


def sealed(text: str) -> str:
    """A file's text, with the line that tells whether it was edited; lines of ``text`` end with newlines."""
    return f"{text}{_SEAL}{_digest(text)}\n"


def as_written(text: str) -> bool:
    """Whether a file is as it was sealed, by any version."""
    above, seal, digest = text.rpartition(_SEAL)
    return bool(seal) and digest == f"{_digest(above)}\n"


def _tensor(field: str, tensor: Tensor) -> str:
    kind = "STRING" if tensor.kind == "BYTES" else tensor.kind
    shape = ", ".join(map(str, tensor.shape))
    optional = " optional: true" if field == "input" else ""
    return f"{field} {{ name: {_quoted(tensor.name)} data_type: TYPE_{kind} dims: [ {shape} ]{optional} }}\n"


def _instances(gpus: tuple[int, ...]) -> str:
    if not gpus:
        return "instance_group { count: 1 kind: KIND_CPU }\n"
    return f"instance_group {{ count: 1 kind: KIND_GPU gpus: [ {', '.join(map(str, gpus))} ] }}\n"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}\n"


def _quoted(text: str) -> str:
    """A string of the format: bytes that are no plain sign are in octal, which every reader of it knows."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
