"""Requests per second and latencies by number of clients, beside the same requests without a server, and beside ``ar``.

``python tests/load/throughput.py`` serves `fashion` with 8 rows and one thread to 1, 8, 32 and 128 clients. "Without a
server" is a `Decoder` of as many rows in a loop, fed with the same requests; a ratio of the two is what the server costs.
"""

import argparse
import asyncio
import json
import os
import platform
import time
from pathlib import Path

import httpx
from served_process import complete, many, quantile, server

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.backends import Place, open_model

ROWS = 8
CLIENTS = 1, 8, 32, 128
PROMPTS = range(257, 267)


def without_a_server(count, method, rows):
    """Seconds of ``count`` requests in a loop that does nothing else."""
    bundle = open_bundle("fashion")
    settings = bundle.settings(method=method)
    with open_model(bundle, Place(threads=1), rows, **settings.model) as model:
        decoder = Decoder(model, **settings.decoder)
        for seed in (-1, *range(count)):
            if seed == 0:
                began = time.perf_counter()
            decoder.add(settings.request((PROMPTS[seed % len(PROMPTS)],), seed=max(seed, 0), sequence=int(seed < 0)))
            while seed < 0 and (decoder.active or decoder.waiting):  # the first one warms it up
                decoder.step()
        while decoder.active or decoder.waiting:
            decoder.step()
        return time.perf_counter() - began


async def with_clients(address, count, clients, method):
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
        await complete(client, "fashion", [257], seed=0, method=method)

        async def ask(i):
            return await complete(client, "fashion", [PROMPTS[i % len(PROMPTS)]], seed=i, method=method)

        began = time.perf_counter()
        answers = await many(count, clients, ask)
        return time.perf_counter() - began, answers


def row(method, clients, seconds, answers, alone):
    wrong = [answer for answer in answers if answer.status != 200 or answer.error or len(answer.tokens) != 196]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(answers)} requests failed, such as {wrong[0]}")
    first, whole = [a.first for a in answers], [a.seconds for a in answers]
    return {
        "method": method,
        "clients": clients,
        "requests": len(answers),
        "requests_per_second": len(answers) / seconds,
        "tokens_per_second": 196 * len(answers) / seconds,
        "first_token_p50": quantile(first, 0.5),
        "first_token_p99": quantile(first, 0.99),
        "end_to_end_p50": quantile(whole, 0.5),
        "end_to_end_p99": quantile(whole, 0.99),
        "without_a_server": alone / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=128, help="for each number of clients")
    parser.add_argument("--json", help="where to write the figures")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {ROWS} rows, one thread")
    print(
        "method        clients  requests/s  tokens/s   first token p50 / p99   end to end p50 / p99   of the speed without a server"
    )
    rows = []
    with server("fashion", rows=ROWS, threads=1, max_queue=256, log_level="warning") as (address, _):
        for method in ("scd-match", "ar"):
            for clients in CLIENTS:
                count = max(clients, given.requests if clients > 1 else given.requests // 4)
                count = count if method != "ar" else max(clients, count // 4)
                alone = without_a_server(count, method, min(clients, ROWS))
                seconds, answers = asyncio.run(with_clients(address, count, clients, method))
                rows.append(row(method, clients, seconds, answers, alone))
                r = rows[-1]
                print(
                    f"{method:13} {clients:7} {r['requests_per_second']:11.2f} {r['tokens_per_second']:9.0f} "
                    f"{r['first_token_p50']:13.3f} / {r['first_token_p99']:.3f} s {r['end_to_end_p50']:13.3f} / "
                    f"{r['end_to_end_p99']:.3f} s {100 * r['without_a_server']:18.0f} %",
                    flush=True,
                )
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
