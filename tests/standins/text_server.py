"""A server of a small language model and of the embedded picture model, and what these models make without one."""

import contextlib
from dataclasses import replace
from typing import NamedTuple

import tokenizers

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.serving.http import make_app
from standins.serving import on_loopback, served, text_bundle

NAME = "checkpoint"
"""What the language model is called: the folder it was exported from."""


class TextServer(NamedTuple):
    """Where it listens, what it serves, and how to do without it."""

    address: str
    models: list
    bundle: object
    inner: tokenizers.Tokenizer

    def alone(self, prompts, seed, processors=(), **given):
        """What `generate` makes of ``prompts``, one sequence each, by itself: lists of tokens."""
        settings = self.bundle.settings(**{"method": "scd-match", **given})
        with open_model(self.bundle, Place(threads=1), **settings.model) as model:
            sampling = replace(settings.sampling, processors=processors)
            more = {"seed": seed, "stop": settings.stop, "sampling": sampling, **settings.decoder}
            return [made.tolist() for made in generate(model, prompts, length=settings.length, **more).tokens]

    def tokens(self, text):
        """Of a text, as it stands."""
        return self.inner.encode(text, add_special_tokens=False).ids


@contextlib.contextmanager
def text_server(folder):
    """It runs until the end of the block; ``folder`` is where its model is written."""
    written = text_bundle(folder)
    inner = tokenizers.Tokenizer.from_file(str(written / "tokenizer.json"))
    with served(written, "fashion", rows=8) as models, on_loopback(make_app(models)) as address:
        yield TextServer(address, models, open_bundle(written), inner)
