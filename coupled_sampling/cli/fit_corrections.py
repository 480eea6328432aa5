"""``coupled-sampling fit-corrections``: tables that predict laws under changed neighbours, from the model's own samples."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from coupled_sampling.bundles import embedded_names
from coupled_sampling.bundles.correction_writing import check_corrections_place, write_corrections
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.cli.arguments import add_model, add_output, add_place, add_sampling
from coupled_sampling.cli.output import say, say_json, tell
from coupled_sampling.cli.outputs import add_clean, mention_leftovers, same_file
from coupled_sampling.cli.progress import bars
from coupled_sampling.cli.task import Task, prepare
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fitting.fit import FitSettings, fit_corrections
from coupled_sampling.fitting.network import NetworkOptimiser
from coupled_sampling.fitting.work import remove_work

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make a model decode in fewer passes: fit what laws become under changed neighbours"
DESCRIPTION = """\
Decode samples of the model, fit a table to what became of its laws when a token
beside them changed, and put it into the bundle, for methods that accept by match
and for those that accept by rejection. Other commands then use it by themselves.
No law changes, and the model is not trained.

Samples are kept in a working folder until the tables are written. A fit that was
stopped goes on from there when the same command is given again."""
EXAMPLES = """\
  # an embedded model; a copy of it is made, fashion-fitted
  coupled-sampling fit-corrections fashion
  # a bundle of your own, at the temperature it is used at
  coupled-sampling fit-corrections FOLDER --temperature 0.8
  # more samples make better tables
  coupled-sampling fit-corrections FOLDER --samples 520
  # a network as well, which predicts better and pays where a pass is dear
  coupled-sampling fit-corrections FOLDER --network"""

_NETWORK_SAMPLES = 500
"""Samples for a network where nothing is said."""

_WINDOW = 32
"""Slots per pass where nothing is said: wide enough that a table is asked for what wide windows bring up."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fit-corrections``."""
    defaults = FitSettings()
    add_model(parser, foreign=False)
    add = parser.add_argument
    add(
        "--samples",
        type=int,
        metavar="N",
        help="samples to fit to, after up to 40 for a first table "
        f"(default: {defaults.samples}, with --network {_NETWORK_SAMPLES})",
    )
    add(
        "--apart",
        type=int,
        default=defaults.apart,
        metavar="N",
        help="further samples that tell what the tables do (default: %(default)s)",
    )
    add(
        "--loss",
        choices=("tv", "kl"),
        default=defaults.loss,
        help="what to make small: total variation or divergence (default: %(default)s)",
    )
    add(
        "--network",
        action="store_true",
        help="fit a network on top of the table, too; this needs torch, using it does not",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="make a copy of the bundle with the tables (default: the bundle itself; for an embedded model, NAME-fitted)",
    )
    add("--force", action="store_true", help="replace a bundle that is at --out")
    add("--work", type=Path, metavar="FOLDER", help="where samples are kept meanwhile (default: NAME.fitting)")
    add_clean(parser)
    add_output(parser)
    add_sampling(parser, fits=True)
    add_place(parser)
    parser.set_defaults(seed=defaults.seed, widen=False, max_length=None, corrections="none", branches=0)


def run(arguments: argparse.Namespace) -> int:
    """Fit, write the tables, and say what they do."""
    network = NetworkOptimiser() if arguments.network else None
    samples = arguments.samples
    if samples is None:
        samples = FitSettings().samples if network is None else _NETWORK_SAMPLES
    settings = FitSettings(samples, arguments.apart, arguments.loss, arguments.seed, network=network)
    task = prepare(arguments, count=settings.first + settings.samples)
    out = _out(arguments)
    check_corrections_place(task.bundle, copied=out is not None)
    if out is not None:
        mention_leftovers(arguments, out)
        check_replaceable(out, force=arguments.force)
    work = Path(f"{task.bundle.manifest.name}.fitting") if arguments.work is None else arguments.work
    if out is not None and any(same_file(one, out) for one in (work, *work.parents)):
        raise InvalidArgument(f"work is {str(work)!r}, in the folder that the tables go to; name another place")
    decoding = replace(task.decoding, window=_window(task, arguments.window))
    try:
        with bars() as report, task.open_provider() as provider:
            fit = fit_corrections(provider, task.bundle, decoding, task.prompts, work, settings=settings, report=report)
        written = write_corrections(task.bundle, fit.tables, fit.provenance, out=out, force=arguments.force)
    except KeyboardInterrupt:
        tell(f"samples so far are in {work}; give the same command again to go on")
        raise
    remove_work(work)
    if arguments.json:
        say_json(fit.provenance)
        return 0
    what = "tables" if network is None else "tables and a network"
    say(f"wrote {what} for neighbours {', '.join(map(str, fit.tables.lags))} before a token into {written.folder}")
    for use, told in fit.provenance.items():
        say(_line(use, told))
    return 0


def _out(arguments: argparse.Namespace) -> Path | None:
    """Where tables go; None is into the bundle. An installed package is changed by nobody but who installs it."""
    if arguments.out is None and arguments.model in embedded_names():
        return Path(f"{arguments.model}-fitted")
    return None if arguments.out is None else Path(arguments.out)


def _window(task: Task, asked: int | str | None) -> int | str:
    return min(_WINDOW, task.bundle.manifest.window_graph.max_window) if asked is None else asked


def _line(use: str, told: dict[str, Any]) -> str:
    apart = told["apart"]
    rates = ", ".join(f"{rate:.2f} {way}" for way, rate in apart["tokens_per_pass"].items())
    harms = apart["tokens_per_pass"]["fitted"] <= apart["tokens_per_pass"]["none"]
    return (
        f"{use}: {told['method']} commits {rates} tokens per pass; laws are off by {apart['tv'][0]:.3f} without, "
        f"{apart['tv'][1]:.3f} with the table (total variation), on {apart['samples']} samples kept apart"
        + ("; it gains nothing: fit to more samples, or decode with --corrections none" if harms else "")
    )
