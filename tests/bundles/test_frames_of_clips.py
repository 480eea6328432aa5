"""`Manifest.frames_of`: never more frames than are decided, whichever kind of decoder makes them."""

from dataclasses import replace

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import Grid
from coupled_sampling.bundles.manifest import PixelGraph


def a_clip(frames, pixel_frames):
    """Frames of 1 by 2 tokens."""
    graph = PixelGraph("pixels.onnx", 2, 2, 1, frames=pixel_frames)
    manifest = open_bundle("fashion").manifest
    return replace(manifest, length=2 * frames, grid=Grid(1, 2, frames), pixel_graph=graph)


@pytest.mark.parametrize(
    ("frames", "pixel_frames", "decided"),
    [
        (4, 4, [1, 2, 3, 4]),
        (4, 8, [2, 4, 6, 8]),
        (5, 33, [1, 9, 17, 25, 33]),  # the first one alone, and eight of each other
        (3, 9, [1, 5, 9]),  # so, or three of each: as few as are decided by either
        (3, 8, [0, 0, 8]),  # neither
        (1, 4, [4]),
    ],
)
def test_as_many_as_whole_frames_of_tokens_decide(frames, pixel_frames, decided):
    manifest = a_clip(frames, pixel_frames)
    assert [manifest.frames_of(tokens) for tokens in range(2 * frames + 1)] == sorted([0, 0, *decided, *decided[:-1]])
