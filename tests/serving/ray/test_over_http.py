"""What a client of the application sees, over HTTP and the proxy of Ray, while replicas die and queues are full."""

import asyncio
import json
import os
import signal
from collections import Counter

import httpx

LIMIT = 240.0


def picture(seed, **more):
    return {"model": "fashion", "prompt": "shoe", "seed": seed, "stream": True, "progress": True, **more}


async def events_of(client, body, begun=None):
    async with client.stream("POST", "/v1/images/generations", json=body) as response:
        assert response.status_code == 200, await response.aread()
        made = []
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                made.append(json.loads(line.removeprefix("data: ")))
                if begun is not None:
                    begun.update([body["seed"]])
        return made


def test_pictures_of_a_killed_replica_are_whole_and_the_same(deployed):
    # A token a pass, so that much is left when the replica dies.
    bodies = [picture(seed, method="ar", window=1, return_token_ids=True, acceptance=True) for seed in range(8)]
    source = deployed.source("fashion")

    async def counts():
        """How many pictures each replica has finished, by its process."""
        reports = await source.reports()
        done = {report["process"]: report["models"]["fashion"]["statistics"].get("ar", {}) for report in reports}
        return {process: ar.get("finished", {}).get("length", 0) for process, ar in done.items()}

    async def kill(client):
        while len(await source.reports()) < 2:
            await asyncio.sleep(0.05)
        alone = await asyncio.gather(*(events_of(client, body) for body in bodies))
        before, begun = await counts(), Counter()
        victim = next(iter(before))
        streams = [asyncio.ensure_future(events_of(client, body, begun)) for body in bodies]
        # Neither replica has more than four rows: where six streams are under way, both have some.
        while sum(count > 4 for count in begun.values()) < 6:
            await asyncio.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        made = await asyncio.gather(*streams)
        elsewhere = {process: done for process, done in (await counts()).items() if process != victim}
        return alone, made, sum(done - before.get(process, 0) for process, done in elsewhere.items())

    async def over_http():
        async with httpx.AsyncClient(base_url=deployed.address, timeout=LIMIT) as client:
            return await kill(client)

    alone, made, elsewhere = asyncio.run(asyncio.wait_for(over_http(), LIMIT))
    assert elsewhere == len(bodies), "a picture was finished before its replica died"
    for whole, broken in zip(alone, made, strict=True):
        assert [event["type"] for event in broken].count("image_generation.completed") == 1
        assert broken[-1]["token_ids"] == whole[-1]["token_ids"]
        assert broken[-1]["b64_json"] == whole[-1]["b64_json"]
        streamed = [token for event in broken[:-1] for token in event["tokens"]]
        assert streamed == broken[-1]["token_ids"]
        assert sum(broken[-1]["acceptance"]["committed_per_pass"]) == 196


def test_a_full_queue_is_429_and_says_when_to_come_back(deployed):
    body = {
        "model": "words",
        "prompt": [70, 71],
        "max_tokens": 200,
        "method": "ar",
        "seed": 1,
        "return_token_ids": True,
    }

    async def overflow():
        async with httpx.AsyncClient(base_url=deployed.address, timeout=LIMIT) as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(8)))

    answers = asyncio.run(asyncio.wait_for(overflow(), LIMIT))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert len(refused) < len(answers)
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["type"] == "overloaded_error"
    texts = {answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200}
    assert len(texts) == 1


def test_what_a_replica_refuses_is_400_before_the_stream_begins(deployed):
    wrong = httpx.post(f"{deployed.address}/v1/images/generations", json=picture(1, method="nonsense"), timeout=60)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    assert "nonsense" in wrong.json()["error"]["message"]
