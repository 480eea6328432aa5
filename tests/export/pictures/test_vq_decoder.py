"""Graphs of picture decoders: against numpy, known pictures, tokens and their codes, storage, and what cannot be."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import Storage
from coupled_sampling.export.graphs.builder import save_graph
from coupled_sampling.export.pictures import PictureTokens, Stage, VqDescription, reference_pixels, write_vq_pixel_graph
from coupled_sampling.export.pictures.pixel_graph import vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_picture, values_to_pixels
from standins.picture_decoders import (
    FRAMED,
    NEAREST,
    ORDER,
    PLAIN,
    TAMED,
    assert_same_pixels,
    random_weights,
    run,
    session,
)
from standins.picture_models import CODES, SIDE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

ALL = PictureTokens(SIDE**2, 0, CODES)
TOLERANCE = 1e-5
"""Largest difference of a picture, whose values have a spread of about one half."""


DECODERS = {"plain": PLAIN, "nearest": NEAREST, "attention in between": TAMED, "first frame": FRAMED}
DECODERS["one stage, oblong, grey"] = VqDescription(CODES, 3, 2, (Stage(32, 1),), 2, 5, channels=1)
DECODERS["16 groups, another epsilon"] = dataclasses.replace(TAMED, groups=16, epsilon=0.5)


@pytest.mark.parametrize("name", DECODERS)
def test_the_graph_is_the_reference(name, tmp_path):
    description = DECODERS[name]
    weights, tokens = random_weights(description), PictureTokens(description.rows * description.columns, 0, CODES)
    codes = np.random.default_rng(1).integers(0, CODES, (3, tokens.length))
    model = vq_pixel_graph(description, weights, tokens)
    save_graph(model, tmp_path / "pixels.onnx")
    picture, pixels = run(model, codes)
    expected = reference_picture(description, weights, codes)
    assert 0.2 < expected.std() < 2
    assert np.abs(picture - expected).max() < TOLERANCE
    assert pixels.shape == (3, description.height, description.width, description.channels)
    assert_same_pixels(pixels, values_to_pixels(description, expected))


CHANGES = {
    "epsilon": {"epsilon": 1e-2},
    "groups": {"groups": 16},
    "code vectors": {"normalised_codes": False},
    "rounding": {"rounding": "nearest"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_shows(change):
    codes = np.random.default_rng(1).integers(0, CODES, (1, SIDE**2))
    weights = random_weights(PLAIN)
    right, wrong = (
        run(vq_pixel_graph(d, weights, ALL), codes)[1] for d in (PLAIN, dataclasses.replace(PLAIN, **CHANGES[change]))
    )
    assert (right != wrong).mean() > 0.1


@pytest.mark.parametrize("name", ["plain", "first frame"])
def test_every_weight_shows(name):
    stages = (Stage(64, 1, True), Stage(128, 1))
    description = dataclasses.replace(DECODERS[name], rows=2, columns=2, stages=stages)
    codes = np.random.default_rng(1).permutation(CODES)[None, :4]
    weights = random_weights(description)
    right = reference_picture(description, weights, codes)
    for weight in weights:
        if weight.endswith("key.bias"):
            continue  # adds the same to all scores of a query
        noise = np.random.default_rng(2).normal(0, 0.3, weights[weight].shape) * weights[weight].std()
        wrong = reference_picture(description, weights | {weight: weights[weight] + noise}, codes)
        assert np.abs(right - wrong).max() > 20 * TOLERANCE, weight


@pytest.mark.parametrize(("rounding", "middle", "below"), [("floor", 127, 126), ("nearest", 128, 127)])
def test_known_pictures(rounding, middle, below):
    """With conv_out's kernel at zero the picture is its bias: black, in between, white, and beyond both."""
    description = VqDescription(2, 1, 1, (Stage(32, 1),), 1, 2, channels=6, rounding=rounding)
    weights = random_weights(description)
    weights["conv_out.weight"][:] = 0
    weights["conv_out.bias"] = np.array([-1, 0, 1, -3, 3, 2 * 126.7 / 255 - 1], np.float32)
    tokens = PictureTokens(2, 0, 2)
    expected = [0, middle, 255, 0, 255, below]
    generated_tokens = np.array([[0, 1]])
    for pixels in (
        run(vq_pixel_graph(description, weights, tokens), generated_tokens)[1],
        reference_pixels(description, weights, tokens, generated_tokens),
    ):
        assert pixels.shape == (1, 1, 2, 6)
        assert pixels[0, 0].tolist() == [expected, expected]


