"""A route that decodes, beside those of the application: what stands around routes is tested without the routes themselves.

Run as a program it is ``coupled-sampling`` with that route, and with steps that take as long as ``STEP_SECONDS`` says.
"""

import json
import math
import os
import sys
import time
from typing import Any

from fastapi import Request
from pydantic import Field

from coupled_sampling import Decoder
from coupled_sampling.serving import http
from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.http.fields import DecodingFields
from coupled_sampling.serving.http.replies import events, unless_gone
from coupled_sampling.serving.jobs import Job


class Drawing(DecodingFields):
    n: int = Field(1, ge=1, le=100)
    stream: bool = False
    poisoned: bool = False


def drawing_app(models, settings=None):
    """The application with ``POST /v1/drawings``: the tokens of ``n`` pictures, whole or as events."""
    app = make_app(models, settings)
    service = app.state.service

    @app.post("/v1/drawings", response_model=None, responses={200: {"content": {"text/event-stream": {}}}})
    async def draw(asked: Drawing, request: Request) -> Any:
        model = service.find(asked.model)
        bias = dict.fromkeys(range(model.bundle.manifest.vocab_size), -math.inf) if asked.poisoned else {}
        jobs = [
            Job((257,), asked.noise, k, asked.settings, bias=bias, deadline=service.deadline(asked.timeout))
            for k in range(asked.n)
        ]

        async def gathered():
            made = [[] for _ in jobs]
            async with await service.begin(model, jobs) as run:
                async for index, piece in run:
                    if piece.error is not None:
                        raise ApiError(422, piece.error)
                    made[index] += piece.tokens
            return made

        async def told():
            async with await service.begin(model, jobs) as run:
                async for _, piece in run:
                    yield None, {"tokens": piece.tokens, "reason": piece.reason, "error": piece.error}

        return await events(request, told()) if asked.stream else await unless_gone(request, gathered())

    @app.get("/v1/mistake")
    async def mistake() -> Any:
        raise OSError("no such file: /home/somebody/secret.onnx")

    @app.post("/v1/echo", response_model=None)
    async def echo(request: Request) -> Any:
        body = await request.body()
        return {"bytes": len(body)}

    return app


def tokens_of(events_text):
    """All tokens of a streamed drawing."""
    lines = [line.removeprefix("data: ") for line in events_text.splitlines() if line]
    return [token for line in map(json.loads, lines) for token in line["tokens"]]


if __name__ == "__main__":
    from coupled_sampling.cli import main

    step, seconds = Decoder.step, float(os.environ["STEP_SECONDS"])

    def slowly(decoder):
        time.sleep(seconds)
        return step(decoder)

    Decoder.step, http.make_app = slowly, drawing_app
    sys.exit(main())
