"""``POST /v1/completions``: texts that go on from a prompt, and tokens that go on from tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from coupled_sampling.arguments import is_whole
from coupled_sampling.bundles.text import NumberStream
from coupled_sampling.serving.http.errors import ApiError, naming
from coupled_sampling.serving.http.replies import Event, events, unless_gone
from coupled_sampling.serving.http.service import Service
from coupled_sampling.serving.http.text_fields import TextFields
from coupled_sampling.serving.http.texts import Part, Texts
from coupled_sampling.serving.served import ServedModel

__all__ = ["completion_routes"]

_USUAL = 16
"""Tokens of a text where the request does not say; OpenAI's."""


def _checked_prompt(value: object) -> object:
    """One prompt or several, each a text or numbers of tokens."""
    one = isinstance(value, str) or _are_tokens(value)
    several: list[Any] = value if isinstance(value, list) else []
    if one or (several and (all(isinstance(text, str) for text in several) or all(map(_are_tokens, several)))):
        return value
    raise PydanticCustomError(
        "prompt",
        "expected a text, a list of texts, a list of numbers of tokens, or a list of such lists, none of them empty",
    )


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_whole(token) and 0 <= token < 2**63 for token in value)


class CompletionFields(TextFields):
    """A request for completions."""

    begins_with: ClassVar[str] = "prompt"
    continued: ClassVar[bool] = True

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(_checked_prompt)] = Field(
        description="What to go on from: a text, numbers of tokens, or several of these."
    )
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Most tokens of a text; 16 if nothing is said, and of a picture, all."
    )
    echo: bool | None = Field(False, description="Whether texts begin with their prompt.")
    logprobs: int | None = Field(None, ge=0, le=1000, description="0 tells log-probabilities of the tokens.")
    best_of: int | None = Field(None, ge=1, le=128, description="Only as many as n.")
    suffix: str | None = Field(None, description="Refused: no model here fills in.")

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    def most_tokens(self, model: ServedModel) -> tuple[str, int | None]:
        return "max_tokens", _USUAL if self.max_tokens is None and not model.makes_pictures else self.max_tokens

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """All of them, as a list."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given

    @property
    def prompt_count(self) -> int:
        return len(self.prompts)

    def check(self, model: ServedModel) -> None:
        super().check(model)
        if self.logprobs:
            raise ApiError(
                400,
                f"logprobs is {self.logprobs}, but this server knows no alternatives of a token; 0 tells those of the tokens "
                "themselves",
                param="logprobs",
            )
        if self.wants_logprobs and self.echo:
            raise ApiError(
                400,
                "echo and logprobs are both given, but tokens of a prompt have no log-probabilities here",
                param="echo",
            )
        if self.best_of is not None and self.best_of != self.choices:
            raise ApiError(
                400, f"best_of is {self.best_of}, expected n, {self.choices}: no text is judged here", param="best_of"
            )
        if self.suffix:
            raise ApiError(
                400, "suffix is given, but this server only goes on from a prompt; leave it out", param="suffix"
            )


class _Echoes:
    """What each text begins with, where prompts are echoed."""

    def __init__(self, texts: Texts, fields: CompletionFields, prompts: list[tuple[int, ...]]) -> None:
        self._made = (
            [_as_text(texts.model, *one) for one in zip(fields.prompts, prompts, strict=True)] if fields.echo else []
        )
        self._choices, self._begun = fields.choices, set[int]()

    def before(self, part: Part) -> str:
        """The prompt, with the first part of each text."""
        if not self._made or part.choice in self._begun:
            return ""
        self._begun.add(part.choice)
        return self._made[part.choice // self._choices]


def _as_text(model: ServedModel, given: str | list[int], tokens: tuple[int, ...]) -> str:
    if model.tokenizer is None or not model.writes_text:
        return NumberStream().feed(tokens) + ","
    # A character that its prompt ends within is whole in the text that goes on from it.
    return (given if isinstance(given, str) else model.tokenizer.decode(tokens)).rstrip("\ufffd")


def _choice(texts: Texts, part: Part, before: str) -> dict[str, Any]:
    logprobs = None
    if part.spelled is not None:
        logprobs = {
            "tokens": [one.text for one in part.spelled],
            "token_logprobs": [one.logprob for one in part.spelled],
            "top_logprobs": None,
            "text_offset": [one.begins for one in part.spelled],
        }
    return {
        "index": part.choice,
        "text": before + part.text,
        "logprobs": logprobs,
        "finish_reason": part.finish_reason,
        **texts.more(part),
    }


def completion_routes(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=None)
    async def complete(fields: CompletionFields, request: Request) -> Response:
        """Texts that go on from a prompt, or several; of a model without a tokenizer, tokens as numbers."""
        model = Texts.find_model(service, fields)
        with naming(type(fields).model_fields):
            prompts = await asyncio.to_thread(_tokens, model, fields)
        texts = Texts(service, model, fields, prompts)
        head, echoes = texts.head("text_completion", "cmpl"), _Echoes(texts, fields, prompts)
        if fields.stream:
            return await events(request, _told(texts, head, echoes))
        made = await unless_gone(request, texts.whole())
        return JSONResponse(
            {**head, "choices": [_choice(texts, part, echoes.before(part)) for part in made], "usage": texts.usage}
        )

    return routes


def _tokens(model: ServedModel, fields: CompletionFields) -> list[tuple[int, ...]]:
    return [model.prompt_of_text(one) if isinstance(one, str) else tuple(one) for one in fields.prompts]


async def _told(texts: Texts, head: dict[str, Any], echoes: _Echoes) -> AsyncGenerator[Event, None]:
    usage = {"usage": None} if texts.fields.tells_usage else {}
    async with contextlib.aclosing(texts.parts()) as parts:
        async for part in parts:
            before = echoes.before(part)
            if before or texts.tells(part):
                yield None, {**head, "choices": [_choice(texts, part, before)], **usage}
    if usage:
        yield None, texts.last(head)
    yield None, "[DONE]"
