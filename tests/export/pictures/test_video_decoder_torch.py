"""Exported decoders of videos against PyTorch, with random weights.

Cosmos' and BAAI's are modules written from the published structure and names (`cosmos_modules`, `vqgan_modules`) and were not run
beside the originals, transformers' Emu3 is its own class. No published weights were run. Run with -s for the table.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.export.families.cosmos_tokenizer import cosmos_picture_decoder, cosmos_video_encoder
from coupled_sampling.export.families.emu3_video import emu3_video_decoder
from coupled_sampling.export.pictures import CausalVideoDescription, VideoStage
from coupled_sampling.export.pictures.pixel_graph import vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_picture
from coupled_sampling.export.pictures.video_pixel_graph import video_pixel_graph
from coupled_sampling.export.pictures.video_reference import reference_video
from coupled_sampling.export.pictures.video_token_graph import DIGITS, video_token_graph
from standins.checkpoints import checkpoint_of
from standins.exported_windows import one_thread
from standins.picture_decoders import BAAI_VQ, run, session
from standins.picture_models import CODES

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from standins.cosmos_modules import VideoDecoder, VideoEncoder  # noqa: E402
from standins.vqgan_modules import Emu3Decoder, Emu3VisionVq  # noqa: E402

TOLERANCE = 1e-4
"""Largest difference of a frame, or of digits, whose values have a standard deviation of 0.2 to 3."""

FURTHEST = {}

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print("\n\nlargest difference of frames from PyTorch, float32, random weights, before pixels are made of them")
    for case, (difference, spread) in FURTHEST.items():
        print(f"{case:46} {difference:.1e} (standard deviation {spread:.2f})")


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "embedding" in name:
                value.copy_(noise)
            elif value.ndim == 1:
                value.copy_(torch.exp(0.3 * noise) if name.endswith(("weight", "running_var")) else 0.3 * noise)
            else:
                factor = 2 if ".q." in name or ".k." in name else 1
                value.copy_(factor * noise / value[0].numel() ** 0.5)
            if "decoder.conv_out.1" in name:
                value.div_(8)  # each transform adds up eight coefficients
    return model.eval()


def arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def compared(case, picture, expected):
    difference, spread = float(np.abs(picture - expected).max()), float(expected.std())
    FURTHEST[case] = difference, spread
    assert difference <= TOLERANCE
    assert 0.2 <= spread <= 3


STAGES = (VideoStage(32, 2, space=True), VideoStage(32, 1, space=True, time=True), VideoStage(16, 2))


@pytest.mark.parametrize("frames", [1, 3])
def test_cosmos_frames_are_those_of_pytorch(frames):
    model = randomised(VideoDecoder(6, STAGES))
    decoder = cosmos_picture_decoder(checkpoint_of(arrays(model), {}), Grid(2, 3, frames))
    description = decoder.description
    codes = np.random.default_rng(0).integers(0, 64_000, (2, description.grid_tokens))
    with torch.no_grad():
        expected = model(torch.as_tensor(codes).unflatten(1, (frames, 2, 3))).numpy()
    picture = run(video_pixel_graph(description, decoder.weights, decoder.tokens), codes)[0]
    clips = picture.reshape(2, description.pixel_frames, *picture.shape[1:]).swapaxes(1, 2)
    compared(f"Cosmos, {frames} of codes", clips, expected)
    assert np.abs(reference_video(description, decoder.weights, codes) - expected).max() <= TOLERANCE
    wrong = dataclasses.replace(description, epsilon=1e-3)
    assert np.abs(reference_video(wrong, decoder.weights, codes) - expected).max() > 2 * TOLERANCE


ENCODED = CausalVideoDescription(
    3, 2, 3, tuple(dataclasses.replace(stage, blocks=2) for stage in STAGES), latent=6, base=8
)


def test_cosmos_digits_are_those_of_pytorch():
    model = randomised(VideoEncoder(6, 8, ENCODED.encoder_stages))
    description, read = cosmos_video_encoder(checkpoint_of(arrays(model), {}), Grid(2, 3, 3))
    assert description == ENCODED
    pixels = np.random.default_rng(0).integers(0, 256, (2, 17, 32, 48, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = model(torch.as_tensor(pixels)).numpy()
    graph = video_token_graph(description, read)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(DIGITS, onnx.TensorProto.FLOAT, None))
    tokens, digits = session(graph).run(["tokens", DIGITS], {"pixels": pixels})
    half = np.array([4, 4, 4, 2, 2, 2])[:, None, None, None]
    compared("Cosmos' encoder, digits", digits.reshape(2, 3, 6, 2, 3).swapaxes(1, 2) + half, expected)
    places = np.array([1, 8, 64, 512, 2560, 12_800])[:, None, None, None]
    codes = (np.rint(expected) * places).sum(1).reshape(2, -1)
    sure = (np.abs(expected - np.floor(expected) - 0.5) > 1e-3).all(1).reshape(2, -1)
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(tokens[sure], codes[sure])


def transformers_emu3():
    transformers = pytest.importorskip("transformers")
    sizes = {"codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "base_channels": 64, "hidden_size": 128}
    sizes |= {"channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1]}
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    config = transformers.Emu3Config(text_config=text, vq_config=sizes, vocabulary_map={"<image>": 1})
    model = randomised(transformers.Emu3ForConditionalGeneration(config))
    return model.model.vqmodel.decode, checkpoint_of(arrays(model), {"vq_config": sizes})


def baai_emu3():
    model = randomised(Emu3VisionVq(CODES, 4, Emu3Decoder(4, 64, [1, 2], 1, {1}, 2)))
    return model.decode_clip, checkpoint_of(arrays(model), BAAI_VQ)


@pytest.mark.parametrize("make", [transformers_emu3, baai_emu3])
def test_emu3_frames_are_those_of_pytorch(make):
    decode, checkpoint = make()
    decoder = emu3_video_decoder(checkpoint, Grid(2, 3, 3))
    codes = np.random.default_rng(0).integers(0, CODES, (2, 18))
    with torch.no_grad():
        expected = decode(torch.as_tensor(codes).unflatten(1, (3, 2, 3))).flatten(0, 1).numpy()
    picture = run(vq_pixel_graph(decoder.description, decoder.weights, decoder.tokens), codes)[0]
    compared(make.__name__, picture, expected)
    reference = reference_picture(decoder.description, decoder.weights, codes.reshape(-1, 6))
    assert np.abs(reference - expected).max() <= TOLERANCE
