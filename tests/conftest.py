"""The long profile: every property test of ours tries many more examples, new ones in every run."""

from __future__ import annotations

import pytest

MORE = 12
"""Times as many examples as a test's own settings ask for."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--coupled-sampling-profile", default=None) != "nightly":
        return
    from hypothesis import settings

    # A parametrised test is many items with one function: each function once.
    functions = {id(function): function for item in items if (function := getattr(item, "function", None)) is not None}
    for function in functions.values():
        own = getattr(function, "_hypothesis_internal_use_settings", None)
        if own is not None:
            # Hypothesis has no public way to change the settings of a decorated test.
            function._hypothesis_internal_use_settings = settings(
                own, max_examples=MORE * own.max_examples, derandomize=False, print_blob=True
            )
