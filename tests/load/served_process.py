"""The real command as a process of its own, and a client that reads what it streams: what the load scripts share."""

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextlib.contextmanager
def server(*models, **options):
    """``coupled-sampling serve`` of ``models`` on a free port; gives its address and process, and stops it at the end."""
    port = free_port()
    command = [sys.executable, "-m", "coupled_sampling", "serve", *map(str, models), "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            if time.monotonic() > until:
                raise SystemExit("the server did not start within a minute")
            time.sleep(0.05)
        yield address, process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        process.kill()


@dataclass
class Answer:
    """What came back for one request."""

    status: int = 200
    tokens: list = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    error: str | None = None
    first: float = 0.0
    seconds: float = 0.0
    retry_after: str | None = None


async def complete(client, model, prompt, *, give_up_after=None, **fields):
    """Stream a completion of token numbers; ``give_up_after`` so many events the client goes away."""
    body = {"model": model, "prompt": list(prompt), "stream": True, "return_token_ids": True, **fields}
    answer, began, events = Answer(), time.perf_counter(), 0
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        answer.status = reply.status_code
        if answer.status != 200:
            answer.error = json.loads(await reply.aread())["error"]["message"]
            answer.retry_after = reply.headers.get("retry-after")
            return answer
        async for line in reply.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                answer.error = event["error"]["message"]
                break
            for choice in event["choices"]:
                answer.first = answer.first or time.perf_counter() - began
                answer.tokens += choice.get("token_ids") or []
                answer.text += choice["text"]
                answer.finish = choice["finish_reason"] or answer.finish
            events += 1
            if events == give_up_after:
                answer.finish = "gone"
                break
    answer.seconds = time.perf_counter() - began
    return answer


async def many(count, clients, ask):
    """``ask(i)`` for i below ``count``, at most ``clients`` at a time; the answers in order."""
    free, answers = asyncio.Semaphore(clients), [None] * count

    async def one(i):
        async with free:
            answers[i] = await ask(i)

    await asyncio.gather(*map(one, range(count)))
    return answers


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    megabytes: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process):
        proc = Path(f"/proc/{process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return cls(
            pages * resource.getpagesize() / 2**20, len([*(proc / "fd").iterdir()]), len([*(proc / "task").iterdir()])
        )
