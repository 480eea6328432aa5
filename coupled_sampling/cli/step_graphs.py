"""``coupled-sampling step-graphs``: whole steps as graphs, into a bundle that has none."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from coupled_sampling.cli.arguments import add_model, names
from coupled_sampling.cli.output import say
from coupled_sampling.cli.outputs import add_clean, mention_leftovers

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "named_methods", "run"]

SUMMARY = "make a bundle with step graphs of one without"
DESCRIPTION = """\
Make a new bundle that also has step graphs. Each is one graph that runs the
model, accepts drafts and redraws the others, so that any language with an ONNX
runtime can decode. The other commands use them by themselves. Weights are stored
once. A bundle without a graph for windows that are trees gets that, too."""
EXAMPLES = """\
  # for all methods that can be a graph
  coupled-sampling step-graphs FOLDER OUT
  # for one of them
  coupled-sampling step-graphs FOLDER OUT --methods scd-match"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``step-graphs``."""
    add_model(parser, foreign=False)
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="the new bundle's folder")
    add(
        "--methods",
        type=names,
        default="all",
        metavar="METHODS",
        help="methods separated by commas; all is every one that can be a graph (default: %(default)s)",
    )
    add("--force", action="store_true", help="replace a bundle that is there, the model itself, too")
    add_clean(parser)


def run(arguments: argparse.Namespace) -> int:
    """Add step graphs to a bundle, and say which."""
    from coupled_sampling.export.step_bundle import add_step_graphs

    methods = named_methods(arguments.methods)
    mention_leftovers(arguments, arguments.out)
    made = add_step_graphs(arguments.model, arguments.out, methods, force=arguments.force)
    say(f"wrote {made.folder}: step graphs {', '.join(graph.file for graph in made.manifest.step_graphs)}")
    return 0


def named_methods(asked: Sequence[str]) -> tuple[str, ...]:
    """Methods to write step graphs for: those that were ``asked`` for, or all that can be. The exporter refuses others."""
    from coupled_sampling.export.graphs.decision import STEP_METHODS

    return STEP_METHODS if tuple(asked) == ("all",) else tuple(asked)
