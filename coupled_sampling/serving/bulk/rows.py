"""A line of the prompts' file, as jobs.

::

    {"id": "a", "prompt": "shoe"}
    {"id": "b", "prompt": [257], "samples": 4, "settings": {"temperature": 0.8}}
    {"prompt": "Once upon a time", "stop": "END", "max_tokens": 50, "seed": 3}
    {"id": "c", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}

A line without an id has its number, from 1. ``samples`` sequences of one line are ``ID/0``, ``ID/1``, ... Every sequence draws with
noise of its own: its key is the seed and, unless the line says another, `sequence_of` its id.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from coupled_sampling.arguments import check_count, check_flag, check_number, checked_tokens, shown
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.serving.jobs import GrammarSource, Job

__all__ = ["FIELDS", "Asked", "RowReader", "number_of", "sequence_of"]

FIELDS = (
    "id",
    "prompt",
    "messages",
    "seed",
    "sequence",
    "samples",
    "settings",
    "max_tokens",
    "stop",
    "logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "grammar",
)
"""What a line may have."""

_LONGEST_ID = 500
_MOST_SAMPLES = 10_000
_GRAMMARS = ("json_schema", "regex", "lark")


def number_of(text: str) -> int:
    """The first 8 bytes of the SHA-256 of ``text`` in UTF-8, as a big-endian number.

    Examples
    --------
    >>> number_of("a") == 0xCA978112CA1BBDCA
    True
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


sequence_of = number_of
"""The sequence number of an id's noise, unless its line says another."""


@dataclass(frozen=True)
class Asked:
    """A sequence that is wanted.

    Parameters
    ----------
    id
        What it is called in the record.
    job
        What is to be done.
    digest
        `number_of` all that was asked but the id: to see, when a run goes on, whether it is still the same.
    """

    id: str
    job: Job
    digest: int


