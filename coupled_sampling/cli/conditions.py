"""The option ``--condition``: vectors that a model looks at beside its tokens, from a file of numpy's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.bundles.array_files import read_array
from coupled_sampling.bundles.json_files import CONDITION
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.errors import BundleError, InvalidArgument

__all__ = ["add_condition", "find_condition"]


def add_condition(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--condition",
        type=Path,
        metavar="FILE",
        help="vectors that the model looks at, such as those of a text's encoder: a floating array (n, size), as numpy.save "
        "writes it; `coupled-sampling inspect` says whether a model takes some (default: none)",
    )


def find_condition(manifest: Manifest, path: Path | None) -> NDArray[Any] | None:
    """The condition in a file, for a model that takes one; None for another.

    Raises
    ------
    InvalidArgument
        The model takes a condition and none is given, or the other way round; or the file cannot be read, or holds no array.
    """
    graph = manifest.condition_graph
    if graph is None:
        if path is not None:
            raise InvalidArgument(f"condition is {str(path)!r}, but the model {manifest.name} takes none; leave it out")
        return None
    wanted = f"a floating array (n, {graph.size}) with up to {graph.length} vectors n"
    if path is None:
        raise InvalidArgument(
            f"condition is missing: the model {manifest.name} looks at {wanted}, and not at its tokens alone; give a file of it to "
            "`coupled-sampling generate --condition`, other commands take none so far"
        )
    try:
        return read_array(path, CONDITION._replace(name=wanted))
    except BundleError as error:
        raise InvalidArgument(f"condition: {error}") from error
