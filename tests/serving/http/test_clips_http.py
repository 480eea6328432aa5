"""Clips over HTTP: animated files, frames that come while the rest is decoded, and the page that plays them."""

import asyncio
import base64
import io
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from coupled_sampling import open_bundle
from coupled_sampling.backends import PixelDecoder
from coupled_sampling.bundles import Grid, Layout
from coupled_sampling.bundles.manifest import PixelGraph
from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.http.files import clip_file
from coupled_sampling.serving.http.painting import ClipPainter
from standins.clip_bundles import FRAMES, LENGTH, write_clip_bundle
from standins.serving import on_loopback, served

openai = pytest.importorskip("openai", reason="needs the official client")

ASKED = {"prompt": "sneaker", "model": "toy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_bundle(tmp_path_factory.mktemp("clips") / "toy")


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, "fashion", rows=2) as models, on_loopback(make_app(models)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def opened(file):
    return Image.open(io.BytesIO(base64.b64decode(file)))


def shown(file, frames, fps):
    """What a player shows in the middle of each frame's time, grey or red: (frames, height, width)."""
    image, seen, lasting = opened(file), [], []
    for i in range(image.n_frames):
        image.seek(i)
        seen.append(np.asarray(image.convert("RGB")))
        lasting.append(image.info["duration"])
    assert image.info["loop"] == 0, "it plays once"
    assert abs(sum(lasting) - 1000 * frames / fps) <= 5.0, "it takes another time"
    times = [1000 * (i + 0.5) / fps for i in range(frames)]
    return np.stack([seen[int(np.searchsorted(list(accumulate(lasting)), time, side="right"))] for time in times])


def pixels_of(folder, tokens):
    return PixelDecoder.open(folder)(np.array([tokens]))[0]


@pytest.mark.parametrize(("output_format", "fps"), [(None, None), ("webp", 60), ("png", 7), ("gif", 30)])
def test_a_clip_is_one_file_of_the_decoders_pixels(client, folder, output_format, fps):
    extra = {name: value for name, value in (("output_format", output_format), ("fps", fps)) if value is not None}
    made = client.images.generate(**ASKED, n=2, size="4x4", extra_body={"seed": 5, "return_token_ids": True, **extra})
    assert (made.output_format, made.size) == (output_format or "webp", "4x4")
    assert (made.frames, made.fps) == (FRAMES, fps or 8)
    files = set()
    for one in made.data:
        expected = pixels_of(folder, one.token_ids)
        assert opened(one.b64_json).format == made.output_format.upper()
        np.testing.assert_array_equal(shown(one.b64_json, FRAMES, made.fps), np.repeat(expected, 3, axis=-1))
        files.add(one.b64_json)
    assert len(files) == 2


@pytest.mark.parametrize(("output_format", "of_a_frame"), [("webp", "webp"), ("png", "png"), ("gif", "png")])
def test_frames_come_as_they_are_decided_and_never_change(client, folder, output_format, of_a_frame):
    extra = {"seed": 1, "return_token_ids": True, "progress": True, "acceptance": True}
    stream = client.images.generate(
        **ASKED, stream=True, partial_images=FRAMES, output_format=output_format, extra_body=extra
    )
    frames, tokens, last = [], 0, None
    for event in stream:
        assert last is None
        if event.type == "image_generation.tokens":
            tokens = event.first + len(event.tokens)
        elif event.type == "image_generation.partial_image":
            assert (event.frame, event.partial_image_index) == (len(frames), len(frames))
            assert not hasattr(event, "rows")
            assert 4 * event.frame + 4 <= tokens, "it comes before it is decided"
            assert (event.output_format, event.size) == (of_a_frame, "4x4")
            frames.append((event.b64_json, tokens))
        else:
            last = event
    expected = pixels_of(folder, last.token_ids)
    for i, (file, known) in enumerate(frames):
        assert known < 4 * i + 4 + 6, "it is kept back: a pass commits 6 tokens at most"
        image = opened(file)
        assert image.format == of_a_frame.upper()
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.repeat(expected[i], 3, axis=-1))
    assert len(frames) == FRAMES
    assert (last.type, last.output_format, last.usage.output_tokens) == (
        "image_generation.completed", output_format, LENGTH,
    )  # fmt: skip
    np.testing.assert_array_equal(shown(last.b64_json, FRAMES, last.fps), np.repeat(expected, 3, axis=-1))


