"""Emu3's decoder in time: against numpy, its first frame, time's direction, names, and what cannot be."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import Storage
from coupled_sampling.export.families.emu3_video import emu3_video_decoder
from coupled_sampling.export.pictures import CausalFrames, PictureTokens, Stage, reference_pixels
from coupled_sampling.export.pictures.names import TAMING, TRANSFORMERS_EMU3, places
from coupled_sampling.export.pictures.pixel_graph import vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_picture, values_to_pixels
from standins.checkpoints import checkpoint_of
from standins.picture_decoders import (
    BAAI_VQ,
    EMU3,
    EMU3_TENSORS,
    FRAMED,
    assert_same_pixels,
    random_weights,
    run,
    session,
)
from standins.picture_models import CODES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5
WIDE = dataclasses.replace(FRAMED, rows=2, columns=3, frames=3, frame=CausalFrames(1, 2))
"""That of the small checkpoints."""

CLIP = dataclasses.replace(WIDE, stages=(Stage(64, 1, True), Stage(32, 1)))
"""Three frames of 2 by 3 codes, which become twelve of 4 by 6 pixels."""

NARROW = dataclasses.replace(CLIP, rows=2, columns=2, stages=(Stage(32, 1),), frame=CausalFrames(1, 1))


def random_codes(description, rows):
    return np.random.default_rng(1).integers(0, CODES, (rows, description.grid_tokens))


def every_code(description):
    return PictureTokens(description.grid_tokens, 0, CODES)


def first_frames(weights):
    """Weights that `FirstFrame` takes: of every kernel in time the last tap."""
    return {name: array[:, :, -1] if array.ndim == 5 else array for name, array in weights.items()}


@pytest.mark.parametrize("change", [{}, {"frames": 1}, {"frame": CausalFrames(0, 1)}, {"frame": CausalFrames(2, 0)}])
def test_the_graph_is_the_reference(change):
    description = dataclasses.replace(CLIP, **change)
    weights, codes = random_weights(description), random_codes(description, 2)
    picture, pixels = run(vq_pixel_graph(description, weights, every_code(description)), codes)
    expected = reference_picture(description, weights, codes.reshape(-1, 6))
    assert 0.2 < expected.std() < 2
    assert np.abs(picture - expected).max() < TOLERANCE
    assert pixels.shape == (2, description.pixel_frames, 4, 6, 3)
    assert_same_pixels(pixels.reshape(-1, 4, 6, 3), values_to_pixels(description, expected))
    reference = reference_pixels(description, weights, every_code(description), codes)
    assert np.abs(pixels.astype(int) - reference).max() <= 1


def test_the_first_frame_is_the_picture():
    weights, codes = random_weights(CLIP), random_codes(CLIP, 2)
    pixels = run(vq_pixel_graph(CLIP, weights, every_code(CLIP)), codes)[1]
    picture = dataclasses.replace(CLIP, frames=0, frame=FRAMED.frame)
    graph = vq_pixel_graph(picture, first_frames(weights), every_code(picture))
    apart = np.abs(run(graph, codes[:, :6])[1].astype(int) - pixels[:, 0])
    assert apart.max() <= 1  # of float32, where a value is on the edge between two
    assert (apart > 0).mean() < 0.01
    assert (pixels[:, 1] != pixels[:, 0]).mean() > 0.1


def test_a_later_code_changes_no_frame_before_it():
    weights, codes = random_weights(CLIP), random_codes(CLIP, 1)
    pixels = run(vq_pixel_graph(CLIP, weights, every_code(CLIP)), codes)[1]
    changed = codes.copy()
    changed[:, 7] = (changed[:, 7] + 5) % CODES
    other = run(vq_pixel_graph(CLIP, weights, every_code(CLIP)), changed)[1]
    assert (pixels == other)[:, :4].all()
    for frame in range(4, 12):
        assert (pixels != other)[:, frame].any(), frame


def test_every_weight_in_time_shows():
    weights, codes = random_weights(NARROW), random_codes(NARROW, 1).reshape(-1, 4)
    right = reference_picture(NARROW, weights, codes)
    for name, array in weights.items():
        for tap in range(array.shape[2] if array.ndim == 5 else 0):
            wrong = array.copy()
            wrong[:, :, tap] += 0.3 * array.std()
            other = reference_picture(NARROW, weights | {name: wrong}, codes)
            assert np.abs(right - other).max() > 20 * TOLERANCE, (name, tap)


def test_names_keep_all_taps_in_time():
    for naming in (TAMING, TRANSFORMERS_EMU3):
        found = places(WIDE, naming, "")
        picture = places(FRAMED, naming, "")
        assert {name: place.tensor for name, place in found.items()} == {
            name: place.tensor for name, place in picture.items()
        }
        for name, shape in WIDE.weight_shapes().items():
            assert found[name].shape == picture[name].shape
            assert found[name].weight(np.zeros(found[name].shape)).shape == shape
        assert found["frame.convolution.1.weight"].shape == (4, 4, 3, 3, 3)


@pytest.mark.parametrize("naming", [TAMING, TRANSFORMERS_EMU3])
def test_checkpoints_give_the_decoder_of_clips(naming, tmp_path):
    weights, prefix = random_weights(WIDE), "" if naming is TAMING else "vqmodel."
    stored = {p.tensor: weights[name].reshape(p.shape) for name, p in places(WIDE, naming, prefix).items()}
    tensors, config = (stored, BAAI_VQ) if naming is TAMING else (EMU3_TENSORS | stored, EMU3)
    decoder = emu3_video_decoder(checkpoint_of(tensors, config), Grid(2, 3, 3))
    assert decoder.description == WIDE
    codes = random_codes(WIDE, 1)
    (path,) = decoder.write(decoder.weights, tmp_path / "pixels.onnx", Storage())
    plain = session(str(path)).run(None, {"tokens": codes})[0]
    np.testing.assert_array_equal(plain, run(vq_pixel_graph(WIDE, weights, every_code(WIDE)), codes)[1])
    # A row ends with a token, and a frame with another one.
    positions = tuple(i for i in range(27) if i % 9 < 8 and i % 9 % 4 < 3)
    laid_out = PictureTokens(27, 40, CODES, positions=positions)
    written = np.full((1, 27), 7)
    written[:, positions] = codes + 40
    other = emu3_video_decoder(checkpoint_of(tensors, config), Grid(2, 3, 3), laid_out)
    (path,) = other.write(other.weights, tmp_path / "laid_out.onnx", Storage())
    np.testing.assert_array_equal(session(str(path)).run(None, {"tokens": written})[0], plain)
    missing = next(iter(stored))
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        emu3_video_decoder(
            checkpoint_of({key: array for key, array in tensors.items() if key != missing}, config), Grid(2, 3, 3)
        )


def test_time_without_frames_is_refused():
    with pytest.raises(InvalidArgument, match="frames is 0, expected an integer >= 1 with CausalFrames"):
        dataclasses.replace(CLIP, frames=0)
    with pytest.raises(InvalidArgument, match="expected one with frames"):
        emu3_video_decoder(checkpoint_of({}, BAAI_VQ), Grid(2, 3))
