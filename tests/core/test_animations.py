"""Files of clips, read back: their frames, their pixels, and how long each is shown."""

import io
import sys

import numpy as np
import pytest

from coupled_sampling.animations import CLIPS, check_fps, encode_clip, require_kind
from coupled_sampling.errors import InvalidArgument, MissingDependency

Image = pytest.importorskip("PIL.Image")

KINDS = ("GIF", "WEBP", "PNG")


def read(encoded, channels):
    """Frames (n, H, W, C), and milliseconds of each."""
    frames, milliseconds = [], []
    with Image.open(io.BytesIO(encoded)) as clip:
        assert clip.info["loop"] == 0
        for i in range(clip.n_frames):
            clip.seek(i)
            shown = np.asarray(clip.convert("L" if channels == 1 else "RGB"))
            frames.append(shown.reshape(*shown.shape[:2], channels))
            milliseconds.append(clip.info["duration"])
    return np.stack(frames), milliseconds


def clip(channels, count=6):
    """All 256 greys, or as many colours, in every frame but in other places; some of a frame is as before."""
    random = np.random.default_rng(channels)
    values = np.arange(256)[:, None] * [1, 7, 91][:channels] % 256
    frames = np.stack([values[random.permutation(256)] for _ in range(count)]).reshape(count, 8, 32, channels)
    frames[2:, :3] = frames[1, :3]
    return np.ascontiguousarray(frames, dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_every_frame_is_kept(kind, channels):
    frames = clip(channels)
    found, milliseconds = read(encode_clip(frames, kind), channels)
    np.testing.assert_array_equal(found, frames)
    assert sum(milliseconds) == 6 * 125
    assert max(milliseconds) - min(milliseconds) <= (10 if kind == "GIF" else 0)


@pytest.mark.parametrize(("fps", "expected"), [(10, [100] * 6), (7.5, [130, 140, 130, 130, 140, 130]), (50, [20] * 6)])
def test_times_of_a_gif_are_hundredths_that_add_up(fps, expected):
    assert read(encode_clip(clip(1), "GIF", fps), 1)[1] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_like_the_one_before_it_is_seen_as_long(kind):
    frames = clip(1)[[0, 1, 1, 1, 2]]
    found, milliseconds = read(encode_clip(frames, kind, 10), 1)
    shown = np.repeat(found, np.rint(np.array(milliseconds) / 100).astype(int), axis=0)
    np.testing.assert_array_equal(shown, frames)


def test_more_colours_than_a_gif_has_are_near():
    y, x = np.mgrid[:64, :64]
    frames = np.stack([np.stack([4 * x, 4 * y, (x + y + 9 * i) % 128], axis=-1) for i in range(3)]).astype(np.uint8)
    found, _ = read(encode_clip(frames, "GIF"), 3)
    assert 0 < np.abs(found.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("channels", [1, 3])
def test_an_mp4_has_the_frames_about(channels):
    av = pytest.importorskip("av", reason="needs the extra [video]")
    y, x = np.mgrid[:33, :51]
    frames = np.stack([(4 * x + 2 * y + 10 * i) % 200 for i in range(12)]).astype(np.uint8)
    frames = np.stack([frames] * channels, axis=-1)
    with av.open(io.BytesIO(encode_clip(frames, "MP4", 7.5))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 7.5)
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert found.shape == (12, 34, 52, 3)
    assert np.abs(found[:, :33, :51].astype(int) - frames).mean() < 3


@pytest.mark.parametrize(("fps", "kind"), [(0, "GIF"), (51, "GIF"), (101, "WEBP"), (float("nan"), "PNG"), (-1, "MP4")])
def test_rates_that_cannot_be_are_refused(fps, kind):
    with pytest.raises(InvalidArgument, match=rf"fps is {fps}, expected 0.1 to"):
        check_fps(fps, kind)


@pytest.mark.parametrize(("kind", "most"), [("WEBP", 16_383), ("GIF", 65_535)])
def test_the_largest_side_is_written_and_one_more_is_refused(kind, most):
    for shape in ((2, most, 1, 1), (2, 1, most, 1)):
        assert Image.open(io.BytesIO(encode_clip(np.zeros(shape, np.uint8), kind))).size == shape[2:0:-1]
    with pytest.raises(InvalidArgument, match=rf"a {kind} of {most + 1} by 1 pixels is too large"):
        encode_clip(np.zeros((2, most + 1, 1, 1), np.uint8), kind)


@pytest.mark.parametrize(("kind", "module", "extra"), [("MP4", "av", "video"), ("GIF", "PIL.Image", "pictures")])
def test_what_is_missing_is_named_with_its_extra(monkeypatch, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"pip install 'coupled-sampling\[{extra}\]'"):
        require_kind(kind)


def test_every_kind_that_is_offered_is_known():
    for kind in set(CLIPS.values()):
        assert check_fps(8, kind) == 8
