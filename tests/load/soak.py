"""Twenty minutes of everything at once; then nothing may have leaked.

``python tests/load/soak.py`` serves `fashion` to clients that read, read slowly, go away, ask for nonsense, and open a
stream that they never read. Memory is flat if the means of the last two quarters are within 2 % of each other; descriptors and
threads have to be back at what they were before, and no row may be taken.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter

import httpx
from served_process import Usage, complete, server

NORMAL, SLOW, FLEETING, WRONG, DEAF = 6, 1, 2, 1, 2


async def clients(address, until, counted):
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:

        async def forever(kind, once):
            draw = random.Random(kind)
            while time.monotonic() < until:
                try:
                    counted[await once(draw)] += 1
                except httpx.TransportError as error:
                    counted[f"{kind}: {type(error).__name__}"] += 1

        async def normal(draw):
            method = draw.choice(["scd-match", "scd-match", "scd-match", "ar"])
            answer = await complete(
                client, "fashion", [draw.randrange(257, 267)], seed=draw.getrandbits(32), method=method
            )
            return "whole" if len(answer.tokens) == 196 else f"normal: {answer.status} {answer.error}"

        async def slow(draw):
            body = {"model": "fashion", "prompt": [257], "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                async for _ in reply.aiter_lines():
                    await asyncio.sleep(0.05)
            return "read slowly"

        async def fleeting(draw):
            await complete(client, "fashion", [257], seed=draw.getrandbits(32), give_up_after=draw.randrange(1, 9))
            return "went away"

        async def wrong(draw):
            await asyncio.sleep(0.1)
            body = draw.choice(
                [{"prompt": []}, {"prompt": [10**9]}, {"prompt": [257], "temperature": -1}, {"prompt": "x"}]
            )
            reply = await client.post("/v1/completions", json={"model": "fashion", **body})
            return "refused" if reply.status_code == 400 else f"wrong: {reply.status_code}"

        kinds = [(normal, NORMAL), (slow, SLOW), (fleeting, FLEETING), (wrong, WRONG)]
        await asyncio.gather(*(forever(f"{kind.__name__} {k}", kind) for kind, n in kinds for k in range(n)))


@contextlib.contextmanager
def deaf(address):
    """Connections that ask for a stream and never read it."""
    body = json.dumps({"model": "fashion", "prompt": [257], "stream": True, "n": 4}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = address.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(DEAF):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(head.encode() + body)
        yield


async def watch(process, until, seen):
    while time.monotonic() < until:
        seen.append(Usage.of(process))
        await asyncio.sleep(1)


def mean(values):
    return sum(values) / len(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    given = parser.parse_args()
    counted, seen = Counter(), []
    with server("fashion", rows=8, threads=1, max_queue=64, log_level="warning") as (address, process):

        async def warm_up():
            for method in ("scd-match", "ar"):
                async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                    await complete(client, "fashion", [257], seed=0, method=method)

        asyncio.run(warm_up())
        before = Usage.of(process)

        async def all_of_it():
            until = time.monotonic() + 60 * given.minutes
            await asyncio.gather(clients(address, until, counted), watch(process, until, seen))

        with deaf(address):
            asyncio.run(all_of_it())
        time.sleep(3)
        after = Usage.of(process)
        metrics = httpx.get(f"{address}/metrics").text
    running = [
        line for line in metrics.splitlines() if "num_requests_running{" in line or "num_requests_waiting{" in line
    ]
    half, quarter = len(seen) // 2, len(seen) // 4
    first, last = (mean([u.megabytes for u in part]) for part in (seen[half:-quarter], seen[-quarter:]))
    print(f"{given.minutes:g} minutes: {dict(counted)}")
    change = 100 * (last / first - 1)
    print(
        f"memory: {before.megabytes:.0f} MB before, {first:.1f} and {last:.1f} MB in the last quarters ({change:+.2f} %)"
    )
    print(
        f"descriptors {before.descriptors} before, {after.descriptors} after; threads {before.threads} and {after.threads}"
    )
    print("\n".join(running))
    wrong = [what for what in counted if ": " in what]
    if wrong or any(not line.endswith(" 0.0") for line in running):
        raise SystemExit(f"not as it should be: {wrong}, {running}")
    if (
        abs(last / first - 1) > 0.02
        or after.descriptors > before.descriptors + 2
        or after.threads > before.threads + 40
    ):
        raise SystemExit("something leaked")


if __name__ == "__main__":
    main()
