"""``POST /v1/images/generations``: pictures and clips, whole or as a stream in which they grow.

The shape is OpenAI's. Picture k of a request is the sequence k of its seed, so n pictures are those of
``generate([prompt] * n, seed=seed)``, whoever else is served. A clip is one picture that moves.

| event of a stream | when | data beyond OpenAI's |
|---|---|---|
| ``image_generation.tokens`` | with every commit, where ``progress`` asks for it | ``tokens``, ``first``, ``passes`` |
| ``image_generation.partial_image`` | as rows are committed, ``partial_images`` times | ``rows`` |
| the same of a clip | as frames are final, ``partial_images`` times | ``frame`` |
| ``image_generation.completed`` | a picture is done | ``token_ids``, ``acceptance`` where asked for |

Every event has the ``index`` of its picture. `coupled_sampling.serving.http.painting` says what is final of a partial one.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from coupled_sampling.animations import FPS
from coupled_sampling.arguments import is_whole
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.http.errors import ApiError, naming
from coupled_sampling.serving.http.fields import Acceptance, DecodingFields
from coupled_sampling.serving.http.painting import Painter, painter_of
from coupled_sampling.serving.http.replies import Event, events, unless_gone
from coupled_sampling.serving.http.service import Run, Service
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.served import ServedModel

__all__ = ["ImageRequest", "image_routes"]

_NUMBERS = re.compile(r"\s*[0-9]{1,18}(\s*,\s*[0-9]{1,18})*\s*")

_LONGEST = 32_000
"""Characters of a prompt; OpenAI's."""

_PARTIAL_IMAGES = 3
"""As many as OpenAI sends. A model with more rows of tokens, or frames, sends up to one for each."""


def _checked_prompt(value: object) -> object:
    """A text or tokens; the validator of a union would name its branches to the client."""
    text = isinstance(value, str) and 0 < len(value) <= _LONGEST
    if text or (isinstance(value, list) and value and all(map(is_whole, value))):
        return value
    raise PydanticCustomError(
        "prompt",
        "expected a name, or numbers of tokens as a text or a list; neither empty, nor a text of more than 32000 characters",
    )


