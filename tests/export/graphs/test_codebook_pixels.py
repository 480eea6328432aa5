"""The pixel graph of a codebook, run as it is."""

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import pixel_graph, save_graph

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def test_pixels_of_tokens_lie_where_the_grid_puts_them(tmp_path):
    codebook = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 2)).astype(np.uint8)
    path = save_graph(pixel_graph(codebook, 4, 5), tmp_path / "pixels.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(1).integers(0, 9, (3, 20))
    (pixels,) = session.run(None, {"tokens": tokens})
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 8, 15, 2))
    for picture in range(3):
        for row in range(4):
            for column in range(5):
                patch = pixels[picture, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                np.testing.assert_array_equal(patch, codebook[tokens[picture, 5 * row + column]])


def test_frames_of_a_clip_are_pictures_one_after_the_other(tmp_path):
    codebook = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 1)).astype(np.uint8)
    tokens = np.random.default_rng(1).integers(0, 9, (2, 3 * 4))
    pixels = []
    for frames in (3, 0):
        path = save_graph(pixel_graph(codebook, 2, 2, frames), tmp_path / f"{frames}.onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        pixels += session.run(None, {"tokens": tokens.reshape(-1, 12 if frames else 4)})
    assert pixels[0].shape == (2, 3, 4, 6, 1)
    np.testing.assert_array_equal(pixels[0].reshape(pixels[1].shape), pixels[1])


@pytest.mark.parametrize("token", [9, -1])
def test_a_token_without_pixels_is_an_error_never_a_picture(tmp_path, token):
    path = save_graph(pixel_graph(np.zeros((9, 1, 1, 1), np.uint8), 1, 1), tmp_path / "pixels.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"(?i)indices"):
        session.run(None, {"tokens": np.array([[token]])})


@pytest.mark.parametrize(
    ("codebook", "grid", "message"),
    [
        (np.zeros((9, 2, 2, 1)), (2, 2), "codebook is float64"),
        (np.zeros((9, 4), np.uint8), (2, 2), r"codebook is uint8 of shape \(9, 4\)"),
        (np.zeros((9, 2, 2, 1), np.uint8), (0, 2), "rows is 0"),
        (np.zeros((9, 2, 2, 1), np.uint8), (2, 2, -1), "frames is -1"),
    ],
)
def test_codebooks_that_cannot_be_are_refused(codebook, grid, message):
    with pytest.raises(InvalidArgument, match=message):
        pixel_graph(codebook, *grid)
