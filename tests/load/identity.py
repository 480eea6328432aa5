"""Every response under load equals the same request alone: 2,000 of them, with cancels, stops and 1 % of poison.

``python tests/load/identity.py`` serves a small random language model over HTTP to 32 clients. A request's prompt, length, seed,
temperature, top-k, top-p, min-p, penalties, biases, stop strings and log-probabilities are drawn. One in ten goes away midway,
and one in a hundred has a prompt at which the model's logits are NaN. What is poisoned ends in an error, what goes away has a
beginning of its tokens, and everything else has exactly those that the same request has in a decoder of its own.
"""

import argparse
import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
from served_process import complete, many

from coupled_sampling import Decoder, HostStep
from coupled_sampling.backends import Place, open_model
from coupled_sampling.serving import lanes
from coupled_sampling.serving.http import HttpSettings, make_app
from coupled_sampling.serving.jobs import Job
from standins.serving import on_loopback, served, text_bundle

POISON = 299
"""The first token of a prompt that poisons its request."""
CLIENTS = 32


class Poisoned:
    """The model, whose logits are NaN in every row that began with the poison."""

    def __init__(self, provider):
        self.provider, self.poisoned = provider, set()

    def __getattr__(self, name):
        return getattr(self.provider, name)

    def begin(self, row, request):
        (self.poisoned.add if request.prompt[0] == POISON else self.poisoned.discard)(row)

    def forward(self, tokens, start):
        return self._spoilt(self.provider.forward(tokens, start), range(len(tokens)))

    def forward_rows(self, tokens, start, rows):
        return self._spoilt(self.provider.forward_rows(tokens, start, rows), rows)

    def _spoilt(self, logits, rows):
        bad = [b for b, row in enumerate(rows) if row in self.poisoned]
        if bad:
            logits = logits.copy()
            logits[bad] = np.nan
        return logits


def opened_poisoned(*arguments, **settings):
    """As `open_model`, with the model poisoned."""
    step = open_model(*arguments, **settings)
    spoilt = HostStep(Poisoned(step.provider), step.method, corrections=step.corrections)
    return _Closing(spoilt, step)


class _Closing:
    def __init__(self, step, model):
        self.step, self.model = step, model

    def __enter__(self):
        return self.step

    def __exit__(self, *raised):
        self.model.close()


def drawn(random, i):
    """A request's fields, and after how many events its client goes away."""
    fields = {"seed": int(random.integers(0, 2**32)), "max_tokens": int(random.integers(1, 40))}
    prompt = [int(token) for token in random.integers(4, POISON, int(random.integers(1, 24)))]
    if random.random() < 0.01:
        prompt[0] = POISON
    possible = (
        ("temperature", float(random.choice([0.0, 0.5, 0.9, 1.3]))),
        ("top_k", int(random.integers(1, 60))),
        ("top_p", float(random.uniform(0.3, 1))),
        ("min_p", float(random.uniform(0, 0.3))),
        ("frequency_penalty", float(random.uniform(-1, 1))),
        ("presence_penalty", float(random.uniform(-1, 1))),
        ("logit_bias", {str(random.integers(4, POISON)): float(random.uniform(-5, 5)) for _ in range(3)}),
        ("stop", [str(random.choice(list("aeth nos")))]),
        ("logprobs", 0),
    )
    fields |= {name: value for name, value in possible if random.random() < 0.25}
    gone = int(random.integers(1, 6)) if random.random() < 0.1 else None
    return prompt, fields, gone


def alone(model, prompt, fields):
    """The tokens of the same request in a decoder of its own, by the library."""
    names = ("temperature", "top_k", "top_p", "min_p")
    settings = {name: fields[name] for name in names if name in fields} | {"length": fields["max_tokens"]}
    job = Job(
        tuple(prompt),
        fields["seed"],
        settings=settings,
        stop=tuple(fields.get("stop", ())),
        bias={int(token): value for token, value in fields.get("logit_bias", {}).items()},
        frequency_penalty=fields.get("frequency_penalty", 0.0),
        presence_penalty=fields.get("presence_penalty", 0.0),
    )
    decoding = model.bundle.settings(method="ar", **settings)
    with open_model(model.bundle, Place(threads=1), **decoding.model, step="host") as step:
        decoder = Decoder(step, **replace(decoding, window=8).decoder)
        decoder.add(job.request(decoding, model.bundle, model.tokenizer))
        tokens = []
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                tokens += commit.tokens.tolist()
    return tokens


async def asked(address, requests, name):
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:

        async def ask(i):
            prompt, fields, gone = requests[i]
            return await complete(client, name, prompt, give_up_after=gone, **fields)

        return await many(len(requests), CLIENTS, ask)


def wrong(answer, prompt, gone, wanted):
    """What is wrong with an answer, in words; None where nothing is."""
    if prompt[0] == POISON:
        return None if answer.error and not answer.tokens else f"was poisoned and came back as {answer}"
    if answer.error or answer.status != 200:
        return f"ended in an error: {answer}"
    if gone and answer.finish == "gone":
        return None if answer.tokens == wanted[: len(answer.tokens)] else f"began with {answer.tokens}, not {wanted}"
    return None if answer.tokens == wanted else f"has {answer.tokens}, alone {wanted}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    requests = [drawn(random, i) for i in range(given.requests)]
    lanes.open_model = opened_poisoned
    with (
        tempfile.TemporaryDirectory() as folder,
        served(text_bundle(Path(folder)), rows=6, step="host", most_waiting=CLIENTS, place=Place(threads=1)) as (
            model,
        ),
        on_loopback(make_app([model], HttpSettings())) as address,
    ):
        answers = asyncio.run(asked(address, requests, model.name))
        left = sum(one.running + one.waiting for one in asyncio.run(model.source.statistics()).values())
        counts = {"poisoned": 0, "gone": 0, "whole": 0}
        for i, (answer, (prompt, fields, gone)) in enumerate(zip(answers, requests, strict=True)):
            wanted = [] if prompt[0] == POISON else alone(model, prompt, fields)
            trouble = wrong(answer, prompt, gone, wanted)
            if trouble:
                raise SystemExit(f"request {i}, {prompt}, {fields}: {trouble}")
            counts["poisoned" if prompt[0] == POISON else "gone" if answer.finish == "gone" else "whole"] += 1
    if left:
        raise SystemExit(f"{left} sequences are still under way")
    print(
        f"{given.requests} requests of {CLIENTS} clients: {counts['whole']} have the tokens they have alone, "
        f"{counts['gone']} went away with a beginning of them, {counts['poisoned']} were poisoned and ended alone"
    )


if __name__ == "__main__":
    main()
