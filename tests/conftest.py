"""What a run of the tests shares: the folder of what it compiles, what a pass takes, and the long profile.

In the long profile every property test of ours tries many more examples, new ones in every run, and tests marked ``long`` run:
further cases of what shorter ones show. Of a test marked ``cases(n)`` a shorter run takes n sets of parameters, drawn by the test's
name, so that they are the same in every run; where ALL_CASES is set, as planted bugs have it, it takes all.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import sys
import tempfile
import typing
from collections.abc import Iterator, Sequence

import pytest

ALL_CASES = "COUPLED_SAMPLING_ALL_CASES"
"""Environment variable: no case is left out."""

BUILDS = "COUPLED_SAMPLING_TEST_BUILDS"
"""As `standins.builds.VARIABLE`, which cannot be imported here: a project without the stand-ins may copy this file."""

MORE = 12
"""Times as many examples as a test's own settings ask for."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--coupled-sampling-profile", default=None) != "nightly":
        skipped = pytest.mark.skip(reason="a long test: make test-long runs it")
        left = () if ALL_CASES in os.environ else left_out(items)
        for item in [*left, *(item for item in items if item.get_closest_marker("long"))]:
            item.add_marker(skipped)
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


def left_out(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """What a shorter run leaves out of tests marked ``cases(n)``."""
    tests: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("cases") and not item.get_closest_marker("long"):
            tests.setdefault((item.path.name, getattr(item, "originalname", item.name)), []).append(item)
    for (path, name), cases in tests.items():
        count = min(len(cases), cases[0].get_closest_marker("cases").args[0])  # type: ignore[union-attr]
        kept = set(random.Random(f"{path}::{name}").sample(range(len(cases)), count))
        yield from (case for k, case in enumerate(cases) if k not in kept)


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info < (3, 12):
        # Python 3.11 gathers a Protocol's members anew at every isinstance, a fifth of the time of tests that build many decoders.
        typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)  # type: ignore[attr-defined]
    # Workers, and a pytest that a test starts, inherit the variable and leave the folder alone.
    if BUILDS not in os.environ:
        os.environ[BUILDS] = tempfile.mkdtemp(prefix="coupled-sampling-builds-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(BUILDS), ignore_errors=True))


@pytest.fixture(autouse=True, scope="session")
def _passes_take_a_millisecond() -> Iterator[None]:
    """Whether a network corrects depends on how long a pass takes, which tests may not: the machine runs others beside them."""
    from coupled_sampling.backends import network_choice

    with pytest.MonkeyPatch.context() as patch:
        measured = network_choice._pass_seconds
        patch.setattr(network_choice, "_pass_seconds", functools.wraps(measured)(lambda *_: 1e-3))
        yield


@pytest.fixture(autouse=True, scope="session")
def _sessions_have_one_thread() -> Iterator[None]:
    """Where a test leaves the number to ONNX Runtime: threads that wait for work spin, on cores that other workers need."""
    from coupled_sampling.backends.ort import session

    with pytest.MonkeyPatch.context() as patch:
        options = session.session_options
        patch.setattr(session, "session_options", lambda onnxruntime, threads: options(onnxruntime, threads or 1))
        yield
