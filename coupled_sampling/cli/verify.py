"""``coupled-sampling verify``: what its command line means, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from coupled_sampling.cli.job import describe_runs
from coupled_sampling.contracts import LogitsProvider, Runs, Sampling, max_window
from coupled_sampling.drafting import Drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.generation import generate
from coupled_sampling.methods import find_method
from coupled_sampling.testing.verification import MakeStep, Verification, verify

__all__ = ["add_verify_arguments", "check_verify_arguments", "print_verifications", "run_verification"]


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only ``verify`` has."""
    add = parser.add_argument
    add("--methods", default="sjd,scd-maximal,scd-gumbel,scd-match")
    add("--samples", type=int, default=1500, help="continuations per method (default 1500)")
    add("--positions", type=int, default=6, help="tokens per continuation, tested jointly (default 6)")
    add("--after", type=int, help="tokens made by ar before the continuations begin (default: 0.4 of a sequence)")
    add("--alpha", type=float, default=1e-3, help="false-alarm rate of the whole run (default 0.001)")


def check_verify_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before a model is opened."""
    for name in arguments.methods.split(","):
        find_method(name.strip())
    for name, least in (("samples", 2), ("positions", 1)):
        if getattr(arguments, name) < least:
            raise InvalidArgument(f"{name} is {getattr(arguments, name)}, expected at least {least}")
    if not 0 < arguments.alpha < 1:
        raise InvalidArgument(f"alpha is {arguments.alpha}, expected a probability between 0 and 1, such as 0.001")


def starting_point(
    open_model: Callable[[], LogitsProvider], prompt: Sequence[int], after: int, sampling: Sampling, seed: int
) -> list[int]:
    """``prompt`` and ``after`` tokens that AR makes from it, with noise that no continuation uses."""
    if after < 0:
        raise InvalidArgument(f"after is {after}, expected a number of tokens >= 0")
    if after == 0:
        return list(prompt)
    model = open_model()
    made = generate(
        model,
        [prompt],
        length=after,
        method="ar",
        window=min(32, max_window(model)),
        seed=(seed - 1) % 2**64,
        sampling=sampling,
    )
    return [*prompt, *made.tokens[0].tolist()]


def print_verifications(results: Sequence[Verification], ran: Mapping[str, Runs], *, as_json: bool) -> int:
    """Print ``results``, and what ``ran`` by method; the exit code: 1 if any method failed."""
    if as_json:
        rows = [
            {**asdict(one), "verdict": one.verdict, "passed": one.passed, **ran[one.method].record()} for one in results
        ]
        for row in rows:
            row["equivalence"]["distance"] = row["equivalence"]["distance"]._asdict()
            row["equivalence"]["detectable"] = [one._asdict() for one in row["equivalence"]["detectable"]]
        print(json.dumps(rows, indent=2))
    else:
        print("\n\n".join(one.report() for one in results))
        failed = [f"{one.method} ({one.verdict})" for one in results if not one.passed]
        print(f"\n{'failed: ' + ', '.join(failed) if failed else 'all methods passed'}")
        print(describe_runs(ran))
    return 0 if all(one.passed for one in results) else 1


def run_verification(
    arguments: argparse.Namespace,
    open_model: Callable[[], LogitsProvider],
    make_step: MakeStep,
    prompt: Sequence[int],
    *,
    length: int,
    window: int | str,
    drafting: str | Drafting,
    sampling: Sampling,
    progress: Callable[[str, int], object],
) -> list[Verification]:
    """Make the common beginning, then verify."""
    after = round(0.4 * length) if arguments.after is None else arguments.after
    if after + arguments.positions > length:
        raise InvalidArgument(
            f"after is {after} and positions {arguments.positions}, together more than the {length} tokens of a sequence"
        )
    return verify(
        open_model,
        starting_point(open_model, prompt, after, sampling, arguments.seed),
        [name.strip() for name in arguments.methods.split(",")],
        samples=arguments.samples,
        positions=arguments.positions,
        window=window,
        drafting=drafting,
        sampling=sampling,
        seed=arguments.seed,
        alpha=arguments.alpha,
        make_step=make_step,
        progress=progress,
    )
