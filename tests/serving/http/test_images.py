"""Pictures over HTTP, asked for with OpenAI's own client, unchanged."""

import asyncio
import base64
import io
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import PixelDecoder, open_model
from coupled_sampling.bundles import Grid, Layout
from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.http.painting import BLANK, PicturePainter
from coupled_sampling.serving.jobs import Piece
from coupled_sampling.serving.served import ServedModel
from standins.serving import on_loopback, served, text_bundle

openai = pytest.importorskip("openai", reason="needs the official client")

SEED = 11
GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with served("fashion", text_bundle(tmp_path_factory.mktemp("text")), rows=4) as both:
        yield both


@pytest.fixture(scope="module")
def address(models):
    with on_loopback(make_app(models)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def wanted():
    """Tokens of three shoes, by the library alone."""
    bundle = open_bundle("fashion")
    settings = bundle.settings(method="scd-match")
    prompts = [bundle.manifest.find_prompt("shoe")] * 3
    with open_model(bundle, **settings.model) as model:
        made = generate(model, prompts, length=196, seed=SEED, **settings.decoder)
    return made


@pytest.fixture(scope="module")
def pixels(wanted):
    """The same as pictures."""
    return PixelDecoder.open("fashion")(np.stack(wanted.tokens))[..., 0]


def opened(file):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


def test_pictures_are_those_of_the_library_alone(client, wanted, pixels):
    extra = {"seed": SEED, "return_token_ids": True, "acceptance": True}
    made = client.images.generate(model="fashion", prompt="shoe", n=3, size="28x28", extra_body=extra)
    for k, one in enumerate(made.data):
        assert one.token_ids == wanted.tokens[k].tolist()
        assert one.acceptance["committed_per_pass"] == wanted.traces[k].committed_per_step
        np.testing.assert_array_equal(opened(one.b64_json), pixels[k])
    assert (made.size, made.output_format, made.background) == ("28x28", "png", "opaque")
    usage = made.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1, 3 * 196, 3 * 196 + 1)
    assert usage.output_tokens_details.image_tokens == 3 * 196


@pytest.mark.parametrize("prompt", ["Sneaker", " 263", [263]])
def test_a_prompt_is_a_name_or_numbers_of_tokens(address, pixels, prompt):
    """Without a model's name: only one of the two makes pictures."""
    reply = httpx.post(f"{address}/v1/images/generations", json={"prompt": prompt, "seed": SEED}, timeout=60).json()
    np.testing.assert_array_equal(opened(reply["data"][0]["b64_json"]), pixels[0])
    assert set(reply["data"][0]) == {"b64_json"}


def test_without_a_seed_every_picture_is_another(client):
    files = [client.images.generate(prompt="bag", model="fashion").data[0].b64_json for _ in range(2)]
    assert files[0] != files[1]


@pytest.mark.parametrize(("output_format", "most"), [("webp", 0), ("jpeg", 8)])
def test_other_formats(client, pixels, output_format, most):
    """WebP keeps every pixel; JPEG nearly."""
    made = client.images.generate(prompt="shoe", output_format=output_format, extra_body={"seed": SEED})
    file = made.data[0].b64_json
    assert Image.open(io.BytesIO(base64.b64decode(file))).format == output_format.upper()
    found = opened(file)
    found = found if found.ndim == 2 else found[..., 0]
    assert np.abs(found.astype(int) - pixels[0]).max() <= most
    assert made.output_format == output_format


@pytest.mark.parametrize(("count", "rows"), [(1, [7]), (3, [4, 7, 11]), (14, range(1, 15))])
def test_partial_pictures_show_the_committed_rows_and_grey(client, pixels, count, rows):
    """The rows of `fashion` are final from the first partial picture on."""
    partial, last = [], None
    for event in client.images.generate(
        model="fashion", prompt="shoe", stream=True, partial_images=count, extra_body={"seed": SEED}
    ):
        if event.type == "image_generation.partial_image":
            partial.append(event)
        else:
            assert last is None
            last = event
    assert [event.partial_image_index for event in partial] == list(range(count))
    assert [event.rows for event in partial] == list(rows)
    for event in partial:
        found = opened(event.b64_json)
        np.testing.assert_array_equal(found[: 2 * event.rows], pixels[0, : 2 * event.rows])
        assert (found[2 * event.rows :] == BLANK).all()
    assert isinstance(last, openai.types.ImageGenCompletedEvent)
    np.testing.assert_array_equal(opened(last.b64_json), pixels[0])
    assert last.usage.output_tokens == 196


