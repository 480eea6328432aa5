"""``POST /v1/chat/completions``: replies in conversations, by the chat template that a model was trained with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from coupled_sampling.arguments import shown
from coupled_sampling.serving.http.errors import ApiError, naming
from coupled_sampling.serving.http.replies import Event, events, unless_gone
from coupled_sampling.serving.http.service import Service
from coupled_sampling.serving.http.text_fields import TextFields
from coupled_sampling.serving.http.texts import Part, Texts
from coupled_sampling.serving.served import ServedModel

__all__ = ["chat_routes"]


def _joined(content: object) -> str:
    """The text of a message."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise PydanticCustomError("content", "expected a text, or a list of parts of type text")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "content",
                "a part has the type {kind}, which is not supported; this server reads text",
                {"kind": shown(kind)},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("content", "a part of type text has no text")
    return "".join(part["text"] for part in parts)


def _none_called(value: object) -> object:
    if value:
        raise PydanticCustomError("tool_calls", "calls of tools are not supported; tell what came of them in a text")
    return value


class TextPart(BaseModel):
    """Text, as a part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation. Fields that hold nothing are taken, so that a reply can be sent back as it came."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart], BeforeValidator(_joined)]
    name: str | None = Field(None, description="For templates that show it.")
    tool_call_id: str | None = Field(None, description="For templates that show it.")
    tool_calls: Annotated[list[Any] | None, BeforeValidator(_none_called)] = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class ChatFields(TextFields):
    """A request for replies."""

    begins_with: ClassVar[str] = "messages"
    continued: ClassVar[bool] = False

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Most tokens of a reply; as many as fit if nothing is said."
    )
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="An older name of max_completion_tokens.")
    logprobs: bool | None = Field(False, description="Whether to tell log-probabilities of the tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Only 0: no alternatives are known.")
    tools: list[Any] | None = Field(None, description="Refused: no tools are called here.")
    tool_choice: Any = Field(None, description='Only "none".')

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    def most_tokens(self, model: ServedModel) -> tuple[str, int | None]:
        if self.max_completion_tokens is None and self.max_tokens is not None:
            return "max_tokens", self.max_tokens
        return "max_completion_tokens", self.max_completion_tokens

    def check(self, model: ServedModel) -> None:
        super().check(model)
        if self.max_tokens not in (None, self.max_completion_tokens) and self.max_completion_tokens is not None:
            raise ApiError(
                400,
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}, which mean the same; "
                "give one of them",
                param="max_tokens",
            )
        if self.top_logprobs:
            raise ApiError(
                400,
                f"top_logprobs is {self.top_logprobs}, but this server knows no alternatives of a token; logprobs tells those of "
                "the tokens themselves",
                param="top_logprobs",
            )
        if self.tools:
            raise ApiError(400, "tools are given, but this server calls none; leave them out", param="tools")
        if self.tool_choice not in (None, "none"):
            raise ApiError(
                400,
                f'tool_choice is {shown(self.tool_choice)}, expected "none": there are no tools here',
                param="tool_choice",
            )

    def conversation(self, model: ServedModel) -> list[dict[str, str]]:
        """The messages as a template takes them."""
        made = [
            message.model_dump(include={"role", "content", "name", "tool_call_id"}, exclude_none=True)
            for message in self.messages
        ]
        knows = model.template is not None and "developer" in model.template.source
        for message in made:
            if message["role"] == "developer" and not knows:  # OpenAI's newer name; most templates know the older one
                message["role"] = "system"
        return made


def _logprobs(part: Part) -> dict[str, Any] | None:
    if part.spelled is None:
        return None
    told = [
        {"token": one.text, "logprob": one.logprob, "bytes": one.in_bytes, "top_logprobs": []} for one in part.spelled
    ]
    return {"content": told, "refusal": None}


def _choice(texts: Texts, part: Part) -> dict[str, Any]:
    return {
        "index": part.choice,
        "message": {"role": "assistant", "content": part.text, "refusal": None},
        "logprobs": _logprobs(part),
        "finish_reason": part.finish_reason,
        **texts.more(part),
    }


def chat_routes(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=None)
    async def reply(fields: ChatFields, request: Request) -> Response:
        """A reply to a conversation, or several."""
        model = Texts.find_model(service, fields)
        with naming(type(fields).model_fields):
            prompt = await asyncio.to_thread(lambda: model.prompt_of_messages(fields.conversation(model)))
        texts = Texts(service, model, fields, [prompt])
        if fields.stream:
            return await events(request, _told(texts, texts.head("chat.completion.chunk", "chatcmpl")))
        made = await unless_gone(request, texts.whole())
        head = texts.head("chat.completion", "chatcmpl")
        return JSONResponse({**head, "choices": [_choice(texts, part) for part in made], "usage": texts.usage})

    return routes


async def _told(texts: Texts, head: dict[str, Any]) -> AsyncGenerator[Event, None]:
    usage = {"usage": None} if texts.fields.tells_usage else {}
    begun = set[int]()

    def event(part: Part, delta: dict[str, str], **more: Any) -> Event:
        choice = {"index": part.choice, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return None, {**head, "choices": [choice], **usage}

    async with contextlib.aclosing(texts.parts()) as parts:
        async for part in parts:
            if part.choice not in begun:
                begun.add(part.choice)
                yield event(part, {"role": "assistant", "content": ""})
            going = part._replace(finish_reason=None, acceptance=None)
            if texts.tells(going):
                yield event(going, {"content": part.text}, logprobs=_logprobs(part), **texts.more(going))
            if part.finish_reason is not None:
                ended = part._replace(tokens=())
                yield event(part, {}, finish_reason=part.finish_reason, **texts.more(ended))
    if usage:
        yield None, texts.last(head)
    yield None, "[DONE]"