class ImageRequest(DecodingFields):
    """What is asked of ``/v1/images/generations``.

    Fields of OpenAI's that would change a picture there and cannot here are taken at the values that change nothing.
    """

    model: str | None = Field(  # type: ignore[assignment]  # optional in OpenAI's API, unlike that of texts
        None, description="The name of a model; may be left out where one model makes pictures."
    )
    prompt: Annotated[str | list[int], BeforeValidator(_checked_prompt)] = Field(
        description='A name that the model knows ("shoe"), numbers of tokens ("257" or [257]), or a text if it reads text.'
    )
    n: int | None = Field(1, ge=1, le=1024, description="How many pictures; the server may allow fewer.")
    size: str | None = Field(None, max_length=40, description='"auto", or the WIDTHxHEIGHT that the model has.')
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json; there are no addresses.")
    output_format: Literal["png", "jpeg", "webp", "gif"] | None = Field(
        None,
        description="PNG and WebP keep every pixel, and move where the model makes clips. JPEG is for pictures, GIF for clips.",
    )
    fps: int | None = Field(None, ge=1, le=60, description=f"Frames of a clip in a second; {FPS:g} if not given.")
    output_compression: Literal[100] | None = None
    quality: Literal["auto", "standard"] | None = None
    style: Literal["natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = Field(None, description="Send events while the pictures grow.")
    partial_images: int | None = Field(None, ge=0, le=4096, description="How many partial pictures to send.")
    progress: bool = Field(False, description="Send an event with every commit. With stream.")
    return_token_ids: bool = Field(False, description="Tell the tokens of each picture.")

    def check(self, painter: Painter) -> None:
        """Refuse what the model cannot do.

        Raises
        ------
        ApiError, InvalidArgument
            It cannot.
        """
        if self.response_format == "url":
            raise ApiError(
                400,
                "response_format is 'url', but pictures are not kept here; ask for 'b64_json'",
                param="response_format",
            )
        if self.size not in (None, "auto", painter.size):
            raise ApiError(
                400,
                f"size is {self.size!r}, but this model makes {painter.noun}s of {painter.size}; ask for that, or 'auto'",
                param="size",
            )
        for name in ("partial_images", "progress"):
            if getattr(self, name) and not self.stream:
                raise ApiError(400, f"{name} is about a stream; give stream: true, or leave it out", param=name)
        if self.partial_images:
            most = max(_PARTIAL_IMAGES, painter.count)
            if self.partial_images > most:
                raise ApiError(
                    400,
                    f"partial_images is {self.partial_images}, expected at most {most}: the {painter.noun} has "
                    f"{painter.count} {painter.part_noun}",
                    param="partial_images",
                )


@dataclass
class _Picture:
    """One picture, or clip, while it grows."""

    noun: str
    index: int
    thresholds: list[int]
    """After how many parts the partial pictures come that are still to be sent."""
    tokens: list[int] = field(default_factory=list)
    passes: int = 0
    partials: int = 0
    last: Piece | None = None

    def take(self, piece: Piece) -> None:
        """Add what was committed.

        Raises
        ------
        ApiError
            It ended before it was whole.
        """
        self.tokens += piece.tokens
        self.passes += 1
        if piece.reason is None:
            return
        if piece.reason != "length":
            why = piece.error or f"it ended after {len(self.tokens)} tokens"
            raise ApiError(422, f"{self.noun} {self.index} could not be made: {why}")
        # A pass that only read a part of the prompt committed nothing.
        self.passes, self.last = len(piece.committed_per_pass) or self.passes, piece


def image_routes(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/images/generations")
    async def generations(asked: ImageRequest, request: Request) -> Response:
        """Make pictures."""
        model = _found(service, asked.model)
        with naming(ImageRequest.model_fields):
            painter = painter_of(model, asked.output_format, asked.fps)
        asking = _Asking(service, model, asked, painter)
        await asking.painter.open()
        if asked.stream:
            return await events(request, asking.streamed())
        return JSONResponse(await unless_gone(request, asking.gathered()))

    return routes


def _found(service: Service, name: str | None) -> ServedModel:
    """The model called so; the only one that makes pictures, if no name is given."""
    if name is not None:
        return service.find(name)
    able = [model for model in service.models.values() if model.makes_pictures]
    if len(able) == 1:
        return able[0]
    expected = f"one of {', '.join(model.name for model in able)}" if able else "but none here makes pictures"
    raise ApiError(400, f"model is missing, expected {expected}", param="model")


def _tokens(model: ServedModel, prompt: str | list[int]) -> tuple[int, ...]:
    """The tokens of a prompt: names come first, and digits are a text for a model that reads text."""
    if isinstance(prompt, list):
        return tuple(prompt)
    try:
        return model.prompt_of_name(prompt.strip())
    except InvalidArgument as error:
        if model.tokenizer is not None:
            return model.prompt_of_text(prompt)
        if _NUMBERS.fullmatch(prompt):
            return tuple(int(number) for number in prompt.split(","))
        raise ApiError(400, f"{error}; or numbers of tokens, such as 1,2", param="prompt") from error


class _Asking:
    """A request for pictures, under way."""

    def __init__(self, service: Service, model: ServedModel, asked: ImageRequest, painter: Painter) -> None:
        service.check_count(asked.n or 1)
        asked.check(painter)
        self._service, self._model, self._asked, self.painter = service, model, asked, painter
        self._prompt, self._seed = _tokens(model, asked.prompt), asked.noise
        painter.prompt = self._prompt
        held = model.bundle.manifest.window_graph.max_length
        if len(self._prompt) > held:  # every job would check all of them, while other clients wait
            raise ApiError(
                400,
                f"prompt has {len(self._prompt)} tokens, the model {model.name} holds {held}; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
        thresholds = painter.thresholds(asked.partial_images or 0)
        self._pictures = [_Picture(painter.noun, index, list(thresholds)) for index in range(asked.n or 1)]

    async def _begun(self) -> Run:
        asked, deadline = self._asked, self._service.deadline(self._asked.timeout)
        with naming(ImageRequest.model_fields, deadline="timeout"):
            jobs = [
                Job(self._prompt, self._seed, picture.index, asked.settings, deadline=deadline)
                for picture in self._pictures
            ]
            return await self._service.begin(self._model, jobs)

    async def gathered(self) -> dict[str, Any]:
        """The whole response."""
        async with await self._begun() as run:
            async for index, piece in run:
                self._pictures[index].take(piece)
        data = [{"b64_json": await self.painter.whole(one.tokens), **self._details(one)} for one in self._pictures]
        return {
            "created": int(time.time()),
            "data": data,
            "background": "opaque",
            **self.painter.told,
            "usage": self._usage(self._pictures),
        }

    async def streamed(self) -> AsyncGenerator[Event, None]:
        """The events."""
        async with await self._begun() as run:
            async for index, piece in run:
                picture = self._pictures[index]
                first = len(picture.tokens)
                picture.take(piece)
                if self._asked.progress:
                    more = {"tokens": list(piece.tokens), "first": first, "passes": picture.passes}
                    yield self._event("tokens", picture, more)
                for partial in await self.painter.partials(picture.tokens, self._due(picture)):
                    more = {**self._describing(), "partial_image_index": picture.partials, **partial}
                    picture.partials += 1
                    yield self._event("partial_image", picture, more)
                if picture.last is not None:
                    more = {"b64_json": await self.painter.whole(picture.tokens), "usage": self._usage([picture])}
                    yield self._event("completed", picture, {**more, **self._describing(), **self._details(picture)})

    def _due(self, picture: _Picture) -> list[int]:
        """Thresholds of the partial pictures that can be made now. One pass may decide several parts: each has its own."""
        if not picture.thresholds:
            return []
        ready = self.painter.ready(len(picture.tokens))
        due = [threshold for threshold in picture.thresholds if threshold <= ready]
        del picture.thresholds[: len(due)]
        return due

    @staticmethod
    def _event(kind: str, picture: _Picture, more: dict[str, Any]) -> Event:
        name = f"image_generation.{kind}"
        return name, {"type": name, "index": picture.index, **more}

    def _describing(self) -> dict[str, Any]:
        """What OpenAI's events say of a picture."""
        return {
            "created_at": int(time.time()),
            "background": "opaque",
            "quality": "auto",
            **self.painter.told,
        }

    def _details(self, picture: _Picture) -> dict[str, Any]:
        """What is told of a finished picture where it is asked for."""
        details: dict[str, Any] = {}
        if self._asked.return_token_ids:
            details["token_ids"] = picture.tokens
        if self._asked.acceptance and picture.last is not None:
            details["acceptance"] = Acceptance.of(picture.last).model_dump()
        return details

    def _usage(self, pictures: Sequence[_Picture]) -> dict[str, Any]:
        """The prompt is counted once, as in OpenAI's other routes."""
        read, made = len(self._prompt), sum(len(picture.tokens) for picture in pictures)
        return {
            "input_tokens": read,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": read},
            "output_tokens": made,
            "output_tokens_details": {"image_tokens": made, "text_tokens": 0},
            "total_tokens": read + made,
        }
