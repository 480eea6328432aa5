"""``coupled-sampling verify``: is the law of a method's tokens, on this model and this machine, that of ordinary sampling?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from coupled_sampling.cli.arguments import METHOD_NAMES, add_model, add_output, add_running, add_sampling, names
from coupled_sampling.cli.models import describe_runs
from coupled_sampling.cli.output import say, say_json
from coupled_sampling.cli.progress import token_bars
from coupled_sampling.cli.task import Task, prepare
from coupled_sampling.contracts import Sampling, max_window
from coupled_sampling.drafting import Copy
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.generation import generate
from coupled_sampling.methods import find_method
from coupled_sampling.testing.verification import Verification, verify

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "test that methods are lossless"
DESCRIPTION = """\
Test that methods do not change what a model says. Many short continuations of
one beginning are drawn by ar, one token per pass, and by each method, and their
joint laws are compared. Steps that a graph or kernels decide have a law of their
own, rounded otherwise than the host's: they are compared with themselves, one
token per pass, and their law with the host's. The report says which steps were
tested and what the test could have seen. The exit code is 1 if a difference was
seen, or if none could have been."""
EXAMPLES = """\
  # four methods on fashion
  coupled-sampling verify
  # one of them, by a sharper test
  coupled-sampling verify --methods scd-maximal --samples 5000
  # the steps of the library and those of the bundle's graphs
  coupled-sampling verify --step both
  # on a language model
  coupled-sampling verify FOLDER --prompt "Once upon a time" --window 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``verify``."""
    add_model(parser)
    add = parser.add_argument
    add(
        "--methods",
        type=names,
        default="sjd,scd-maximal,scd-gumbel,scd-match",
        metavar="METHODS",
        help=f"some of {METHOD_NAMES}, separated by commas (default: %(default)s)",
    )
    add("--samples", type=int, default=1500, metavar="N", help="continuations by each (default: %(default)s)")
    add(
        "--positions",
        type=int,
        default=6,
        metavar="N",
        help="tokens per continuation, tested jointly (default: %(default)s)",
    )
    add(
        "--after",
        type=int,
        metavar="N",
        help="tokens that ar makes before continuations begin (default: 0.4 of a sequence)",
    )
    add(
        "--alpha",
        type=float,
        default=1e-3,
        metavar="RATE",
        help="how often a right implementation fails, for all methods together (default: %(default)s)",
    )
    add_output(parser)
    add_sampling(parser)
    add_running(parser, batch_size=16, more_steps=["both: by the library, and what auto is, one after the other"])


def run(arguments: argparse.Namespace) -> int:
    """Verify and print the report; the exit code is 1 if any method failed."""
    _check(arguments)
    if arguments.prompt is not None and "," in arguments.prompt:
        raise InvalidArgument(
            f"prompt is {arguments.prompt!r}, expected one name: verify continues one prompt many times"
        )
    tasks = _tasks(arguments)
    found: list[Verification] = []
    with token_bars(arguments.samples * arguments.positions) as report:
        for task in tasks:
            found += _verify(arguments, task, report, alpha=arguments.alpha / len(tasks))
    _print(found, as_json=arguments.json)
    return 0 if all(one.passed for one in found) else 1


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    """What to verify: one task, or with ``--step both`` one for the host's steps and one for the others."""

    def task(step: str, methods: Sequence[str]) -> Task:
        return prepare(
            argparse.Namespace(**{**vars(arguments), "step": step}), count=arguments.samples, methods=methods
        )

    if arguments.step != "both":
        return [task(arguments.step, arguments.methods)]
    host, others = task("host", arguments.methods), task("auto", arguments.methods)
    elsewhere = [method for method in arguments.methods if others.step_of(method) != "host"]
    if not elsewhere:
        raise InvalidArgument(
            f"step is 'both', but backend {arguments.backend!r} has nothing but the host to decide steps of "
            f"{', '.join(arguments.methods)} of this model; leave step at 'auto'"
        )
    return [host, task("auto", elsewhere)]


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before a bundle is opened."""
    for method in arguments.methods:
        find_method(method)
    for name, least in (("samples", 2), ("positions", 1)):
        if getattr(arguments, name) < least:
            raise InvalidArgument(f"{name} is {getattr(arguments, name)}, expected at least {least}")
    if not 0 < arguments.alpha < 1:
        raise InvalidArgument(f"alpha is {arguments.alpha}, expected a probability between 0 and 1, such as 0.001")
    if arguments.after is not None and arguments.after < 0:
        raise InvalidArgument(f"after is {arguments.after}, expected a number of tokens >= 0")


def _verify(
    arguments: argparse.Namespace, task: Task, progress: Callable[[str, int], object], *, alpha: float
) -> list[Verification]:
    """Make the common beginning, then verify."""
    settings, decoding = task.settings, task.settings.decoding
    after = round(0.4 * decoding.length) if arguments.after is None else arguments.after
    if after + arguments.positions > decoding.length:
        raise InvalidArgument(
            f"after is {after} and positions {arguments.positions}, together more than the {decoding.length} tokens of a sequence"
        )
    prompt = task.prompts[0]
    (sampling,) = decoding.samplings([prompt])
    beginning, drafting = _beginning(task, prompt, after, sampling), decoding.drafting
    if after and isinstance(drafting, Copy):
        # To the decoder the beginning is a prompt, of which nothing is repeated; but its last token was generated, and may be.
        drafting = replace(drafting, fill=beginning[-1])
    return verify(
        task.open_provider,
        beginning,
        list(settings.methods),
        samples=settings.count,
        positions=arguments.positions,
        window=decoding.window,
        branches=decoding.branches or 0,  # windows that are found while it decodes are verified without
        drafting=drafting,
        sampling=sampling,
        seed=settings.seed,
        alpha=alpha,
        make_step=task.make_step,
        progress=progress,
    )


def _beginning(task: Task, prompt: Sequence[int], after: int, sampling: Sampling) -> list[int]:
    """``prompt`` and ``after`` tokens that ar makes from it, with noise that no continuation uses."""
    if after == 0:
        return list(prompt)
    model = task.open_provider()
    made = generate(
        model,
        [prompt],
        length=after,
        method="ar",
        window=min(32, max_window(model)),
        seed=(task.settings.seed - 1) % 2**64,
        sampling=sampling,
    )
    return [*prompt, *made.tokens[0].tolist()]


def _print(found: Sequence[Verification], *, as_json: bool) -> None:
    """Print what was found, and on what it ran."""
    if as_json:
        say_json([_row(one) for one in found])
        return
    say("\n\n".join(one.report() for one in found))
    failed = [f"{one.method}, step {one.step} ({one.verdict})" for one in found if not one.passed]
    say(f"\n{'failed: ' + ', '.join(failed) if failed else 'all methods passed'}")
    for way in dict.fromkeys(one.runs for one in found):
        say(describe_runs({one.method: way for one in found if one.runs == way}))


def _row(one: Verification) -> dict[str, Any]:
    """One verification for JSON."""
    row = {**asdict(one), "verdict": one.verdict, "passed": one.passed, **one.runs.record()}
    del row["runs"]  # its parts stand beside the others
    for test in (row["equivalence"], row["law"]):
        if test is not None:
            test["distance"] = test["distance"]._asdict()
            test["detectable"] = [kind._asdict() for kind in test["detectable"]]
    return row
