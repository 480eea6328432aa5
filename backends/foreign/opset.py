"""The one thing that is wanted from an ONNX file and that ONNX Runtime does not tell: its operator set."""

from __future__ import annotations

import mmap
from pathlib import Path

from coupled_sampling.bundles.wire import BYTES, INTEGER, read_fields, read_integer
from coupled_sampling.errors import BundleError

__all__ = ["read_opset"]

OPSETS, DOMAIN, VERSION = 8, 1, 2
"""Numbers of fields: ``ModelProto.opset_import``, and those of an ``OperatorSetIdProto``."""


def read_opset(path: Path) -> int:
    """The version of the default operator set that a file asks for; 1 where it asks for none.

    Raises
    ------
    BundleError
        The file is no ONNX.
    """
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number, kind, start, end in read_fields(content, 0, len(content)):
                if (number, kind) != (OPSETS, BYTES):
                    continue
                domain, version = b"", 0
                for part, form, first, last in read_fields(content, start, end):
                    if (part, form) == (DOMAIN, BYTES):
                        domain = bytes(content[first:last])
                    elif (part, form) == (VERSION, INTEGER):
                        version, _ = read_integer(content, first, last)
                if domain in (b"", b"ai.onnx") and version >= 1:
                    return version
    except (OSError, ValueError) as error:  # an empty file cannot be mapped, and what is no message is a ValueError
        raise BundleError(f"{path} cannot be read as ONNX: {error}; download or export the file again") from error
    return 1
