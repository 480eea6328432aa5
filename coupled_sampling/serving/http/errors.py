"""Every error in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

| status | what came | type |
|---|---|---|
| 400 | a request that cannot work, told before the response begins | ``invalid_request_error`` |
| 401 | no key, or a wrong one | ``authentication_error`` |
| 404 | no such model or path | ``not_found_error`` |
| 405 | a path that takes another method | ``invalid_request_error`` |
| 408 | a body that did not arrive in time | ``invalid_request_error`` |
| 413 | a body that is too large | ``invalid_request_error`` |
| 422 | the request failed while it was decoded; others were not touched | ``generation_failed`` |
| 429 | the queue is full; ``Retry-After`` says when to come back | ``overloaded_error`` |
| 503 | the model is draining, or has failed; ``Retry-After`` | ``server_error`` |
| 504 | the deadline passed | ``timeout_error`` |

A message names the argument and what was expected, and no path of this machine: those of `InvalidArgument` are about what the
client sent, and what is about the server's own files goes to its log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from coupled_sampling.arguments import shown
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency
from coupled_sampling.serving.errors import DeadlineExceeded, Overloaded, ServingError

__all__ = ["RESPONSES", "ApiError", "add_handlers", "as_api_error", "naming"]

_LOG = logging.getLogger("coupled_sampling.serving")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    422: "generation_failed",
    429: "overloaded_error",
    503: "server_error",
    504: "timeout_error",
}

_LATER = 5
"""Seconds after which to come back, where nothing better is known."""


class _Said(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class _Error(BaseModel):
    error: _Said


_MEANINGS = {
    400: "The request cannot work.",
    401: "No API key, or a wrong one.",
    404: "No such model or path.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "The request failed while it was decoded.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server made a mistake.",
    503: "The model cannot answer now; Retry-After says when to come back.",
    504: "The deadline passed.",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": _Error, "description": meaning} for status, meaning in _MEANINGS.items()
}
"""What any route may answer beside its own responses, for the OpenAPI document."""


class ApiError(Exception):
    """What is answered.

    Parameters
    ----------
    status
        Of HTTP.
    message
        For people.
    param, code
        For programs: which argument, and what is wrong with it.
    retry_after
        Seconds after which to come back.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As JSON, also of an event within a stream."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """As a response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(math.ceil(self.retry_after))}
        if self.status == 504:  # OpenAI's clients heed it; they would ask twice more for what takes too long
            headers["x-should-retry"] = "false"
        return JSONResponse(self.body, self.status, headers=headers)


def as_api_error(error: Exception) -> ApiError:
    """What is answered to an exception of this library; what is nobody's fault but the server's is logged, not told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidArgument):
        return ApiError(400, str(error))
    if isinstance(error, MissingDependency):
        return ApiError(400, f"this server cannot do that: {error}")
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), code="deadline_exceeded")
    _LOG.error("a request could not be served", exc_info=error)
    if isinstance(error, ServingError | BundleError):
        return ApiError(503, "the model cannot answer now; try again later, or ask another server", retry_after=_LATER)
    return ApiError(500, "the server made a mistake; its log says more")


@contextlib.contextmanager
def naming(fields: Container[str], **others: str) -> Iterator[None]:
    """Turn an `InvalidArgument` whose message begins with the name of one of a request's ``fields`` into an error about it.

    Parameters
    ----------
    fields
        Names of the request's fields.
    **others
        The field behind a name that the library has for it, such as ``length="max_tokens"``.
    """
    try:
        yield
    except InvalidArgument as error:
        word = re.match(r"\w+", str(error))
        name = "" if word is None else others.get(word[0], word[0])
        if word is None or name not in fields:
            raise
        raise ApiError(400, name + str(error)[word.end() :], param=name) from error


def _field(path: Sequence[str | int], body: Any) -> str:
    """A field of ``body``, such as ``messages.0.content``.

    Pydantic's ``path`` also has the kinds that a value may be of, such as ``constrained-int``, which are in no body.
    """
    found: list[str] = []
    for part in path:
        has_index = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if has_index or (isinstance(body, dict) and part in body):
            body = body[part]
            found.append(str(part))
    if isinstance(body, dict) and path and path[-1] not in found:  # a field that is missing
        found.append(str(path[-1]))
    return ".".join(found)


def _in_words(where: str, found: Mapping[str, Any]) -> str:
    """What pydantic has ``found`` wrong with the field ``where``."""
    said, usual = found["msg"], "Input should be "
    if found["type"] == "extra_forbidden":
        return f"{where} is no field of this request; leave it out"
    if said.startswith(usual):
        return f"{where} is {shown(found['input'])}, but should be {said.removeprefix(usual)}"
    return f"{where}: {said}"


def add_handlers(app: FastAPI) -> None:
    """Have ``app`` answer every error so."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            where, reason = first["loc"][-1], first.get("ctx", {}).get("error", "it cannot be read")
            return ApiError(400, f"the body is no JSON: {reason}, at character {where}").response
        where = _field(first["loc"][1:], error.body) or "body"
        kind = request.headers.get("content-type", "")
        if where == "body" and first["type"] != "missing" and "json" not in kind:
            return ApiError(400, f"content-type is {kind[:100]!r}, expected application/json").response
        return ApiError(400, _in_words(where, first), param=where).response

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            response = ApiError(error.status_code, f"there is no {request.method} {request.url.path} here").response
            response.headers.update(error.headers or {})  # such as which methods there are
            return response
        return ApiError(error.status_code, str(error.detail)).response

    @app.exception_handler(Exception)
    async def _any(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response

    for kind in (ApiError, InvalidArgument, MissingDependency, ServingError, BundleError):
        app.add_exception_handler(kind, _any)  # a handler of its own: that of Exception is for what nobody expected
