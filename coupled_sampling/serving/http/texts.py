"""`Texts`: what a request for texts is answered with, piece by piece.

Tokens are not characters, so text comes when no later token can change it (`coupled_sampling.bundles.TextStream`): a stream of
texts is never cut within a character, and never shows the beginning of a stop string.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

from coupled_sampling.bundles.text import NumberStream, TextStream
from coupled_sampling.serving.http.errors import ApiError, naming
from coupled_sampling.serving.http.fields import Acceptance
from coupled_sampling.serving.http.service import Service
from coupled_sampling.serving.http.text_fields import TextFields
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.served import ServedModel

__all__ = ["Part", "Spelled", "Texts"]

_NAMES = {"schema": "response_format", "bias": "logit_bias", "deadline": "timeout"}
"""What fields are called in the library's messages."""


class Spelled(NamedTuple):
    """A token as a part of a text."""

    text: str
    """What it adds to the text: together, these are the text. The name of a special token, which adds nothing."""
    begins: int
    """Characters of the text that are before it."""
    in_bytes: list[int] | None
    """``text`` in UTF-8; None for a special token."""
    logprob: float


class Part(NamedTuple):
    """More of one of the texts."""

    choice: int
    """Which one: its ``index`` in OpenAI's API."""
    text: str
    tokens: tuple[int, ...]
    spelled: tuple[Spelled, ...] | None = None
    """Of ``tokens``, where log-probabilities are told."""
    finish_reason: str | None = None
    """Why it has ended, "stop" or "length"; None while it goes on."""
    acceptance: Acceptance | None = None
    """With the last part."""

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """All parts of one text, as one."""
        text, tokens = "".join(part.text for part in parts), tuple(token for part in parts for token in part.tokens)
        spelled = None if parts[-1].spelled is None else tuple(one for part in parts for one in part.spelled or ())
        return parts[-1]._replace(text=text, tokens=tokens, spelled=spelled)


class _Speller:
    """Which part of a text each token is; without regard to stop strings, since tokens behind the text are told, too."""

    def __init__(self, stream: TextStream | NumberStream, special: Mapping[int, str]) -> None:
        self._stream, self._special, self._offset = stream, special, 0

    def spell(self, piece: Piece) -> tuple[Spelled, ...]:
        made: list[Spelled] = []
        for k, (token, logprob) in enumerate(zip(piece.tokens, piece.logprobs or (), strict=True), 1):
            name, text = self._special.get(token), self._stream.feed([token])
            if piece.reason is not None and k == len(piece.tokens):
                text += self._stream.finish()
            in_bytes = list(text.encode()) if name is None else None
            made.append(Spelled(text if name is None else name, self._offset, in_bytes, logprob))
            self._offset += len(text)
        return tuple(made)


class _Choice:
    """One text while it is made."""

    def __init__(self, index: int, model: ServedModel, fields: TextFields, prompt: Sequence[int]) -> None:
        self._index = index
        after = prompt if fields.continued else ()
        self._stream: TextStream | NumberStream = NumberStream()
        self._speller = _Speller(NumberStream(), {}) if fields.wants_logprobs else None
        if model.tokenizer is not None and model.writes_text:
            self._stream = TextStream(model.tokenizer, fields.stops, after)
            if fields.wants_logprobs:
                self._speller = _Speller(TextStream(model.tokenizer, (), after), model.tokenizer.special_tokens)

    def part(self, piece: Piece) -> Part:
        text, spelled = self._stream.feed(piece.tokens), None if self._speller is None else self._speller.spell(piece)
        if piece.reason is None:
            return Part(self._index, text, piece.tokens, spelled)
        return Part(
            self._index, text + self._stream.finish(), piece.tokens, spelled, piece.reason, Acceptance.of(piece)
        )


