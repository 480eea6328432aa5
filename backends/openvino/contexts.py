"""What a mask lets a slot attend to, found by asking it.

OpenVINO's attention over blocks takes no mask: a slot attends to all columns up to its own, or to the last so many of them. A
graph can say either in many ways, so its operators are not what is looked at. The part of it that makes the mask is run for a few
windows, and what comes out is compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.openvino.runtime import DEVICE, Runtime
from coupled_sampling.errors import BundleError

__all__ = ["EVERYTHING", "Contexts"]

EVERYTHING = 0
"""The reach of a mask that lets a slot attend to all columns up to its own."""

_WINDOWS, _WIDTH = 8, 32


class Contexts:
    """Reaches of the masks of one graph.

    Parameters
    ----------
    runtime
        OpenVINO.
    path
        The graph's, for messages.
    model
        The graph.
    columns, max_window
        Of its caches; and the widest window.
    """

    def __init__(self, runtime: Runtime, path: Path, model: Any, columns: int, max_window: int) -> None:
        self._runtime, self._path, self._model, self._columns = runtime, path, model, columns
        self._width = min(_WIDTH, max_window, columns)
        self._found: dict[tuple[str, int], int] = {}

    def reach(self, mask: Any) -> int:
        """How many columns, its own the last, a slot attends to by ``mask`` (B, 1, W, columns); `EVERYTHING` is all of them.

        Raises
        ------
        BundleError
            It attends to others.
        """
        key = mask.get_node().get_friendly_name(), mask.get_index()
        if key not in self._found:  # layers share masks
            self._found[key] = self._ask(mask)
        return self._found[key]

    def _ask(self, mask: Any) -> int:
        if _reads_tokens(mask):
            raise BundleError(
                f"{self._path}: a mask depends on what the tokens are, which OpenVINO's attention over blocks cannot; use the back "
                "end cpu"
            )
        inputs = [
            parameter
            for parameter in self._model.get_parameters()
            if parameter.output(0).get_names() & {"input_ids", "start", "kv_length"}
        ]
        package = self._runtime.package
        compiled = package.Core().compile_model(package.Model([mask], inputs, "mask"), DEVICE)
        names = {tensor.get_any_name() for tensor in compiled.inputs}

        def allowed(start: int, width: int) -> NDArray[np.bool_]:
            """Whether slots of a window may attend to columns: (width, columns)."""
            feeds = {
                "input_ids": np.zeros((1, width), np.int64),
                "start": np.array([start]),
                "kv_length": np.array([self._columns]),
            }
            (found,) = compiled({name: values for name, values in feeds.items() if name in names}).values()
            if found.dtype != np.bool_ or found.shape != (1, 1, width, self._columns):
                raise BundleError(
                    f"{self._path}: a mask is {found.dtype} {found.shape}, expected bool {(1, 1, width, self._columns)}; use the "
                    "back end cpu"
                )
            return np.array(found[0, 0])

        last = self._columns - 1
        own = np.arange(self._columns)
        row = allowed(last, 1)[0]
        reach = EVERYTHING if row.all() else int(row.sum())
        for start in np.linspace(0, self._columns - self._width, _WINDOWS).astype(int).tolist():
            positions = np.arange(start, start + self._width)[:, None]
            expected = (own <= positions) & ((own > positions - reach) | (reach == EVERYTHING))
            if not np.array_equal(allowed(start, self._width), expected):
                raise BundleError(
                    f"{self._path}: a mask lets slots attend to other columns than the last so many up to their own, which "
                    "OpenVINO's attention over blocks cannot; use the back end cpu"
                )
        return reach


def _reads_tokens(mask: Any) -> bool:
    """Whether what a mask says depends on the tokens of a window, and not on their number alone."""
    pending, seen = [mask.get_node()], set()
    while pending:
        node = pending.pop()
        if (name := node.get_friendly_name()) in seen or node.get_type_name() == "ShapeOf":
            continue
        seen.add(name)
        if node.get_type_name() == "Parameter" and "input_ids" in node.output(0).get_names():
            return True
        pending += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return False