def test_progress_tells_every_commit(client, wanted):
    made, passes, completed = [[], []], [[], []], {}
    extra = {"seed": SEED, "progress": True, "acceptance": True, "return_token_ids": True}
    for event in client.images.generate(model="fashion", prompt="shoe", n=2, stream=True, extra_body=extra):
        if event.type == "image_generation.completed":
            completed[event.index] = event
            continue
        assert event.type == "image_generation.tokens"
        assert event.first == len(made[event.index])
        made[event.index] += event.tokens
        passes[event.index].append(event.passes)
    for k in range(2):
        assert made[k] == wanted.tokens[k].tolist() == completed[k].token_ids
        assert passes[k] == list(range(1, wanted.traces[k].nfe + 1))
        assert completed[k].acceptance["passes"] == wanted.traces[k].nfe


def test_events_have_the_names_that_their_data_say(address):
    body = {"prompt": "shoe", "stream": True, "partial_images": 1, "method": "ar"}
    with httpx.stream("POST", f"{address}/v1/images/generations", json=body, timeout=60) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[0::2] == ["event: image_generation.partial_image", "event: image_generation.completed"]
    assert all(line.startswith('data: {"type":"image_generation.') for line in lines[1::2])


REFUSED = [
    ({"prompt": "hat"}, "expected one of: t-shirt"),
    ({"prompt": "257,"}, "numbers of tokens"),
    ({"prompt": [999]}, "999"),
    ({"prompt": ""}, "prompt: expected a name"),
    ({"prompt": []}, "prompt: expected a name"),
    ({"prompt": [True]}, "prompt: expected a name"),
    ({"prompt": None}, "prompt: expected a name"),
    ({"prompt": "9" * 30}, "numbers of tokens"),
    ({"n": 0}, "n"),
    ({"n": 33}, "at most 32"),
    ({"size": "1024x1024"}, "28x28"),
    ({"response_format": "url"}, "b64_json"),
    ({"output_format": "gif"}, "output_format"),
    ({"quality": "high"}, "quality"),
    ({"output_compression": 50}, "output_compression"),
    ({"background": "transparent"}, "background"),
    ({"partial_images": 2}, "stream"),
    ({"progress": True}, "stream"),
    ({"stream": True, "partial_images": 15}, "at most 14"),
    ({"method": "scd"}, "method"),
    ({"top_p": 2}, "top_p"),
    ({"frames": 3}, "frames"),
    ({"model": "text"}, "/v1/completions"),
]


@pytest.mark.parametrize(
    ("change", "told"), REFUSED, ids=[str(next(iter(change.items())))[:40] for change, _ in REFUSED]
)
def test_what_cannot_be_done_is_refused_before_the_response_begins(client, models, change, told):
    fields = {"model": "fashion", "prompt": "shoe", **change}
    fields["model"] = models[1].name if fields["model"] == "text" else fields["model"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/images/generations", body=fields, cast_to=object)
    assert told in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.body["param"] in change


def test_values_that_change_nothing_are_taken(client, pixels):
    made = client.images.generate(
        model="fashion",
        prompt="shoe",
        n=1,
        size="auto",
        response_format="b64_json",
        quality="auto",
        style="natural",
        background="opaque",
        moderation="low",
        output_compression=100,
        user="somebody",
        extra_body={"seed": SEED},
    )
    np.testing.assert_array_equal(opened(made.data[0].b64_json), pixels[0])


def test_an_unknown_model_and_no_model_among_several(client, models):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="dall-e-3", prompt="shoe")
    other = ServedModel("also", models[0].bundle, models[0].source)
    with on_loopback(make_app([models[0], other])) as url:
        reply = httpx.post(f"{url}/v1/images/generations", json={"prompt": "shoe"})
    assert reply.status_code == 400
    assert "one of fashion, also" in reply.json()["error"]["message"]


class _Ends:
    """A source whose sequences all end like this, after twenty tokens."""

    def __init__(self, last):
        self._last = last

    async def submit(self, job):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *raised):
        return None

    async def __aiter__(self):
        yield Piece((0,) * 20)
        yield self._last


