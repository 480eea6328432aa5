"""Array libraries that trace: how each makes arrays, and what it does to a function. Nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["TRANSFORMATIONS", "Framework"]

Function = Callable[..., Any]

TRANSFORMATIONS = {
    "jax": ("eager", "jit", "vmap", "jit of vmap"),
    "torch": ("eager", "compile", "vmap"),
    "mlx": ("eager", "compile", "vmap"),
}
"""By framework."""

_MODULES = {"jax": "jax", "torch": "torch", "mlx": "mlx.core"}


class Framework:
    """One library, imported; a test that asks for one that is not installed is skipped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = pytest.importorskip(_MODULES[name], reason="make test-frameworks installs it")

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """Numpy ``values`` as the library's array, of the library's own ``dtype``."""
        if self.name == "jax":
            made = self.library.numpy.asarray(values)
        else:
            made = self.library.from_numpy(values) if self.name == "torch" else self.library.array(values)
        if dtype is None:
            return made
        kind = getattr(self.library.numpy if self.name == "jax" else self.library, dtype)
        return made.to(kind) if self.name == "torch" else made.astype(kind)

    def transformed(self, name: str, function: Function) -> Function:
        """``function`` under one of `TRANSFORMATIONS`."""
        if name == "eager":
            return function
        if self.name == "torch" and name == "compile":
            self.library._dynamo.reset()  # one code object is compiled for many cases
            return self.library.compile(function, fullgraph=True, backend="aot_eager")
        if name == "jit of vmap":
            return self.library.jit(self.library.vmap(function))
        return getattr(self.library, name)(function)