class Texts:
    """The texts that one request asks for.

    Parameters
    ----------
    service, model
        Who makes them; of `find_model`.
    fields
        The request.
    prompts
        Its prompts; of each, as many texts are made as it says. Text k of prompt i has the noise of sequence ``i * n + k``.

    Raises
    ------
    ApiError, InvalidArgument
        It cannot work.
    """

    def __init__(
        self, service: Service, model: ServedModel, fields: TextFields, prompts: Sequence[tuple[int, ...]]
    ) -> None:
        self._service, self.model, self.fields = service, model, fields
        self.created = int(time.time())
        self._read, self._made = sum(map(len, prompts)), 0
        bias, grammar, noise = fields.bias(model.bundle.manifest.vocab_size), fields.grammar_source, fields.noise
        each = [prompt for prompt in prompts for _ in range(fields.choices)]
        with self._naming():
            self._jobs = [
                Job(
                    prompt,
                    seed=noise,
                    sequence=index,
                    settings=self._settings(prompt),
                    stop=fields.stops,
                    continued=fields.continued,
                    logprobs=fields.wants_logprobs,
                    bias=bias,
                    frequency_penalty=fields.frequency_penalty or 0,
                    presence_penalty=fields.presence_penalty or 0,
                    repetition_penalty=1 if fields.repetition_penalty is None else fields.repetition_penalty,
                    grammar=grammar,
                    deadline=service.deadline(fields.timeout),
                )
                for index, prompt in enumerate(each)
            ]
            self._choices = [_Choice(index, model, fields, prompt) for index, prompt in enumerate(each)]

    @staticmethod
    def find_model(service: Service, fields: TextFields) -> ServedModel:
        """The model that is asked, once it is known that it can do what ``fields`` say, so far as that needs no tokens.

        Raises
        ------
        ApiError
            It cannot, or there is none.
        """
        model = service.find(fields.model)
        fields.check(model)
        service.check_count(fields.prompt_count * fields.choices)
        return model

    def _settings(self, prompt: tuple[int, ...]) -> dict[str, Any]:
        name, most = self.fields.most_tokens(self.model)
        room = self.model.bundle.manifest.window_graph.max_length + 1 - len(prompt)  # the last token needs no position
        if (1 if most is None else most) > room:
            raise ApiError(
                400,
                f"a prompt of {len(prompt)} tokens leaves room for {max(0, room)} more in the model {self.model.name}, and "
                f"{name} asks for {most or 'at least 1'}; shorten the prompt, or ask for fewer",
                param=name if room > 0 else self.fields.begins_with,
                code="context_length_exceeded",
            )
        return self.fields.settings if most is None else {**self.fields.settings, "length": most}

    def _naming(self) -> contextlib.AbstractContextManager[None]:
        name, _ = self.fields.most_tokens(self.model)
        return naming(type(self.fields).model_fields, length=name, **_NAMES)

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Decode; yields more of one text or another. Whoever leaves early closes it, which frees its rows.

        Raises
        ------
        ApiError
            A text failed while it was made.
        """
        with self._naming():
            run = await self._service.begin(self.model, self._jobs)
        async with run:
            async for index, piece in run:
                if piece.error is not None:
                    raise ApiError(
                        422, f"text {index} failed while it was made: {piece.error}", code="generation_failed"
                    )
                self._made += len(piece.tokens)
                yield self._choices[index].part(piece)

    async def whole(self) -> list[Part]:
        """All of them, each as one part."""
        made: dict[int, list[Part]] = {}
        async with contextlib.aclosing(self.parts()) as parts:
            async for part in parts:
                made.setdefault(part.choice, []).append(part)
        return [Part.joined(made[choice]) for choice in sorted(made)]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens that were read and made so far."""
        return {
            "prompt_tokens": self._read,
            "completion_tokens": self._made,
            "total_tokens": self._read + self._made,
        }

    def head(self, kind: str, prefix: str) -> dict[str, Any]:
        """What a response and each event of a stream begin with; to be made once, for its ``id``."""
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        }

    def more(self, part: Part) -> dict[str, Any]:
        """What a choice has beyond OpenAI's API, where it is asked for."""
        made: dict[str, Any] = {"token_ids": list(part.tokens)} if self.fields.return_token_ids else {}
        if self.fields.acceptance and part.acceptance is not None:
            made["acceptance"] = part.acceptance.model_dump()
        return made

    def tells(self, part: Part) -> bool:
        """Whether a stream has anything to say of ``part``: its text may have to wait for the next one."""
        return bool(part.text or part.finish_reason or part.spelled or self.fields.return_token_ids)

    def last(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """The event at a stream's end that tells the usage."""
        return {**head, "choices": [], "usage": self.usage}
