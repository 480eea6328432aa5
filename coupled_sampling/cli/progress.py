"""Progress bars on standard error; results alone go to standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from coupled_sampling.cli.pictures import require_pictures
from coupled_sampling.requests import Commit

__all__ = ["bars", "byte_bar", "counting", "token_bars"]


def counting(report: Callable[[str, int], object]) -> Callable[[str, Commit], object]:
    """What tells ``report`` the tokens of each commit."""
    return lambda method, commit: report(method, len(commit.tokens))


@contextlib.contextmanager
def bars(unit: str = "it") -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work in turn; gives ``report(title, count, total)``.

    Raises
    ------
    MissingDependency
        tqdm is not installed.
    """
    tqdm = require_pictures("tqdm").tqdm
    shown: dict[str, Any] = {}

    def report(title: str, count: int, total: int) -> None:
        if title not in shown:
            for bar in shown.values():
                bar.close()
            shown[title] = tqdm(total=total, desc=title, unit=unit, file=sys.stderr, disable=None)
        shown[title].update(count)

    try:
        yield report
    finally:
        for bar in shown.values():
            bar.close()


@contextlib.contextmanager
def token_bars(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of ``total`` tokens for each method in turn; gives ``report(method, count)``. Raises as `bars` does."""
    with bars("token") as report:
        yield lambda method, count: report(method, count, total)


@contextlib.contextmanager
def byte_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One bar of bytes; gives ``report(count, total)``, where a later total may be larger.

    Raises
    ------
    MissingDependency
        tqdm is not installed.
    """
    tqdm = require_pictures("tqdm").tqdm
    with tqdm(unit="B", unit_scale=True, desc=title, file=sys.stderr, disable=None) as bar:

        def report(count: int, total: int) -> None:
            bar.total = max(total, bar.n + count)
            bar.update(count)

        yield report
