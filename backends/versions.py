"""Whether an installed package is new enough: the one place where a back end's package is compared with what it needs."""

from __future__ import annotations

import re

from coupled_sampling.errors import MissingDependency

__all__ = ["check_version"]


def check_version(package: str, version: str, oldest: tuple[int, int], older_ones: str, upgrade: str) -> None:
    """Refuse a package that is older than needed.

    Parameters
    ----------
    package, version
        Its name, and what it says of itself. Only major and minor version count.
    oldest
        Major and minor version that will do.
    older_ones
        What is wrong with older ones, as "write caches wrongly".
    upgrade
        The command that installs a newer one.

    Raises
    ------
    MissingDependency
        It is older.

    Examples
    --------
    >>> from coupled_sampling.backends.versions import check_version
    >>> check_version("onnxruntime", "1.31.1", (1, 28), "write caches wrongly", "pip install --upgrade onnxruntime")
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < oldest:
        raise MissingDependency(
            f"{package} is {version}, expected {oldest[0]}.{oldest[1]} or more, older ones {older_ones}: {upgrade}"
        )
