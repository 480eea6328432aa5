"""Exported picture decoders against PyTorch: small decoders of the real architectures with random weights.

Janus' and Emu3's are transformers' own classes. DeepSeek's, LlamaGen's, Chameleon's and BAAI's Emu3 are modules written from the
published structure and names (`vqgan_modules`) and were not run beside the originals. No published weights were run. Every
case names wrong readings that must show. Run with -s for the table.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.export.bundles import ExportSettings, export_checkpoint
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.pictures import Stage
from coupled_sampling.export.pictures.pixel_graph import PICTURE, vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_picture
from standins.exported_windows import one_thread
from standins.picture_decoders import (
    BAAI_VQ,
    CHAMELEON,
    DEEPSEEK,
    NORMED,
    ROLES,
    TAMING_VQ,
    deepseek_tensors,
    generated,
    picture_decoder_of,
    small_pictures,
    write,
)
from standins.picture_models import (
    BAAI,
    BACKBONE,
    CODES,
    LLAMAGEN_CONFIG,
    SIDE,
    WIDTH,
    WORDS,
    backbone_tensors,
    llamagen_tensors,
)

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

from standins.vqgan_modules import Emu3Decoder, Emu3VisionVq, LlamaGenDecoder, TamingDecoder, VqModel  # noqa: E402

TOLERANCE = 5e-5
"""Largest difference of a picture, whose values have a standard deviation of 0.2 to 2."""

FURTHEST = {}

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print("\n\nlargest difference of pictures from PyTorch, float32, random weights, before pixels are made of them")
    for case, (difference, spread, pixels, most) in FURTHEST.items():
        print(f"{case:46} {difference:.1e} (standard deviation {spread:.2f}); pixels: {pixels:.2%} differ, by {most}")


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "embedding" in name:
                drawn = noise
            elif value.ndim == 1:
                positive = name.endswith(("weight", "running_var"))
                drawn = torch.exp(0.3 * noise) if positive else 0.3 * noise
            else:
                factor = 2 if name.endswith(("q.weight", "k.weight", "q_proj.weight", "k_proj.weight")) else 1
                drawn = factor * noise / value[0].numel() ** 0.5
            # So little goes into the first norms that their epsilon shows.
            value.copy_(drawn * 1e-3 if "decoder.conv_in" in name else drawn)
    return model.eval()


def arrays(model, prefix=""):
    return {f"{prefix}{name}": value.detach().numpy() for name, value in model.state_dict().items()}


def janus(folder):
    text = BACKBONE | {"model_type": "llama", "vocab_size": WORDS, "max_position_embeddings": 64}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    vision |= {"projection_dim": WIDTH, "num_image_tokens": SIDE**2}
    vq = {"embed_dim": 5, "num_embeddings": CODES, "latent_channels": 6, "base_channels": 64, "num_patches": SIDE}
    vq |= {
        "channel_multiplier": [1, 1, 2],
        "num_res_blocks": 1,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
    }
    config = transformers.JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=3)
    model = randomised(transformers.JanusForConditionalGeneration(config))
    model.save_pretrained(folder)
    return lambda codes: model.decode_image_tokens(codes).permute(0, 3, 1, 2), None


def deepseek(folder):
    model = randomised(VqModel(CODES, 5, 6, LlamaGenDecoder(6, 64, [1, 1, 2], 2), normalised=True))
    write(folder, DEEPSEEK, deepseek_tensors() | arrays(model, "gen_vision_model."))
    return lambda codes: model.decode_code(codes.unflatten(1, (SIDE, SIDE))), None


def llamagen(folder, *, multipliers, normalised=True):
    model = randomised(VqModel(CODES, 8, 16, LlamaGenDecoder(16, 64, multipliers, 2), normalised=normalised))
    write(folder, LLAMAGEN_CONFIG, llamagen_tensors())
    settings = {"decoder_ch_mult": multipliers, "codebook_l2_norm": normalised, "z_channels": 16}
    apart = write(folder.with_name("vq"), settings if not normalised else {}, arrays(model))
    return lambda codes: model.decode_code(codes.unflatten(1, (SIDE, SIDE))), apart


def chameleon(folder, *, lumina=False):
    model = randomised(VqModel(CODES, 5, 6, TamingDecoder(6, 64, [1, 2, 2], 1, {1}), normalised=False))
    write(folder, CHAMELEON | ({"mask_image_logits": False} if lumina else {}), NORMED)
    apart = write(folder.with_name("vq"), TAMING_VQ, arrays(model))
    return lambda codes: model.decode_code(codes.unflatten(1, (SIDE, SIDE))), apart


def emu3(folder):
    vq = {"codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "base_channels": 64, "hidden_size": 128}
    vq |= {"channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1]}
    text = BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 9216, "pad_token_id": 0}
    text |= {"bos_token_id": 20, "eos_token_id": 21}
    names = ROLES | {"<image>": 12, "<|extra_204|>": 21}
    names |= {f"<|visual token {i:06d}|>": 25 + i for i in range(CODES)}
    config = transformers.Emu3Config(text_config=text, vq_config=vq, vocabulary_map=names)
    model = randomised(transformers.Emu3ForConditionalGeneration(config))
    model.save_pretrained(folder)
    return lambda codes: model.model.vqmodel.decode(codes.unflatten(1, (SIDE, SIDE))), None


def baai(folder):
    model = randomised(Emu3VisionVq(CODES, 4, Emu3Decoder(4, 64, [1, 2], 1, {1}, 2)))
    write(folder, BAAI, backbone_tensors("model."))
    apart = write(folder.with_name("vq"), BAAI_VQ, arrays(model))
    return lambda codes: model.decode_code(codes.unflatten(1, (SIDE, SIDE))), apart


def changed(**changes):
    return lambda description, weights: (dataclasses.replace(description, **changes), weights)


def exchanged(one, other):
    """A reading that takes every weight of ``one`` for that of ``other``, and the reverse."""
    swap = {one: other, other: one}

    def wrong(description, weights):
        return description, lambda name: weights(".".join(swap.get(part, part) for part in name.split(".")))

    return wrong


def without_attention(description, weights):
    stages = tuple(Stage(stage.width, stage.blocks) for stage in description.stages)
    return dataclasses.replace(description, stages=stages), weights


def frame(**changes):
    def wrong(description, weights):
        return dataclasses.replace(description, frame=dataclasses.replace(description.frame, **changes)), weights

    return wrong


COMMON = [changed(epsilon=1e-5), changed(groups=16), exchanged("query", "key")]
LENGTHS = [changed(normalised_codes=False)]
FRAMES = [exchanged("scale", "shift"), frame(convolutions=1), frame(blocks=0), frame(epsilon=0.1)]
CASES = {
    "Janus": (janus, {}, [*COMMON, *LENGTHS, without_attention]),
    "Janus, DeepSeek's names": (deepseek, {}, [*COMMON, *LENGTHS, without_attention]),
    "LlamaGen, five stages (VQ-16)": (llamagen, {"multipliers": [1, 1, 2, 2, 4]}, [*COMMON, *LENGTHS]),
    "LlamaGen, four stages (VQ-8)": (llamagen, {"multipliers": [1, 2, 2, 4]}, [*COMMON, without_attention]),
    "LlamaGen, codes as they are": (
        llamagen,
        {"multipliers": [1, 2], "normalised": False},
        [changed(normalised_codes=True)],
    ),
    "Chameleon": (chameleon, {}, [*COMMON, changed(normalised_codes=True), without_attention]),
    "Lumina-mGPT": (chameleon, {"lumina": True}, [changed(normalised_codes=True)]),
    "Emu3, names of save_pretrained": (emu3, {}, [*COMMON, *FRAMES, without_attention]),
    "Emu3, BAAI's names": (baai, {}, [*COMMON, *FRAMES, without_attention]),
}
HALF = {"llamagen"}
"""Makers of models whose authors round pixels to the nearest."""


def authors_pixels(picture, *, nearest):
    """torchvision's ``save_image`` of values in [-1, 1], and the others' clip and cast."""
    if nearest:
        unit = (picture.clamp(-1, 1) + 1) / 2
        return unit.mul(255).add(0.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return np.clip((picture.permute(0, 2, 3, 1).numpy() + 1) / 2 * 255, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_pytorch(case, tmp_path):
    make, settings, wrong_readings = CASES[case]
    decode, apart = make(tmp_path / "checkpoint", **settings)
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        model = small_pictures(find_family(checkpoint).load(checkpoint))
        with picture_decoder_of(model, checkpoint, apart) as found:
            tokens, _ = generated(model, 3)
            codes = found.tokens.codes_of(tokens)
            with torch.no_grad():
                expected = decode(torch.as_tensor(codes))
            graph = vq_pixel_graph(found.description, found.weights, found.tokens)
            graph.graph.output.append(onnx.helper.make_tensor_value_info(PICTURE, onnx.TensorProto.FLOAT, None))
            session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
            picture, pixels = session.run([PICTURE, "pixels"], {"tokens": tokens})
            right = authors_pixels(expected, nearest=make.__name__ in HALF)
            expected = expected.numpy()
            apart_by = np.abs(pixels.astype(int) - right)
            difference, spread = float(np.abs(picture - expected).max()), float(expected.std())
            FURTHEST[case] = difference, spread, float((apart_by > 0).mean()), int(apart_by.max())
            assert difference <= TOLERANCE
            assert 0.2 <= spread <= 2
            assert apart_by.max() <= 1
            assert (apart_by > 0).mean() < 0.005
            reference = reference_picture(found.description, found.weights, codes)
            assert np.abs(reference - expected).max() <= TOLERANCE
            for i, wrong_reading in enumerate(wrong_readings):
                description, weights = wrong_reading(found.description, found.weights)
                wrong = reference_picture(description, weights, codes)
                assert np.abs(wrong - expected).max() > 20 * TOLERANCE, f"wrong reading {i} does not show"


@pytest.mark.parametrize("case", ["Janus", "LlamaGen, four stages (VQ-8)", "Emu3, BAAI's names"])
def test_a_bundle_makes_the_authors_pixels(case, tmp_path):
    make, settings, _ = CASES[case]
    decode, apart = make(tmp_path / "checkpoint", **settings)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportSettings(windows=(1,), vq=apart))
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        tokens, codes = generated(find_family(checkpoint).load(checkpoint), 2)
    with torch.no_grad():
        expected = authors_pixels(decode(torch.as_tensor(codes)), nearest=make.__name__ in HALF)
    differing = np.abs(PixelDecoder.open(tmp_path / "bundle")(tokens).astype(int) - expected)
    assert differing.max() <= 1
    assert (differing > 0).mean() < 0.005
    assert len(np.unique(expected)) > 60
