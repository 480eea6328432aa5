"""ONNX graphs with somebody else's nodes, checked by a process that may die of it.

The package onnx checks graphs in native code, and a wrong one can bring that down: the process ends with a signal. So graphs that
were not made here alone are checked by another Python, all of them by one, and its end is a message.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from coupled_sampling.arguments import in_one_line
from coupled_sampling.errors import BundleError
from coupled_sampling.export.graphs.builder import require_onnx

__all__ = ["check_apart"]

_PATIENCE = 300
"""Seconds. A graph of a thousand layers takes two."""

_PROGRAM = """
import sys, onnx
for path in sys.argv[1:]:
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        sys.exit(f"{path} is no valid ONNX graph: {error}")
"""


def check_apart(paths: Sequence[Path]) -> None:
    """Refuse files of which onnx's checker refuses one, or cannot check one alive.

    Raises
    ------
    BundleError
        One is no valid ONNX graph.
    MissingDependency
        ``onnx`` is not installed.
    """
    require_onnx()
    named = ", ".join(path.name for path in paths)
    # A program that has Python inside it may have none to start.
    command = [sys.executable or "python3", "-c", _PROGRAM, *map(str, paths)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{named} cannot be checked in {_PATIENCE} s; export the bundle again") from error
    if done.returncode == 1:
        said = in_one_line(done.stderr.decode("utf-8", "replace"))
        raise BundleError(f"{said}; export the bundle again")
    if done.returncode != 0:
        raise BundleError(
            f"{named}: one of them is no valid ONNX graph: the package onnx ends with {done.returncode} when it checks them; "
            "export the bundle again"
        )
