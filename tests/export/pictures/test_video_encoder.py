"""Graphs from frames to tokens: against numpy, codes that must come out, the decoder's wavelets, and prompts of few frames."""

import dataclasses
import math

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import Storage
from coupled_sampling.export.pictures import CausalVideoDescription, write_video_token_graph
from coupled_sampling.export.pictures.video_reference import reference_digits
from coupled_sampling.export.pictures.video_token_graph import DIGITS, video_token_graph
from standins.picture_decoders import session
from standins.video_decoders import ENCODED, VIDEO, encoder_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5
HALF = np.array([4, 4, 4, 2, 2, 2])[:, None, None, None]


def frames_of(description, rows, seed=0):
    """Frames that differ, of places that are alike, so that codes have something to say."""
    random = np.random.default_rng(seed)
    shape = (rows, description.pixel_frames, description.height, description.width, description.channels)
    coarse = random.integers(0, 200, (rows, shape[1], description.height // 4, description.width // 4, 3))
    return (coarse.repeat(4, axis=2).repeat(4, axis=3) + random.integers(0, 56, shape)).astype(np.uint8)


def encoded(model, pixels):
    """Tokens, and digits from 0 on, before they are rounded, as the reference has them."""
    model.graph.output.append(onnx.helper.make_tensor_value_info(DIGITS, onnx.TensorProto.FLOAT, None))
    tokens, digits = session(model).run(["tokens", DIGITS], {"pixels": pixels})
    return tokens, digits.reshape(len(pixels), -1, *digits.shape[1:]).swapaxes(1, 2) + HALF


def numbers(digits):
    """Codes of whole digits (B, 6, frames, rows, columns), the first one varying fastest."""
    codes = np.ravel_multi_index(np.moveaxis(digits, 1, 0).astype(int), (8, 8, 8, 5, 5, 5), order="F")
    return codes.reshape(len(codes), -1)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_graph_is_the_reference(frames, tmp_path):
    description = dataclasses.replace(ENCODED, frames=frames)
    weights, pixels = encoder_weights(description), frames_of(description, 2)
    (path,) = write_video_token_graph(description, weights, tmp_path / "tokens.onnx", first=7)
    tokens, digits = encoded(onnx.load(path), pixels)
    expected = reference_digits(description, weights, pixels)
    assert expected.std((0, 2, 3, 4)).min() > 0.1
    assert np.abs(digits - expected).max() < TOLERANCE
    sure = numbers(np.rint(expected - 1e-4)) == numbers(np.rint(expected + 1e-4))
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(tokens[sure], 7 + numbers(np.rint(expected))[sure])
    assert len(np.unique(tokens)) > 3 * frames


def test_any_code_comes_out():
    """With the last kernel at zero its bias is what becomes digits: just inside the ends of each code's range."""
    description = dataclasses.replace(ENCODED, frames=1, rows=1, columns=1)
    weights, pixels = encoder_weights(description), frames_of(description, 1)
    weights["quant.weight"] = np.zeros_like(weights["quant.weight"])
    levels = np.array(description.levels)
    width, offset = (levels - 1) * 1.001 / 2, np.array([0.5, 0.5, 0.5, 0, 0, 0])
    random = np.random.default_rng(0)
    for code in (0, 63_999, 1, 8, *random.integers(0, 64_000, 2)):
        digits = np.array(np.unravel_index(code, levels, order="F")) - levels // 2
        for aside in (-0.49, 0.49):
            inside = np.clip((digits + aside + offset) / width, -1 + 1e-9, 1 - 1e-9)
            bias = np.arctanh(inside) - np.arctanh(offset / width)
            model = session(video_token_graph(description, weights | {"quant.bias": bias.astype(np.float32)}))
            assert model.run(None, {"pixels": pixels})[0].tolist() == [[code]]


def test_fewer_frames_are_the_beginning_of_more():
    weights, pixels = encoder_weights(ENCODED), frames_of(ENCODED, 1)
    tokens, digits = encoded(video_token_graph(ENCODED, weights), pixels)
    for frames in (1, 2):
        short = dataclasses.replace(ENCODED, frames=frames)
        first, own = encoded(video_token_graph(short, weights), pixels[:, : short.pixel_frames])
        np.testing.assert_array_equal(first, tokens[:, : short.grid_tokens])
        np.testing.assert_allclose(own, digits[:, :, :frames], atol=1e-6)
    changed = pixels.copy()
    changed[:, 9] = 255 - changed[:, 9]
    other = encoded(video_token_graph(ENCODED, weights), changed)[1]
    assert (other == digits)[:, :, :2].all()
    assert (other != digits)[:, :, 2].any()


def test_published_sizes():
    video = CausalVideoDescription(5, 40, 64)
    widths = [(stage.width, stage.blocks, stage.space, stage.time) for stage in video.encoder_stages]
    assert widths == [(256, 2, True, True), (512, 2, True, False), (512, 2, False, False)]
    assert video.encoder_shapes()["conv_in.space.weight"] == (128, 192, 1, 3, 3)


def test_every_weight_shows():
    description = dataclasses.replace(ENCODED, frames=2, rows=1, columns=2, stages=ENCODED.stages[1:])
    weights, pixels = encoder_weights(description), frames_of(description, 1)
    right = reference_digits(description, weights, pixels)
    for weight in weights:
        if weight.endswith("key.bias"):
            continue  # adds the same to all scores of a query
        noise = np.random.default_rng(2).normal(0, 0.3, weights[weight].shape) * weights[weight].std()
        wrong = reference_digits(description, weights | {weight: weights[weight] + noise}, pixels)
        assert np.abs(right - wrong).max() > 10 * TOLERANCE, weight


def test_weights_are_read_once_and_stored_as_asked(tmp_path):
    weights, asked = encoder_weights(ENCODED), []

    def read(name):
        asked.append(name)
        return weights[name]

    path, data = write_video_token_graph(ENCODED, read, tmp_path / "t.onnx", storage=Storage("float16"), inline=False)
    assert sorted(asked) == sorted(ENCODED.encoder_shapes())
    size = sum(2 * math.prod(shape) for shape in ENCODED.encoder_shapes().values() if len(shape) == 5)
    assert data.stat().st_size > 0.9 * size
    assert session(str(path)).run(None, {"pixels": frames_of(ENCODED, 1)})[0].shape == (1, 18)


def test_decoders_without_a_counterpart_are_refused():
    for stages in (VIDEO.stages, ENCODED.stages[:2]):
        with pytest.raises(InvalidArgument, match="expected two blocks or more in each, and a last one that doubles"):
            video_token_graph(dataclasses.replace(VIDEO, stages=stages), {})
