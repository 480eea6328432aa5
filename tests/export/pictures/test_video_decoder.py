"""Graphs of tokenizers of videos: against numpy, time's direction, codes and wavelets by their formulas, and what cannot be."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import Storage
from coupled_sampling.export.graphs.weights import WeightReader
from coupled_sampling.export.pictures import (
    CausalVideoDescription,
    PictureTokens,
    VideoStage,
    reference_video_pixels,
    write_video_pixel_graph,
)
from coupled_sampling.export.pictures.video_pixel_graph import VideoParts, _Writer, video_pixel_graph
from coupled_sampling.export.pictures.video_reference import reference_video, video_values_to_pixels
from standins.picture_decoders import assert_same_pixels, run, session
from standins.video_decoders import STAGES, VIDEO, video_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 2e-5
"""Largest difference of a frame, whose values have a spread of about one half."""


def random_codes(description, rows, seed=1):
    return np.random.default_rng(seed).integers(0, description.codes, (rows, description.grid_tokens))


def all_codes(description):
    return PictureTokens(description.grid_tokens, 0, description.codes)


def as_clips(picture, description):
    """The graph's pictures (B * frames, channels, ...) as the reference has them, (B, channels, frames, ...)."""
    return picture.reshape(-1, description.pixel_frames, *picture.shape[1:]).swapaxes(1, 2)