@pytest.mark.parametrize(
    ("reason", "error", "told"), [("error", "logits are NaN", "logits are NaN"), ("stop", None, "after 20 tokens")]
)
def test_a_picture_that_does_not_become_whole_is_an_error(models, reason, error, told):
    broken = ServedModel("broken", models[0].bundle, _Ends(Piece((), reason, error)))
    with (
        on_loopback(make_app([broken])) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=told) as whole:
            client.images.generate(prompt="shoe", n=2)
        assert whole.value.body["type"] == "generation_failed"
        growing = client.images.generate(prompt="shoe", stream=True, partial_images=14)
        assert next(growing).rows == 1
        with pytest.raises(openai.APIError, match=told):
            next(growing)


def test_passes_that_only_read_the_prompt_are_counted_in_the_end(models):
    reads = ServedModel("reads", models[0].bundle, _Ends(Piece((0,) * 176, "length", committed_per_pass=(0, 20, 176))))
    body = {"prompt": "257,3", "stream": True, "progress": True}
    with on_loopback(make_app([reads])) as url:
        text = httpx.post(f"{url}/v1/images/generations", json=body).text
    assert re.findall(r'"first":(\d+),"passes":(\d+)', text) == [("0", "1"), ("20", "3")]
    assert '"input_tokens":2,' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_rows(address, models, stream):
    """A stream without partial pictures has no event until the end: its client's going is seen nevertheless."""
    body = {"prompt": "shoe", "n": 4, "stream": stream, "method": "ar"}

    async def running():
        return sum(one.running + one.waiting for one in (await models[0].source.statistics()).values())

    async def leave():
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.ensure_future(client.post(f"{address}/v1/images/generations", json=body))
            until = time.monotonic() + 10
            while await running() < 4 and time.monotonic() < until:
                await asyncio.sleep(0.002)
            before = (await models[0].source.statistics())["ar"].finished.get("removed", 0)
            asking.cancel()
            while await running() and time.monotonic() < until:
                await asyncio.sleep(0.002)
            return (await models[0].source.statistics())["ar"].finished.get("removed", 0) - before

    assert asyncio.run(leave()) == 4


class _Looks:
    """A model of 3 rows of 4 tokens and a row end, 9, after each; 7 pixel rows; remembers of what tokens it made pictures."""

    name, makes_pictures = "rows", True

    def __init__(self):
        manifest = open_bundle("fashion").manifest
        layout = Layout.grid(3, 4, (1, 8), row_end=9).spans
        graph = replace(manifest.pixel_graph, height=7)
        self.bundle = SimpleNamespace(
            manifest=replace(manifest, length=15, grid=Grid(3, 4), layout=layout, fill_token=1, pixel_graph=graph)
        )
        self.seen = []

    async def pictures(self, tokens):
        self.seen += tokens
        return np.ones((len(tokens), 7, 28, 3), np.uint8)


def test_partial_pictures_of_a_model_with_row_ends():
    model = _Looks()
    painter = PicturePainter(model, "png")
    assert [painter.ready(tokens) for tokens in range(16)] == [0] * 4 + [1] * 5 + [2] * 5 + [3] * 2
    assert [painter.thresholds(count) for count in range(4)] == [[], [2], [1, 2], [1, 2, 3]]
    (partial,) = asyncio.run(painter.partials([2, 3, 4, 5, 9, 6, 7, 8, 2, 9, 3], [2]))
    found = opened(partial["b64_json"])
    assert model.seen == [[2, 3, 4, 5, 9, 6, 7, 8, 2, 9, 1, 1, 1, 1, 9]]
    assert (found[:4] == 1).all()  # 7 * 2 / 3, rounded down: no pixel that a later row has a part in
    assert (found[4:] == BLANK).all()
    assert found.shape == (7, 28, 3)


def test_what_is_too_much_is_refused_before_jobs_are_made_of_it(models, monkeypatch):
    """A job checks its whole prompt: a thousand of them with as long a prompt as a body holds would stop the server for minutes."""
    monkeypatch.setattr("coupled_sampling.serving.http.images.Job", None)

    async def both():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(models)), base_url="http://here") as client:
            many = await client.post(GENERATIONS, json={"model": "fashion", "prompt": "shoe", "n": 1000})
            long = await client.post(GENERATIONS, json={"model": "fashion", "prompt": [257] * 300})
        return [(one.status_code, one.json()["error"]["param"], one.json()["error"]["code"]) for one in (many, long)]

    assert asyncio.run(both()) == [(400, "n", None), (400, "prompt", "context_length_exceeded")]
