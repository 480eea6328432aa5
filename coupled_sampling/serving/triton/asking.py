"""A request's tensors as a job: `read_asked`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.jobs import GrammarSource, Job
from coupled_sampling.serving.served import ServedModel

__all__ = ["Asked", "read_asked"]

_PROMPTS = ("prompt_tokens", "prompt", "messages")

_SETTINGS = ("method", "window", "branches", "guidance", "guidance_interval", "temperature", "top_k", "top_p", "min_p")

_FIELDS = {"frequency_penalty", "presence_penalty", "repetition_penalty", "sequence", "logprobs"}
"""Inputs that are fields of a job of the same name."""


@dataclass(frozen=True)
class Asked:
    """What a request wants.

    Parameters
    ----------
    job
        What to decode.
    stream
        Whether there is an answer for every commit, or one at the end.
    pixels
        Whether the last answer has the picture.
    """

    job: Job
    stream: bool = True
    pixels: bool = False


def read_asked(tensors: Mapping[str, NDArray[Any]], model: ServedModel) -> Asked:
    """What is asked by tensors, named as in `coupled_sampling.serving.triton.tensors.INPUTS`.

    Raises
    ------
    InvalidArgument
        A value cannot work in any model, or there is not exactly one prompt.
    """
    given = {name: _value(name, tensor) for name, tensor in tensors.items()}
    more: dict[str, Any] = {name: given[name] for name in _FIELDS & set(given)}
    if "generated" in given:
        more["generated"] = tuple(given["generated"])
    if "timeout" in given:
        more["deadline"] = given["timeout"]
    settings = {name: given[name] for name in _SETTINGS if name in given}
    if "max_tokens" in given:
        settings["length"] = given["max_tokens"]
    job = Job(
        _prompt(given, model),
        seed=given["seed"] if "seed" in given else secrets.randbits(63),
        settings=settings,
        stop=tuple(given.get("stop", ())),
        continued="messages" not in given,
        bias=_bias(given),
        grammar=_grammar(given),
        **more,
    )
    return Asked(job, given.get("stream", True), given.get("pixels", False))


def _value(name: str, tensor: NDArray[Any]) -> Any:
    """A tensor as Python's numbers or texts: one, or a list where the input has any number of them."""
    values = np.asarray(tensor).reshape(-1).tolist()
    try:
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is no text: {error}; give it in UTF-8") from error
    return values if name in _LISTS else values[0]


_LISTS = {"prompt_tokens", "stop", "bias_tokens", "bias_values", "generated"}


def _prompt(given: Mapping[str, Any], model: ServedModel) -> tuple[int, ...]:
    found = [name for name in _PROMPTS if name in given]
    if len(found) != 1:
        raise InvalidArgument(
            f"{' and '.join(found) or 'no prompt'} is given, expected exactly one of {', '.join(_PROMPTS)}"
        )
    value = given[found[0]]
    if found[0] == "prompt_tokens":
        return tuple(value)
    if found[0] == "messages":
        return model.prompt_of_messages(_messages(value))
    return model.prompt_of_name(value) if model.tokenizer is None else model.prompt_of_text(value)


def _messages(text: str) -> Sequence[Mapping[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"messages is no JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InvalidArgument(
            f"messages is {shown(found)}, expected a list of objects, such as [{{'role': 'user', 'content': 'Hello'}}]"
        )
    return found


def _bias(given: Mapping[str, Any]) -> Mapping[int, float]:
    tokens, values = given.get("bias_tokens", []), given.get("bias_values", [])
    if len(tokens) != len(values):
        raise InvalidArgument(f"bias_values has {len(values)} numbers for {len(tokens)} bias_tokens, expected as many")
    return dict(zip(tokens, values, strict=True))


def _grammar(given: Mapping[str, Any]) -> GrammarSource | None:
    if "json_schema" in given and "regex" in given:
        raise InvalidArgument("json_schema and regex are given, expected one of them at most")
    if "json_schema" in given:
        return GrammarSource("json_schema", given["json_schema"])
    return GrammarSource("regex", given["regex"]) if "regex" in given else None