ONE = CausalVideoDescription(1, 2, 2, (VideoStage(8, 1, space=True, time=True),), levels=(4, 3), latent=4, transforms=1)
VIDEOS = {
    "as published, narrow": VIDEO,
    "one frame": dataclasses.replace(VIDEO, frames=1),
    "grey, rounded, another epsilon": dataclasses.replace(VIDEO, channels=1, rounding="nearest", epsilon=0.3),
    "one level, other digits": dataclasses.replace(ONE, frames=2),
    "no wavelets": dataclasses.replace(ONE, frames=3, transforms=0),
    "frames doubled alone": dataclasses.replace(ONE, frames=2, stages=(VideoStage(8, 1, time=True), VideoStage(4, 1))),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_the_graph_is_the_reference(name, tmp_path):
    description = VIDEOS[name]
    weights, tokens = video_weights(description), all_codes(description)
    codes = random_codes(description, 2)
    files = write_video_pixel_graph(description, weights, tokens, tmp_path / "pixels.onnx")
    picture, pixels = run(onnx.load(files[0]), codes)
    expected = reference_video(description, weights, codes)
    assert 0.2 < expected.std() < 2
    assert np.abs(as_clips(picture, description) - expected).max() < TOLERANCE
    assert pixels.shape == (2, description.pixel_frames, description.height, description.width, description.channels)
    values = video_values_to_pixels(description, expected)
    assert_same_pixels(pixels, values)
    assert np.abs(pixels.astype(int) - reference_video_pixels(description, weights, tokens, codes)).max() <= 1


def test_published_sizes():
    """Numbers that the modules of the published source have, built at full size."""
    video = CausalVideoDescription(5, 40, 64)
    assert sum(math.prod(shape) for shape in video.weight_shapes().values()) == 65_361_136
    assert (video.codes, video.grid_tokens, video.time_scale, video.scale) == (64_000, 12_800, 8, 16)
    assert (video.pixel_frames, video.height, video.width) == (33, 640, 1024)
    assert [dataclasses.replace(video, frames=n).pixel_frames for n in (1, 2, 3)] == [1, 9, 17]


def test_every_code_is_its_digits():
    video = CausalVideoDescription(5, 40, 64)
    digits = np.stack(np.unravel_index(np.arange(64_000), (8, 8, 8, 5, 5, 5), order="F"), axis=1)
    values = np.concatenate([digits[:, :3] / 4 - 1, digits[:, 3:] / 2 - 1], axis=1)
    np.testing.assert_array_equal(video.codebook(), values)
    assert len(np.unique(video.codebook(), axis=0)) == 64_000


def haar(video):
    """Coefficients (8 * channels, ...) of a video (channels, ...), by the definition of the transform."""
    blocks = []
    for i, j, k in itertools.product((0, 1), repeat=3):
        parts = [
            (-1) ** (a * i + b * j + c * k) * video[:, a::2, b::2, c::2]
            for a, b, c in itertools.product((0, 1), repeat=3)
        ]
        blocks.append(sum(parts) / 8)
    return np.concatenate(blocks)


@pytest.mark.parametrize("levels", [1, 2])
def test_wavelets_become_the_video_they_are_of(levels):
    video = np.random.default_rng(0).normal(size=(3, 8, 4, 12))
    coefficients = video
    for _ in range(levels):
        coefficients = haar(coefficients)
    size = 2**levels
    description = dataclasses.replace(VIDEO, frames=8 // size, rows=4 // size, columns=12 // size)
    writer = _Writer(description, video_weights(description), "float32", None)
    x = writer.graph.input("x", "float32", [8 // size, *(3 * 8**levels, 4 // size, 12 // size)])
    for level in reversed(range(levels)):
        x = writer.inverse_haar(x, 3 * 8**level)
    writer.graph.op("Identity", x, name=writer.graph.output("y", "float32", [8, 3, 4, 12]))
    model = session(writer.graph.build("wavelets", "Wavelets.", {}))
    found = model.run(None, {"x": coefficients.swapaxes(0, 1).astype(np.float32)})[0]
    np.testing.assert_allclose(found.swapaxes(0, 1), video, atol=1e-6)


def test_a_later_code_changes_no_frame_that_is_decided():
    weights, codes = video_weights(VIDEO), random_codes(VIDEO, 1)
    whole = run(video_pixel_graph(VIDEO, weights, all_codes(VIDEO)), codes)[1]
    for frames in (1, 2):
        short = dataclasses.replace(VIDEO, frames=frames)
        beginning = run(video_pixel_graph(short, weights, all_codes(short)), codes[:, : short.grid_tokens])[1]
        np.testing.assert_array_equal(beginning, whole[:, : 1 + 8 * (frames - 1)])
    changed = codes.copy()
    changed[:, 6] = (changed[:, 6] + 32_000) % 64_000
    other = run(video_pixel_graph(VIDEO, weights, all_codes(VIDEO)), changed)[1]
    assert (other == whole)[:, :1].all()
    for frame in range(1, 17):
        assert (other != whole)[:, frame].any(), frame


CHANGES = {
    "epsilon": {"epsilon": 1e-2},
    "rounding": {"rounding": "nearest"},
    "the level that doubles time": {
        "stages": (VideoStage(8, 1, space=True, time=True), VideoStage(8, 2, space=True), VideoStage(4, 2))
    },
    "order of digits": {"levels": (5, 5, 5, 8, 8, 8)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_shows(change):
    weights, codes = video_weights(VIDEO), random_codes(VIDEO, 1)
    wrong = dataclasses.replace(VIDEO, **CHANGES[change])
    moved = {name.replace("stages.1.upsample.time", "stages.0.upsample.time"): w for name, w in weights.items()}
    right = run(video_pixel_graph(VIDEO, weights, all_codes(VIDEO)), codes)[1]
    used = moved if "stages" in CHANGES[change] else weights
    assert (run(video_pixel_graph(wrong, used, all_codes(wrong)), codes)[1] != right).mean() > 0.1


def test_every_weight_shows():
    description = dataclasses.replace(ONE, frames=3, rows=1, columns=2, stages=(STAGES[1], STAGES[2]))
    weights, codes = video_weights(description), random_codes(description, 1)
    right = reference_video(description, weights, codes)
    for weight in weights:
        if weight.endswith("key.bias"):
            continue  # adds the same to all scores of a query
        noise = np.random.default_rng(2).normal(0, 0.3, weights[weight].shape) * weights[weight].std()
        wrong = reference_video(description, weights | {weight: weights[weight] + noise}, codes)
        assert np.abs(right - wrong).max() > 20 * TOLERANCE, weight


def test_convolutions_in_time_find_the_first_frame_again_and_again():
    """A kernel that adds up a frame and the two before it, on frames 1, 10, 100."""
    description = dataclasses.replace(ONE, frames=3, rows=1, columns=1)
    shapes = {"sum.weight": (1, 2, 3, 1, 1), "sum.bias": (1,)}
    kernel = np.array([[[4, 2, 1], [0, 0, 1000]]], np.float32)[..., None, None]
    reader = WeightReader(shapes, {"sum.weight": kernel, "sum.bias": np.zeros(1, np.float32)})
    for first_again, expected in ((True, [7, 16, 124]), (False, [1, 12, 124])):
        parts = VideoParts(reader, (description.frames, 1, 1), 1, 1e-6, "float32", None, first_again=first_again)
        parts.convolution("sum", parts.graph.input("x", "float32", ["N", 2, 1, 1]), output="y")
        parts.graph.output("y", "float32", ["N", 1, 1, 1])
        x = np.array([[1, 0], [10, 0], [100, 0], [5, 1], [5, 1], [5, 1]], np.float32)[..., None, None]
        found = session(parts.graph.build("sums", "Sums.", {})).run(None, {"x": x})[0].ravel().tolist()
        assert found[:3] == expected
        assert found[3:] == ([1035.0] * 3 if first_again else [1005.0, 1015.0, 1035.0])


@pytest.mark.parametrize(("rounding", "middle", "below"), [("floor", 127, 126), ("nearest", 128, 127)])
def test_known_frames(rounding, middle, below):
    """With conv_out's kernels at zero every place is the inverse transform of its bias: black, in between, white, and beyond."""
    description = dataclasses.replace(ONE, channels=6, rounding=rounding)
    weights = video_weights(description)
    for axis in ("space", "time"):
        weights[f"conv_out.{axis}.weight"][:] = 0
    values = np.array([-1, 0, 1, -3, 3, 2 * 126.7 / 255 - 1], np.float32)
    weights["conv_out.time.bias"] = np.concatenate([values, np.zeros(42, np.float32)])
    expected = [0, middle, 255, 0, 255, below]
    for pixels in (
        run(video_pixel_graph(description, weights, all_codes(description)), random_codes(description, 1))[1],
        reference_video_pixels(description, weights, all_codes(description), random_codes(description, 1)),
    ):
        assert (pixels == np.array(expected)).all()


@pytest.mark.parametrize("token", [39, 40 + 64_000, -1, 2**40])
def test_a_token_without_frames_is_an_error_of_the_runtime(token):
    tokens = PictureTokens(ONE.grid_tokens, 40, ONE.codes)
    model = session(video_pixel_graph(ONE, video_weights(ONE), tokens))
    written = np.full((2, 4), 40)
    assert model.run(None, {"tokens": written})[0].shape == (2, 1, 8, 8, 3)
    written[1, 2] = token
    with pytest.raises(Exception, match="out of data bounds"):
        model.run(None, {"tokens": written})


def test_weights_are_stored_as_asked_and_apart(tmp_path):
    weights, codes = video_weights(VIDEO), random_codes(VIDEO, 1)
    asked = []

    def read(name):
        asked.append(name)
        return weights[name]

    graph, data = write_video_pixel_graph(
        VIDEO, read, all_codes(VIDEO), tmp_path / "pixels.onnx", Storage("float16"), inline=False
    )
    assert sorted(asked) == sorted(VIDEO.weight_shapes())
    assert data.stat().st_size > 100_000
    rounded = {
        name: array.astype(np.float16).astype(np.float32) if array.ndim == 5 else array
        for name, array in weights.items()
    }
    inline = run(video_pixel_graph(VIDEO, rounded, all_codes(VIDEO)), codes)[1]
    np.testing.assert_array_equal(session(str(graph)).run(None, {"tokens": codes})[0], inline)


def test_descriptions_and_tokens_that_cannot_be_are_refused():
    for change, message in (
        ({"stages": ()}, "stages or levels is empty"),
        ({"stages": (VideoStage(8, 0),)}, r"stages\[0\].blocks is 0"),
        ({"levels": (8, 1)}, r"levels\[1\] is 1, expected an integer >= 2"),
        ({"frames": 0}, "frames is 0"),
        ({"rows": 2.0}, "rows is 2.0"),
        ({"transforms": -1}, "transforms is -1"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"rounding": "up"}, "rounding is 'up'"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            dataclasses.replace(VIDEO, **change)
    weights = video_weights(VIDEO)
    with pytest.raises(InvalidArgument, match="tokens has 17 codes in a picture, expected 3 frames of 2 rows of 3"):
        video_pixel_graph(VIDEO, weights, PictureTokens(17, 0, 64_000))
    with pytest.raises(InvalidArgument, match=r"codes up to 64000, expected codes in \[0, 64000\)"):
        video_pixel_graph(VIDEO, weights, PictureTokens(18, 0, 64_001))
    with pytest.raises(InvalidArgument, match=r"'conv_in\.time\.bias' has shape \(2,\)"):
        video_pixel_graph(VIDEO, weights | {"conv_in.time.bias": np.zeros(2)}, all_codes(VIDEO))
