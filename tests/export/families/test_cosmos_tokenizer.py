"""Cosmos' tokenizer of videos in an archive: names, sizes read off the tensors, and refusals."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import Storage
from coupled_sampling.export.families.cosmos_tokenizer import cosmos_picture_decoder, cosmos_video_encoder
from coupled_sampling.export.pictures import VideoStage, reference_video_pixels
from coupled_sampling.export.pictures.video_description import CausalVideoDescription
from coupled_sampling.export.pictures.video_names import video_places
from standins import checkpoints
from standins.picture_decoders import session
from standins.video_decoders import ENCODED, VIDEO, archive, encoder_weights, video_weights

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

GRID = Grid(VIDEO.rows, VIDEO.columns, VIDEO.frames)
STORED = archive(video_places(VIDEO), video_weights(VIDEO))


def checkpoint_of(tensors):
    return checkpoints.checkpoint_of(tensors, {})


SPELT = {
    "post_quant_conv.conv3d.bias": "post_quant.bias",
    "decoder.conv_in.0.conv3d.weight": "conv_in.space.weight",
    "decoder.conv_in.1.conv3d.weight": "conv_in.time.weight",
    "decoder.mid.block_1.norm1.norm.weight": "mid.block_1.norm1.weight",
    "decoder.mid.block_2.conv2.1.conv3d.bias": "mid.block_2.conv2.time.bias",
    "decoder.mid.attn_1.0.norm.norm.weight": "mid.attention.space.norm.weight",
    "decoder.mid.attn_1.0.q.conv3d.weight": "mid.attention.space.query.weight",
    "decoder.mid.attn_1.1.proj_out.conv3d.bias": "mid.attention.time.output.bias",
    "decoder.up.2.block.0.conv1.0.conv3d.weight": "stages.0.block.0.conv1.space.weight",
    "decoder.up.2.upsample.conv2.conv3d.weight": "stages.0.upsample.space.weight",
    "decoder.up.1.upsample.conv1.conv3d.weight": "stages.1.upsample.time.weight",
    "decoder.up.1.upsample.conv3.conv3d.bias": "stages.1.upsample.mix.bias",
    "decoder.up.0.block.0.nin_shortcut.conv3d.weight": "stages.2.block.0.shortcut.weight",
    "decoder.norm_out.norm.bias": "norm_out.bias",
    "decoder.conv_out.1.conv3d.weight": "conv_out.time.weight",
}


def test_names_in_the_published_archive():
    found = {place.tensor: name for name, place in video_places(CausalVideoDescription(5, 40, 64)).items()}
    assert {tensor: found[tensor] for tensor in SPELT} == SPELT
    assert len(found) == 176
    assert not [tensor for tensor in found if tensor.startswith("decoder.up.2.upsample.conv1")]


@pytest.mark.parametrize("rounding", ["floor", "nearest"])
def test_an_archive_gives_the_decoder_and_its_frames(rounding, tmp_path):
    decoder = cosmos_picture_decoder(checkpoint_of(STORED), GRID, first=7, rounding=rounding)
    assert decoder.description == dataclasses.replace(VIDEO, rounding=rounding)
    for name, value in video_weights(VIDEO).items():
        np.testing.assert_array_equal(decoder.weights(name), value)
    (path,) = decoder.write(decoder.weights, tmp_path / "pixels.onnx", Storage())
    tokens = np.random.default_rng(0).integers(7, 64_007, (1, 18))
    pixels = session(str(path)).run(None, {"tokens": tokens})[0]
    expected = reference_video_pixels(decoder.description, decoder.weights, decoder.tokens, tokens)
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert (pixels != expected).mean() < 0.01


ENCODER = video_places(ENCODED, encoder=True)

SPELT_IN_ENCODERS = {
    "encoder.conv_in.1.conv3d.weight": "conv_in.time.weight",
    "encoder.down.0.block.1.conv1.0.conv3d.bias": "stages.0.block.1.conv1.space.bias",
    "encoder.down.0.downsample.conv1.conv3d.weight": "stages.0.downsample.space.weight",
    "encoder.down.0.downsample.conv2.conv3d.weight": "stages.0.downsample.time.weight",
    "encoder.down.1.downsample.conv3.conv3d.weight": "stages.1.downsample.mix.weight",
    "encoder.mid.attn_1.1.norm.norm.bias": "mid.attention.time.norm.bias",
    "encoder.norm_out.norm.weight": "norm_out.weight",
    "encoder.conv_out.1.conv3d.bias": "conv_out.time.bias",
    "quant_conv.conv3d.weight": "quant.weight",
}


def test_names_in_the_published_archive_of_the_encoder():
    published = video_places(CausalVideoDescription(5, 40, 64), encoder=True)
    found = {place.tensor: name for name, place in published.items()}
    assert {tensor: found[tensor] for tensor in SPELT_IN_ENCODERS} == SPELT_IN_ENCODERS
    assert not [
        tensor for tensor in found if tensor.startswith(("encoder.down.1.downsample.conv2", "encoder.down.2.down"))
    ]
    assert published["stages.1.block.0.shortcut.weight"].shape == (512, 256, 1, 1, 1)


def test_an_archive_of_both_halves_gives_each():
    weights = encoder_weights(ENCODED)
    both = archive(ENCODER, weights) | archive(video_places(ENCODED), video_weights(ENCODED))
    for tensors in (archive(ENCODER, weights), both):
        description, read = cosmos_video_encoder(checkpoint_of(tensors), GRID)
        assert description == ENCODED
        for name, value in weights.items():
            np.testing.assert_array_equal(read(name), value)
    assert cosmos_picture_decoder(checkpoint_of(both), GRID).description == dataclasses.replace(ENCODED, base=128)
    tensor = "encoder.down.1.downsample.conv1.conv3d.bias"
    with pytest.raises(CheckpointError, match=tensor.replace(".", r"\.")):
        cosmos_video_encoder(checkpoint_of({name: both[name] for name in both if name != tensor}), GRID)
    with pytest.raises(
        CheckpointError, match=r"quant_conv.*\(16, 5, 1, 1, 1\), expected 5 axes and 6 entries in axis 0"
    ):
        cosmos_video_encoder(checkpoint_of(both | {"quant_conv.conv3d.weight": np.zeros((16, 5, 1, 1, 1))}), GRID)


def test_missing_left_over_and_wrong_tensors_are_refused():
    needed = [place.tensor for place in video_places(VIDEO).values()]
    for tensor in [needed[0], needed[-1], *np.random.default_rng(0).choice(needed[2:-1], 6).tolist()]:
        without = {key: array for key, array in STORED.items() if key != tensor}
        with pytest.raises(CheckpointError, match=tensor.replace(".", r"\.")):
            cosmos_picture_decoder(checkpoint_of(without), GRID)
    for extra in ("decoder.up.9.attn.0.0.q.conv3d.weight", "loss.weight"):
        with pytest.raises(CheckpointError, match=f"does not use: {extra}"):
            cosmos_picture_decoder(checkpoint_of(STORED | {extra: np.zeros(3, np.float32)}), GRID)
    for tensor, shape in {
        "decoder.up.0.block.1.conv2.1.conv3d.weight": (4, 4, 1, 1, 1),
        "decoder.up.0.block.0.conv1.0.conv3d.weight": (4, 8),
        "post_quant_conv.conv3d.weight": (16, 16, 1, 1, 1),
        "decoder.conv_out.1.conv3d.bias": (24,),
    }.items():
        with pytest.raises(CheckpointError, match=r"has shape \(" + ", ".join(map(str, shape))):
            cosmos_picture_decoder(checkpoint_of(STORED | {tensor: np.zeros(shape, np.float32)}), GRID)
    with pytest.raises(CheckpointError, match=r"decoder\.up\.0\.block\.0\.conv1"):
        cosmos_picture_decoder(checkpoint_of({"decoder.weight": np.zeros(2, np.float32)}), GRID)


def test_a_decoder_that_doubles_frames_first_is_refused():
    stages = (VideoStage(8, 1, space=True, time=True), VideoStage(8, 2, space=True), VideoStage(4, 2))
    legacy = dataclasses.replace(VIDEO, stages=stages)
    with pytest.raises(CheckpointError, match=r"decoder\.up\.2\.upsample\.conv1.*legacy_mode"):
        cosmos_picture_decoder(checkpoint_of(archive(video_places(legacy), video_weights(legacy))), GRID)


def test_a_grid_of_a_picture_is_refused():
    for make in (cosmos_picture_decoder, cosmos_video_encoder):
        with pytest.raises(InvalidArgument, match="expected one with frames"):
            make(checkpoint_of(STORED), Grid(2, 3))
