"""Small models to serve, the application over them, and a real server on the loopback that a test starts and stops."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.served import ServedModel
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import byte_level

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [serve]")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def text_bundle(folder):
    """A random language model of 330 tokens and 256 positions, with a byte-level tokenizer and a chat template."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    return write_text_bundle(folder, byte_level(), config={"max_position_embeddings": 256}, tokenizer_config=settings)


@contextlib.contextmanager
def served(*sources, **settings):
    """`ServedModel`s of bundles, by folder or name of an embedded one; closed at the end. ``settings`` are of `LaneSettings`."""
    with contextlib.ExitStack() as stack:
        models = []
        for source in sources:
            lanes = stack.enter_context(Lanes(lambda source=source: open_bundle(source), LaneSettings(**settings)))
            models.append(ServedModel(lanes.bundle.manifest.name, lanes.bundle, lanes))
        yield models


@contextlib.contextmanager
def on_loopback(app, **config):
    """The address of a server that runs ``app`` in a thread, ``http://127.0.0.1:PORT``; stopped at the end."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", **config))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive(), "the server did not stop"
