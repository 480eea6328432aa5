"""A pytest plugin with two Hypothesis profiles, for projects that ask for one; it does nothing to the others.

======================== ============================================================================
profile                  settings
======================== ============================================================================
coupled-sampling-ci      the same examples in every run, 100 of them, no deadline
coupled-sampling-nightly new examples in every run, 2000 of them, no deadline, prints how to repeat a failure
======================== ============================================================================

Ask with ``pytest --coupled-sampling-profile ci``, with the environment variable ``COUPLED_SAMPLING_PROFILE`` or with
``coupled_sampling_profile = "ci"`` in pytest's configuration; the first of these that is given counts. Hypothesis is imported
only then. Tests with ``@settings`` of their own keep what they set.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

__all__ = ["register_profiles"]

PROFILES: dict[str, dict[str, Any]] = {
    "ci": {"derandomize": True, "deadline": None, "max_examples": 100, "database": None},
    "nightly": {"derandomize": False, "deadline": None, "max_examples": 2000, "print_blob": True},
}
"""Hypothesis settings by short name."""

OPTION, VARIABLE, INI = "--coupled-sampling-profile", "COUPLED_SAMPLING_PROFILE", "coupled_sampling_profile"


def register_profiles() -> Any:
    """Register both profiles and return ``hypothesis.settings``.

    Raises
    ------
    ImportError
        Hypothesis is not installed.

    Examples
    --------
    >>> from coupled_sampling.testing.plugin import register_profiles
    >>> register_profiles().get_profile("coupled-sampling-ci").derandomize
    True
    """
    from hypothesis import settings

    for name, values in PROFILES.items():
        settings.register_profile(f"coupled-sampling-{name}", **values)
    return settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting."""
    group = parser.getgroup("coupled-sampling")
    group.addoption(
        OPTION, choices=sorted(PROFILES), default=None, help="load a Hypothesis profile of coupled-sampling"
    )
    parser.addini(INI, "load a Hypothesis profile of coupled-sampling: ci or nightly", default="")


def _chosen(config: pytest.Config) -> str | None:
    """The profile that was asked for."""
    asked = [
        (OPTION, config.getoption(OPTION)),
        (VARIABLE, os.environ.get(VARIABLE)),
        (INI, config.getini(INI)),
    ]
    for source, name in asked:
        if name:
            if name not in PROFILES:
                raise pytest.UsageError(f"{source} is {name!r}, expected one of {', '.join(PROFILES)}")
            return str(name)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Load the profile that was asked for, if any."""
    name = _chosen(config)
    if name is None:
        return
    try:
        settings = register_profiles()
    except ImportError as error:
        raise pytest.UsageError(
            f"the profile {name!r} needs the package hypothesis: pip install 'coupled-sampling[testing]'"
        ) from error
    settings.load_profile(f"coupled-sampling-{name}")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which profile is in use, if one was asked for."""
    name = _chosen(config)
    return None if name is None else f"coupled-sampling: hypothesis profile coupled-sampling-{name}"