def test_the_codes_of_tokens_are_found_by_place_and_by_name():
    tokens = PictureTokens(SIDE * (SIDE + 1), 40, CODES, ORDER, tuple(i for i in range(12) if i % 4 != 3))
    codes = np.random.default_rng(1).integers(0, CODES, (2, SIDE**2))
    written = np.full((2, 12), 7)
    written[:, tokens.positions] = np.argsort(ORDER)[codes] + 40
    weights = random_weights(PLAIN)
    plain = run(vq_pixel_graph(PLAIN, weights, ALL), codes)[1]
    np.testing.assert_array_equal(run(vq_pixel_graph(PLAIN, weights, tokens), written)[1], plain)
    np.testing.assert_array_equal(tokens.codes_of(written), codes)
    for wrong in (
        dataclasses.replace(tokens, codes=()),
        dataclasses.replace(tokens, positions=tokens.positions[::-1]),
    ):
        assert (run(vq_pixel_graph(PLAIN, weights, wrong), written)[1] != plain).any()


@pytest.mark.parametrize("codes", [(), ORDER])
@pytest.mark.parametrize("token", [39, 40 + CODES, -1, 2**40])
def test_a_token_without_pixels_is_an_error_of_the_runtime(codes, token):
    tokens = PictureTokens(SIDE**2, 40, CODES, codes)
    model = session(vq_pixel_graph(PLAIN, random_weights(PLAIN), tokens))
    written = np.full((2, SIDE**2), 40)
    assert model.run(None, {"tokens": written})[0].shape == (2, 12, 12, 3)
    written[1, 4] = token
    with pytest.raises(Exception, match="out of data bounds"):
        model.run(None, {"tokens": written})
    with pytest.raises(InvalidArgument, match=f"picture 1, code 4 is token {token}"):
        tokens.codes_of(written)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_weights_are_stored_as_asked_and_computed_in_float32(storage, tmp_path):
    weights, codes = random_weights(TAMED), np.random.default_rng(1).integers(0, CODES, (1, SIDE**2))
    kept = Storage(storage)
    files = write_vq_pixel_graph(TAMED, weights, ALL, tmp_path / "narrow.onnx", kept)
    wide = write_vq_pixel_graph(TAMED, weights, ALL, tmp_path / "wide.onnx")
    assert files[0].stat().st_size < 0.6 * wide[0].stat().st_size
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if storage == "bfloat16" else np.float16
    rounded = {
        name: array.astype(dtype).astype(np.float32) if array.ndim == 4 else array for name, array in weights.items()
    }
    picture = run(onnx.load(files[0]), codes)[0]
    assert np.abs(picture - reference_picture(TAMED, rounded, codes)).max() < TOLERANCE
    assert np.abs(picture - reference_picture(TAMED, weights, codes)).max() > 1e-4


def test_weights_in_a_file_of_their_own_are_the_same_and_are_read_one_by_one(tmp_path):
    weights, codes = random_weights(PLAIN), np.random.default_rng(1).integers(0, CODES, (2, SIDE**2))
    asked = []

    def read(name):
        asked.append(name)
        return weights[name]

    graph, data = write_vq_pixel_graph(PLAIN, read, ALL, tmp_path / "pixels.onnx", inline=False)
    assert sorted(asked) == sorted(PLAIN.weight_shapes())
    assert graph.stat().st_size < 100_000 < data.stat().st_size
    apart = session(str(graph)).run(None, {"tokens": codes})[0]
    np.testing.assert_array_equal(apart, run(vq_pixel_graph(PLAIN, weights, ALL), codes)[1])


def test_descriptions_and_tokens_that_cannot_be_are_refused():
    weights = random_weights(PLAIN)
    for change, message in (
        ({"stages": ()}, "stages is empty"),
        ({"stages": (Stage(48, 1),)}, r"stages\[0\].width is 48, expected a multiple of groups, 32"),
        ({"stages": (Stage(32, 0),)}, r"stages\[0\].blocks is 0"),
        ({"codes": 0}, "codes is 0"),
        ({"rows": 2.0}, "rows is 2.0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"rounding": "up"}, "rounding is 'up'"),
        ({"frame": FRAMED.frame}, "latent is 6, expected code_size, 5"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            dataclasses.replace(PLAIN, **change)
    for tokens, message in (
        ({"length": 8}, "tokens has 8 codes in a picture, expected 3 rows of 3"),
        ({"count": 13}, r"codes up to 12, expected codes in \[0, 12\)"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            vq_pixel_graph(PLAIN, weights, dataclasses.replace(ALL, **tokens))
    for change, message in (
        ({"count": 0}, "count is 0"),
        ({"codes": (1, 2)}, "codes has 2 entries"),
        ({"codes": (0,) * CODES}, "codes has an entry twice"),
        ({"positions": (0, 9)}, r"positions are 0 to 9, expected positions in \[0, 9\)"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            dataclasses.replace(ALL, **change)
    with pytest.raises(InvalidArgument, match=r"'conv_in\.bias' has shape \(2,\)"):
        vq_pixel_graph(PLAIN, weights | {"conv_in.bias": np.zeros(2)}, ALL)
    with pytest.raises(InvalidArgument, match=r"'conv_in\.bias' has NaN"):
        vq_pixel_graph(PLAIN, weights | {"conv_in.bias": np.full(128, np.nan)}, ALL)
