"""``coupled-sampling triton``: a bundle as a model of NVIDIA Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from coupled_sampling.bundles import open_bundle
from coupled_sampling.cli.arguments import METHOD_NAMES, add_output
from coupled_sampling.cli.models import BACKENDS, STEPS
from coupled_sampling.cli.output import say, say_json
from coupled_sampling.errors import InvalidArgument

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "write a model repository that NVIDIA Triton Inference Server loads"
DESCRIPTION = """\
Put a bundle into a model repository of NVIDIA Triton Inference Server. The model
runs in Triton's Python backend, with the library's engine inside: requests are
batched at every step, and tokens are streamed as they are committed.

The Python of Triton's Python backend needs this library; nothing else has to be
installed or built. Other models of the repository are left alone."""
EXAMPLES = """\
  # fashion, on the CPU, for `tritonserver --model-repository=models`
  coupled-sampling triton fashion models
  # a bundle of your own on two GPUs, 32 sequences at once on each
  coupled-sampling triton FOLDER models --gpus 0,1 --rows 32
  # a large bundle that stays where it is, under another name
  coupled-sampling triton FOLDER models --link --name writer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``triton``."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a bundle's folder, or the name of an embedded model")
    add("repository", metavar="REPOSITORY", type=Path, help="folder of the model repository; made if there is none")
    add("--name", metavar="NAME", help="what clients call the model (default: the bundle's name)")
    add("--link", action="store_true", help="refer to the bundle where it is, rather than copy it into the repository")
    add(
        "--replace",
        action="store_true",
        help="replace a model of this name; one that was not written by this command, or was edited, is left alone",
    )
    add_output(parser)
    _add_serving(parser)
    _add_place(parser)


def _add_serving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is served").add_argument
    add("--rows", type=int, metavar="N", help="most sequences decoded together by an engine (default: 8)")
    add("--max-queue", type=int, metavar="N", help="requests that may wait for a row; more are refused (default: 64)")
    add("--lanes", type=int, metavar="N", help="ways to decode that are open at once, each with the model (default: 2)")
    add(
        "--drain",
        type=float,
        metavar="SECONDS",
        help="what requests are given when the model is unloaded (default: 30)",
    )
    add(
        "--method",
        metavar="NAME",
        help=f"how to decode where a request does not say: {METHOD_NAMES} (default: scd-match)",
    )
    add(
        "--window",
        metavar="W",
        help="most tokens in one forward pass; auto finds the fastest while it decodes (default: the bundle's)",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where it runs").add_argument
    add(
        "--gpus",
        metavar="NUMBERS",
        help="GPUs that have the model, separated by commas, one engine each; never run on one (default: none)",
    )
    add(
        "--backend",
        choices=[name for name in BACKENDS if name != "ort"],
        help="what runs the model (default: cuda with --gpus, else cpu)",
    )
    add("--step", choices=STEPS, help="where drafts are accepted and redrawn (default: auto)")
    add("--threads", type=int, metavar="N", help="threads within an operator (default: the runtime's choice)")
    add("--engines", metavar="FOLDER", help="where the server keeps TensorRT's engines (default: beside the bundle)")


def run(arguments: argparse.Namespace) -> int:
    """Write the model, and say where it is."""
    # Late: other commands need none of it.
    from coupled_sampling.serving.triton.repository import write_model
    from coupled_sampling.serving.triton.settings import TritonSettings

    names = {"rows": "rows", "max_queue": "most_waiting", "lanes": "lanes", "drain": "drain"}
    names |= {name: name for name in ("backend", "step", "threads", "engines")}
    given = {field: getattr(arguments, name) for name, field in names.items() if getattr(arguments, name) is not None}
    defaults = {"method": arguments.method, "window": _window(arguments.window)}
    settings = TritonSettings(
        gpus=_gpus(arguments.gpus),
        defaults={name: value for name, value in defaults.items() if value is not None},
        **given,
    )
    bundle = open_bundle(arguments.model)
    folder = write_model(
        bundle,
        arguments.repository,
        settings,
        name=arguments.name,
        link=arguments.link,
        replace=arguments.replace,
    )
    if arguments.json:
        say_json(
            {"model": folder.name, "folder": str(folder), "parameters": settings.parameters, "gpus": settings.gpus}
        )
    else:
        say(f"wrote {folder}; to serve it: tritonserver --model-repository={arguments.repository}")
    return 0


def _window(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise InvalidArgument(f"window is {text!r}, expected a number of tokens or auto")
    return int(text)


def _gpus(text: str | None) -> tuple[int, ...]:
    numbers = [] if text is None else text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise InvalidArgument(f"gpus is {text!r}, expected numbers of GPUs separated by commas, such as 0,1")
    return tuple(map(int, numbers))