class RowReader:
    """Makes `Asked` of lines.

    Parameters
    ----------
    bundle, tokenizer
        The model, and its tokenizer if it reads text.
    seed, samples
        Of lines that do not say.
    check
        Refuses a job that the model cannot do.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving.bulk.rows import RowReader, sequence_of
    >>> reader = RowReader(open_bundle("fashion"), None, seed=0, samples=1, check=lambda job: None)
    >>> (asked,) = reader.read(1, '{"id": "a", "prompt": "shoe"}')
    >>> asked.job.prompt, asked.job.sequence == sequence_of("a")
    ((263,), True)
    >>> reader.read(7, '{"promt": "shoe"}')
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: line 7: 'promt' is no field, expected some of id, prompt, messages, seed, sequence, \
samples, settings, max_tokens, stop, logprobs, logit_bias, frequency_penalty, presence_penalty, repetition_penalty, grammar
    """

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer | None, *, seed: int, samples: int, check: Callable[[Job], object]
    ) -> None:
        self._manifest, self._tokenizer, self._template = bundle.manifest, tokenizer, bundle.chat_template()
        self._seed, self._samples, self._check = seed, samples, check

    @property
    def unchecked(self) -> RowReader:
        """A reader of lines that this one has found right: it takes less time over each."""
        other = copy.copy(self)
        other._check = lambda job: None
        return other

    def read(self, number: int, line: str) -> list[Asked]:
        """The sequences that line ``number`` asks for.

        Raises
        ------
        InvalidArgument
            It is wrong; the message begins with its number.
        BundleError, MissingDependency, ProviderError
            It needs what is not there, such as a package.
        """
        try:
            return self._sequences(number, _parsed(line))
        except InvalidArgument as error:
            raise InvalidArgument(f"line {number}: {error}") from error
        except CoupledSamplingError as error:
            raise type(error)(f"line {number}: {error}") from error

    def _sequences(self, number: int, row: dict[str, Any]) -> list[Asked]:
        unknown = [name for name in row if name not in FIELDS]
        if unknown:
            raise InvalidArgument(f"{shown(unknown[0])} is no field, expected some of {', '.join(FIELDS)}")
        row = {name: value for name, value in row.items() if value is not None}
        name = _id(row.pop("id", number))
        samples = check_count("samples", row.pop("samples", self._samples), 1, _MOST_SAMPLES)
        names = [name] if samples == 1 else [f"{name}/{k}" for k in range(samples)]
        seed, first = row.pop("seed", self._seed), row.pop("sequence", None)
        if first is not None:
            check_count("sequence", first, 0, 2**64 - samples)
        asked = json.dumps([seed, row], sort_keys=True)
        fields = self._fields(row)
        made = []
        for k, own in enumerate(names):
            job = Job(seed=seed, sequence=sequence_of(own) if first is None else first + k, **fields)
            if k == 0:
                self._check(job)  # the others differ in their noise only
            made.append(Asked(own, job, number_of(f"{asked} {job.sequence}")))
        return made

    def _fields(self, row: dict[str, Any]) -> dict[str, Any]:
        """Fields of a `Job` but its noise."""
        settings = _settings(row)
        stop = row.get("stop", ())
        stop = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise InvalidArgument(f"stop is {shown(row['stop'])}, expected a text or a list of texts")
        fields: dict[str, Any] = {
            "prompt": self._prompt(row),
            "settings": settings,
            "stop": tuple(stop),
            "continued": "messages" not in row,
            "logprobs": check_flag("logprobs", row.get("logprobs", False)),
            "bias": _bias(row.get("logit_bias", {})),
            "grammar": _grammar(row.get("grammar")),
        }
        penalties = ("frequency_penalty", "presence_penalty", "repetition_penalty")
        return fields | {name: check_number(name, row[name]) for name in penalties if name in row}

    def _prompt(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        if ("prompt" in row) == ("messages" in row):
            found = "both are given" if "prompt" in row else "none is given"
            raise InvalidArgument(f"of prompt and messages {found}, expected one of them: what to begin with")
        if "messages" in row:
            return self._conversation(row["messages"])
        prompt = row["prompt"]
        if isinstance(prompt, str):
            if self._tokenizer is not None:
                return tuple(self._tokenizer.encode(prompt))
            return self._manifest.find_prompt(prompt)
        if not isinstance(prompt, list):
            raise InvalidArgument(f"prompt is {shown(prompt)}, expected a text, a name or a list of tokens")
        return tuple(checked_tokens("prompt", prompt, self._manifest.vocab_size).tolist())

    def _conversation(self, messages: Any) -> tuple[int, ...]:
        fine = isinstance(messages, list) and messages
        if not fine or not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
            raise InvalidArgument(
                f'messages is {shown(messages)}, expected a list of {{"role": "user", "content": "..."}}'
            )
        if self._template is None or self._tokenizer is None:
            raise InvalidArgument(
                f"messages are given, but the model {self._manifest.name} has no chat template; give a prompt"
            )
        return tuple(self._tokenizer.encode(self._template.render(messages), special_tokens=False))


def _parsed(line: str) -> dict[str, Any]:
    def refuse(word: str) -> NoReturn:
        raise InvalidArgument(f"{word} is no number in JSON, expected a finite one")

    try:
        row = json.loads(line, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        why = getattr(error, "msg", "it is nested too deeply")
        raise InvalidArgument(f"{shown(line.strip())} is no JSON: {why}; expected an object on one line") from error
    if not isinstance(row, dict):
        raise InvalidArgument(f'{shown(row)} is no object, expected one such as {{"id": "a", "prompt": "shoe"}}')
    return row


def _id(value: Any) -> str:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_ID or not _is_unicode(name):
        raise InvalidArgument(f"id is {shown(value)}, expected a text of 1 to {_LONGEST_ID} characters, or an integer")
    return name


def _is_unicode(text: str) -> bool:
    """Whether it has no halves of surrogate pairs, which no file in UTF-8 can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a row, ``max_tokens`` among them."""
    settings = row.get("settings", {})
    if not isinstance(settings, dict):
        raise InvalidArgument(
            f'settings is {shown(settings)}, expected an object of names and values, such as {{"temperature": 0.8}}'
        )
    for name, value in settings.items():
        if isinstance(value, bool | list | dict):
            raise InvalidArgument(f"settings: {name} is {shown(value)}, expected a number or a text")
    if "max_tokens" not in row:
        return dict(settings)
    if settings.get("length") is not None:
        raise InvalidArgument("max_tokens and settings: length are given, which mean the same; leave one of them out")
    return {**settings, "length": check_count("max_tokens", row["max_tokens"])}


def _bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, dict) or not all(token.isascii() and token.isdigit() for token in bias):
        raise InvalidArgument(f'logit_bias is {shown(bias)}, expected tokens and numbers, such as {{"17": -2.5}}')
    return {int(token): float(check_number(f"logit_bias of {token}", value)) for token, value in bias.items()}


def _grammar(grammar: Any) -> GrammarSource | None:
    if grammar is None:
        return None
    if not isinstance(grammar, dict) or len(grammar) != 1 or next(iter(grammar)) not in _GRAMMARS:
        raise InvalidArgument(f"grammar is {shown(grammar)}, expected an object with one of {', '.join(_GRAMMARS)}")
    ((kind, text),) = grammar.items()
    if kind == "json_schema" and isinstance(text, dict):
        text = json.dumps(text)
    if not isinstance(text, str):
        raise InvalidArgument(f"grammar: {kind} is {shown(text)}, expected a text")
    return GrammarSource(kind, text)
