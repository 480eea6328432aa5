"""A pytest plugin of the runs with a planted bug: what is imported is the copy, and Hypothesis is quick and repeatable."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import Phase, settings

WRONG_COPY = 99
"""Exit status if another copy of the library was imported than the one in the current folder."""

# Shrinking a failure to its smallest example would cost minutes, and nobody reads it.
settings.register_profile("mutants", database=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to test anything but the copy."""
    copy = Path.cwd().resolve()
    for name in ("coupled_sampling", "coupled_sampling.backends", "coupled_sampling.export"):
        found = Path(str(importlib.import_module(name).__file__)).resolve()
        if not found.is_relative_to(copy):
            pytest.exit(f"{name} was imported from {found}, expected a file in {copy}", returncode=WRONG_COPY)
