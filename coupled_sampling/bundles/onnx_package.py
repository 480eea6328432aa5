"""The package ``onnx``: the one place where it is imported.

It reads and writes graphs. Nothing that only runs a bundle needs it, so it is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

from coupled_sampling.errors import MissingDependency

__all__ = ["require_onnx"]


def require_onnx(what: str, extra: str = "export") -> Any:
    """The module ``onnx``.

    Parameters
    ----------
    what
        What needs it, for the message.
    extra
        The extra that installs it.

    Raises
    ------
    MissingDependency
        It is not installed.

    Examples
    --------
    >>> from coupled_sampling.bundles.onnx_package import require_onnx
    >>> require_onnx("reading graphs").__name__
    'onnx'
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingDependency(
            f"{what} needs the package onnx, which is not installed: pip install 'coupled-sampling[{extra}]'"
        ) from error
    return onnx
