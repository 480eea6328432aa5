"""The official ``openai`` client, unchanged: what it sends is understood, and what it gets is what it knows."""

import asyncio
import json
import time
from typing import Literal

import pytest
from pydantic import BaseModel

from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.served import ServedModel
from standins.serving import on_loopback
from standins.text_server import NAME, text_server
from standins.tokenizers_of_text import text_at_once

openai = pytest.importorskip("openai", reason="needs the extra [dev]")

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with text_server(tmp_path_factory.mktemp("text")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def awaited(server, work):
    """The outcome of ``work(client)``, a coroutine of the asynchronous client."""

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
            return await work(found)

    return asyncio.run(run())


def test_completions_whole_and_streamed_by_both_clients(server, client):
    prompt = server.tokens("the cat")
    wanted = [text_at_once(server.inner, made, (), prompt)[0] for made in server.alone([prompt] * 2, 3, length=20)]
    fields = {"model": NAME, "prompt": "the cat", "seed": 3, "max_tokens": 20, "n": 2}
    whole = client.completions.create(**fields, logprobs=0, extra_body={"acceptance": True})
    assert [choice.text for choice in whole.choices] == wanted
    assert len(whole.choices[0].logprobs.token_logprobs) == 20
    assert whole.choices[0].acceptance["tokens"] == 20
    assert whole.usage.total_tokens == len(prompt) + 40

    async def told(other):
        texts = ["", ""]
        async for event in await other.completions.create(**fields, stream=True):
            texts[event.choices[0].index] += event.choices[0].text
        return texts

    assert awaited(server, told) == wanted
    texts = ["", ""]
    for event in client.completions.create(**fields, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == wanted


def test_chat_whole_and_streamed_by_both_clients(server, client):
    fields = {"model": NAME, "messages": MESSAGES, "seed": 4, "max_completion_tokens": 20, "logprobs": True}
    whole = client.chat.completions.create(**fields).choices[0]
    prompt = server.tokens("<s>user: hi\nassistant: ")
    assert whole.message.content == text_at_once(server.inner, server.alone([prompt], 4, length=20)[0])[0]
    assert "".join(one.token for one in whole.logprobs.content) == whole.message.content
    assert whole.finish_reason == "length"

    async def told(other):
        events = [event async for event in await other.chat.completions.create(**fields, stream=True)]
        return "".join(event.choices[0].delta.content or "" for event in events), events[-1].choices[0].finish_reason

    assert awaited(server, told) == (whole.message.content, "length")


def test_the_clients_helper_follows_a_stream_to_its_end(client):
    fields = {"model": NAME, "messages": MESSAGES, "seed": 4, "logprobs": True, "extra_body": {"regex": "[a-z]{3,9}"}}
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**fields)
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert (final.choices[0].finish_reason, final.usage) == ("stop", whole.usage)


def test_many_at_once_have_the_texts_they_have_alone(server):
    prompts = [server.tokens(f"{seed} dogs") for seed in range(16)]
    wanted = [
        text_at_once(server.inner, server.alone([prompt], seed, length=16)[0], (), prompt)[0]
        for seed, prompt in enumerate(prompts)
    ]

    async def all_of(other):
        asked = [
            other.completions.create(model=NAME, prompt=f"{seed} dogs", seed=seed, max_tokens=16) for seed in range(16)
        ]
        return [reply.choices[0].text for reply in await asyncio.gather(*asked)]

    assert awaited(server, all_of) == wanted


def test_stop_bias_and_penalties_by_name(server, client):
    cat = server.inner.token_to_id("cat")
    reply = client.completions.create(
        model=NAME,
        prompt="the",
        logit_bias={str(cat): 100},
        frequency_penalty=0.1,
        presence_penalty=0.1,
        temperature=0,
        top_p=0.9,
        stop=["tca"],
        user="me",
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("ca", "stop")


class Cat(BaseModel):
    """What a reply is parsed into."""

    sat: Literal["on", "the", "mat"]
    good: bool


def test_a_reply_is_parsed_into_the_class_it_was_asked_for_by(server, client):
    blanks = {str(token): -100 for text, token in server.inner.get_vocab().items() if set(text) <= set("ĠĊĉč")}
    reply = client.chat.completions.parse(
        model=NAME, messages=MESSAGES, response_format=Cat, logit_bias=blanks, max_tokens=100, seed=2
    )
    assert isinstance(reply.choices[0].message.parsed, Cat)
    assert json.loads(reply.choices[0].message.content)["sat"] in ("on", "the", "mat")


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=999, stream=True)
    assert (wrong.value.param, wrong.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="no alternatives"):
        client.completions.create(model=NAME, prompt="x", logprobs=5)
    assert NAME in [model.id for model in client.models.list()]


def test_a_stream_that_is_left_frees_its_rows(server):
    model = server.models[0]

    async def figures():
        found = (await model.source.statistics()).values()
        return sum(one.running + one.waiting for one in found), sum(one.finished.get("removed", 0) for one in found)

    async def leave(other):
        _, before = await figures()
        stream = await other.chat.completions.create(model=NAME, messages=MESSAGES, n=8, stream=True)
        await anext(aiter(stream))
        await stream.close()
        until = time.monotonic() + 10
        while (await figures())[0] and time.monotonic() < until:
            await asyncio.sleep(0.002)
        running, after = await figures()
        return running, after - before

    running, removed = awaited(server, leave)
    assert running == 0
    assert removed >= 1


class _Waiting:
    """A source whose jobs never make anything."""

    def __init__(self):
        self.open = 0

    async def submit(self, job):
        return self

    async def __aenter__(self):
        self.open += 1
        return self

    async def __aexit__(self, *raised):
        self.open -= 1

    async def __aiter__(self):
        await asyncio.Event().wait()
        yield


def test_a_stream_that_waits_for_a_row_is_given_up_with_its_client(server):
    """Its response has not begun, so nothing was sent that could fail."""
    source = _Waiting()

    async def leave(address):
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as other:
            asking = asyncio.ensure_future(other.completions.create(model="m", prompt="x", stream=True))
            until = time.monotonic() + 10
            while not source.open and time.monotonic() < until:
                await asyncio.sleep(0.002)
            began = source.open
            asking.cancel()
            while source.open and time.monotonic() < until:
                await asyncio.sleep(0.002)
            return began, source.open

    with on_loopback(make_app([ServedModel("m", server.bundle, source)])) as address:
        assert asyncio.run(leave(address)) == (1, 0)