@pytest.mark.parametrize(("count", "frames"), [(0, []), (1, [1]), (2, [0, 1])])
def test_fewer_frames_are_evenly_spread(client, count, frames):
    stream = client.images.generate(**ASKED, stream=True, partial_images=count)
    assert [event.frame for event in stream if event.type != "image_generation.completed"] == frames


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"output_format": "jpeg"}, "output_format", "makes clips; expected one of webp, png, gif"),
        ({"model": "fashion", "prompt": "shoe", "output_format": "gif"}, "output_format", "expected one of png, webp"),
        ({"model": "fashion", "prompt": "shoe", "fps": 8}, "fps", "makes pictures, which do not move"),
        ({"fps": 0}, "fps", "fps"),
        ({"fps": 61}, "fps", "fps"),
        ({"fps": 51, "output_format": "gif"}, "fps", "expected 0.1 to 50 frames in a second for GIF"),
        ({"size": "28x28"}, "size", "makes clips of 4x4"),
        ({"partial_images": 4, "stream": True}, "partial_images", "the clip has 3 frames"),
    ],
)
def test_what_a_clip_cannot_be_is_refused_before_it_begins(address, change, param, told):
    reply = httpx.post(f"{address}/v1/images/generations", json={**ASKED, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert told in error["message"]


def test_the_listing_tells_pictures_from_clips(address):
    toy, fashion = httpx.get(f"{address}/v1/models").json()["data"]
    assert (toy["grid"], toy["token_frames"], toy["frames"], toy["fps"]) == ([2, 2], 3, 3, 8)
    assert (fashion["grid"], fashion["token_frames"], fashion["frames"], fashion["fps"]) == ([14, 14], 0, 0, None)


@pytest.mark.parametrize("output_format", ["webp", "png", "gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_that_stand_still_last_as_long_as_they_are(output_format, channels):
    """Writers make one frame of several that are alike. GIF holds 256 colours a frame."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (40, channels), dtype=np.uint8)
    pixels = colours[random.integers(0, 40, (7, 6, 5))]
    pixels[2], pixels[6], pixels[4, :, 2:] = pixels[1], pixels[5], pixels[3, :, 2:]
    found = shown(clip_file(pixels, output_format, 11), 7, 11)
    np.testing.assert_array_equal(found, np.broadcast_to(pixels, found.shape))


class _Causal:
    """A model of 2 frames of 1 row of 2 tokens, a row end behind each, for 5 frames of pixels: 1 of the first, 4 of the second."""

    name, makes_pictures, frames = "causal", True, 5

    def __init__(self):
        layout = Layout.grid(2, 2, (1, 8), row_end=9).spans
        graph = PixelGraph("pixels.onnx", 2, 2, 1, frames=5)
        manifest = replace(
            open_bundle("fashion").manifest,
            length=6,
            grid=Grid(1, 2, 2),
            layout=layout,
            fill_token=1,
            pixel_graph=graph,
        )
        self.bundle, self.seen = SimpleNamespace(manifest=manifest), []

    async def pictures(self, tokens):
        self.seen += tokens
        return np.arange(5, dtype=np.uint8).repeat(4).reshape(1, 5, 2, 2, 1)


def test_a_frame_of_tokens_may_be_several_of_pixels():
    model = _Causal()
    painter = ClipPainter(model, "png", None)
    assert [painter.ready(tokens) for tokens in range(7)] == [0, 0, 1, 1, 1, 5, 5]
    (first,) = asyncio.run(painter.partials([2, 3, 9, 4], [1]))
    assert model.seen == [[2, 3, 9, 4, 1, 9]]
    assert first["frame"] == 0
    found = asyncio.run(painter.partials([2, 3, 9, 4, 5], [2, 3, 5]))
    assert model.seen[1:] == [[2, 3, 9, 4, 5, 9]], "decoded once for each of its frames"
    assert [one["frame"] for one in found] == [1, 2, 4]
    assert [np.asarray(opened(one["b64_json"])).max() for one in found] == [1, 2, 4]
    assert asyncio.run(painter.partials([2], [])) == []
    assert len(model.seen) == 2
