"""``coupled-sampling bulk``: many prompts, once, to a folder."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coupled_sampling.cli.arguments import METHOD_NAMES, add_model, add_output, add_running, add_sampling
from coupled_sampling.cli.models import open_asked
from coupled_sampling.cli.output import say, say_json, tell
from coupled_sampling.cli.pictures import require_pictures
from coupled_sampling.cli.settings import run_settings
from coupled_sampling.errors import InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from coupled_sampling.serving.bulk.ray_data import RaySettings
    from coupled_sampling.serving.bulk.running import Tally

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make what a file of many prompts asks for"
DESCRIPTION = """\
Make a sequence for every line of a file, several at a time, and write them to a
folder: tokens and texts as parquet, pictures as PNG, clips as animated WebP. A
run that was stopped or killed goes on where it was when the same command is given
again. A sequence's noise is keyed by its id and the seed, so that the order of the
lines, the number of machines and interruptions change no token."""
EXAMPLES = """\
  # every line such as {"id": "a", "prompt": "shoe"}, with fashion
  coupled-sampling bulk prompts.jsonl out
  # four sequences of each prompt, by a language model
  coupled-sampling bulk prompts.jsonl out FOLDER --samples 4
  # by eight copies of the model on a Ray cluster, each with a GPU of its own
  coupled-sampling bulk prompts.jsonl out --ray --actors 8 --gpus 1"""

_ROWS = 8
"""Sequences decoded together, unless told otherwise; one at a time would be no bulk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``bulk``."""
    add = parser.add_argument
    add("prompts", metavar="PROMPTS", help="file with a JSON object on every line; - reads standard input")
    add("out", metavar="OUT", type=Path, help="folder to write to, or to go on in")
    add_model(parser)
    add(
        "--method",
        default="scd-match",
        metavar="METHOD",
        help=f"how to decode: {METHOD_NAMES}; the tokens of scd-match and ar depend on neither guesses nor the machine "
        "(default: %(default)s)",
    )
    add("--samples", type=int, default=1, metavar="N", help="sequences of each prompt (default: %(default)s)")
    add(
        "--part-rows",
        type=int,
        default=1000,
        metavar="N",
        help="most sequences in a file of the record; one is written at least once a minute (default: %(default)s)",
    )
    add_output(parser)
    _add_ray(parser)
    add_sampling(parser, prompts=False)
    add_running(parser, batch_size=_ROWS)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many machines").add_argument
    add("--ray", action="store_true", help="make them by Ray, with several copies of the model")
    add("--actors", type=int, metavar="N", help="with --ray, copies of the model (default: 1)")
    add("--cpus", type=float, metavar="N", help="with --ray, CPUs that a copy takes (default: 1)")
    add("--gpus", type=float, metavar="N", help="with --ray, GPUs that a copy takes, such as 0.5 (default: 0)")
    add(
        "--address",
        metavar="ADDRESS",
        help="with --ray, the cluster, such as auto or ray://HOST:10001 (default: RAY_ADDRESS, or Ray started here)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what is left to do, and say how fast it was; 1 if a sequence ended in an error."""
    from coupled_sampling.serving.bulk.running import BulkSettings, run_bulk  # nobody else waits for it to be imported
    from coupled_sampling.serving.lanes import LaneSettings

    settings = BulkSettings(arguments.seed, arguments.samples, arguments.part_rows, _ray(arguments))
    opened = functools.partial(open_asked, _model(arguments))
    lanes = LaneSettings(**_lanes(arguments, opened().manifest))
    try:
        with _bars() as (checked, report):
            tally = run_bulk(arguments.prompts, arguments.out, opened, lanes, settings, checked=checked, report=report)
    except KeyboardInterrupt:
        if (arguments.out / "bulk.json").is_file():
            tell(f"what was finished is in {arguments.out}; the same command makes the rest")
        raise
    figures = _figures(tally, arguments.out)
    if arguments.json:
        say_json(figures)
    else:
        before = f", {tally.before} were there already" if tally.before else ""
        errors = f"; {tally.errors} ended in an error, see the column error" if tally.errors else ""
        say(
            f"{tally.made} sequences{before}: {tally.tokens_per_pass:.2f} tokens per pass, {tally.seconds:.2f} s, "
            f"{tally.sequences_per_second:.2f} sequences/s{errors}"
        )
        say(f"wrote {arguments.out}")
    return 1 if tally.errors else 0


def _model(arguments: argparse.Namespace) -> argparse.Namespace:
    """Which model, by a path that other processes on this machine find, too."""
    path = Path(arguments.model)
    from coupled_sampling.bundles.opening import embedded_names

    model = arguments.model if arguments.model in embedded_names() else str(path.absolute())
    return argparse.Namespace(model=model, widen=arguments.widen, max_length=arguments.max_length)


def _lanes(arguments: argparse.Namespace, manifest: Any) -> dict[str, Any]:
    """Fields of `LaneSettings`."""
    from coupled_sampling.serving.bulk.local import PER_ROW

    defaults = {
        name: value
        for name in (
            "window",
            "branches",
            "drafting",
            "guidance",
            "guidance_interval",
            "length",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "corrections",
        )
        if (value := getattr(arguments, name)) is not None
    }
    defaults["method"] = arguments.method
    common = run_settings(arguments, manifest, count=1, methods=(arguments.method,))
    rows = arguments.batch_size
    return {
        "place": common.place,
        "rows": rows,
        "most_waiting": PER_ROW * rows,
        "step": common.step,
        "defaults": defaults,
    }


def _ray(arguments: argparse.Namespace) -> RaySettings | None:
    from coupled_sampling.serving.bulk.ray_data import RaySettings

    given = {name: getattr(arguments, name) for name in ("actors", "cpus", "gpus", "address")}
    given = {name: value for name, value in given.items() if value is not None}
    if not arguments.ray:
        if given:
            raise InvalidArgument(f"{next(iter(given))} is given, which is about Ray; add --ray, or leave it out")
        return None
    return RaySettings(**given)


def _figures(tally: Tally, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "sequences": tally.total,
        "before": tally.before,
        "made": tally.made,
        "errors": tally.errors,
        "tokens": tally.tokens,
        "passes": tally.passes,
        "tokens_per_pass": tally.tokens_per_pass,
        "seconds": tally.seconds,
        "sequences_per_second": tally.sequences_per_second,
    }


@contextlib.contextmanager
def _bars() -> Iterator[tuple[Callable[[int], None], Callable[[Tally], None]]]:
    """A bar of lines that are checked, and one of sequences; none where tqdm is missing, or nobody looks."""
    try:
        tqdm = require_pictures("tqdm").tqdm
    except MissingDependency:
        yield lambda count: None, lambda tally: None
        return
    with contextlib.ExitStack() as stack:
        made = functools.partial(tqdm, file=sys.stderr, disable=None)
        lines = stack.enter_context(made(desc="checking", unit=" lines"))
        shown: list[Any] = []

        def checked(count: int) -> None:
            lines.update(count - lines.n)

        def report(tally: Tally) -> None:
            if not shown:
                lines.close()
                shown.append(stack.enter_context(made(total=tally.total, initial=tally.before, unit=" sequences")))
            (bar,) = shown
            bar.set_postfix_str(f"{tally.tokens_per_pass:.2f} tokens per pass", refresh=False)
            bar.update(tally.before + tally.made - bar.n)

        yield checked, report
