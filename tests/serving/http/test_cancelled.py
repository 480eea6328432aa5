"""A response whose task is cancelled, as by a server that stops, lets go of what makes it."""

import asyncio

import anyio
import pytest
from fastapi import Request

from coupled_sampling.serving.http.replies import events

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
@pytest.mark.parametrize("where", ["making", "sending"])
def test_a_cancelled_stream_is_closed(how, where):
    seen = []

    async def respond():
        begun = asyncio.Event()

        async def made():
            try:
                yield None, 1
                if where == "making":
                    begun.set()
                    await asyncio.Event().wait()
                yield None, 2
            finally:
                await asyncio.sleep(0)  # what frees rows may take a moment
                seen.append("closed")

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            if where == "sending" and message["type"] == "http.response.body":
                begun.set()
                await asyncio.Event().wait()

        async def whole():
            response = await events(Request(SCOPE, receive), made())
            await response(SCOPE, receive, send)

        if how == "asyncio":
            task = asyncio.create_task(whole())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(whole)
                await begun.wait()
                group.cancel_scope.cancel()

    asyncio.run(asyncio.wait_for(respond(), 10))
    assert seen == ["closed"]


def test_a_stream_whose_client_goes_before_its_body_begins_is_closed():
    seen = []

    async def respond():
        async def made():
            try:
                yield None, 1
                yield None, 2
            finally:
                seen.append("closed")

        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            gone.set()
            await asyncio.Event().wait()

        kept = made()  # else it would be closed as nobody holds it
        response = await events(Request(SCOPE, receive), kept)
        await response(SCOPE, receive, send)
        return list(seen)

    assert asyncio.run(asyncio.wait_for(respond(), 10)) == ["closed"]
