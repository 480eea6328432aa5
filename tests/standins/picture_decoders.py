"""Small checkpoints of picture models with their decoders of pictures, for tests of the exporter."""

import dataclasses
import json

import numpy as np
import pytest

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.export.families import find_family
from coupled_sampling.export.families.vqgan import open_picture_decoder
from coupled_sampling.export.pictures.description import FirstFrame, Stage, VqDescription
from coupled_sampling.export.pictures.names import LLAMAGEN, TAMING, TRANSFORMERS_EMU3, TRANSFORMERS_JANUS, places
from coupled_sampling.export.pictures.pixel_graph import PICTURE
from standins.checkpoints import checkpoint_of
from standins.picture_models import (
    BAAI,
    BACKBONE,
    CODES,
    LLAMAGEN_CONFIG,
    SIDE,
    WIDTH,
    WORDS,
    backbone_tensors,
    janus_tensors,
    llamagen_tensors,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ORDER = tuple(np.random.default_rng(5).permutation(CODES).tolist())
"""The code of Chameleon's and Emu3's picture tokens, one after the other."""

FORCED = {"<racm3:break>": 17, "<eoss>": 16, "<reserved08799>": 20, "<reserved08824>": 30}
CHAMELEON = BACKBONE | {
    "model_type": "chameleon",
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "vocabulary_map": FORCED | {f"IMGIMG{chr(65 + c // 10)}{chr(65 + c % 10)}Z": 4 + i for i, c in enumerate(ORDER)},
}
ROLES = {"<|extra_200|>": 17, "<|extra_201|>": 18, "<|extra_203|>": 20, "<|image token|>": 22}
ROLES |= {"<|image start|>": 23, "<|image end|>": 24, "0": 15, "9": 14, "*": 9}
EMU3_VQ = {
    "codebook_size": CODES,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 64,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "hidden_size": 128,
}
EMU3 = {
    "model_type": "emu3",
    "text_config": BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 9216},
    "vocabulary_map": ROLES | {f"<|visual token {c:06d}|>": 25 + i for i, c in enumerate(ORDER)},
    "vq_config": EMU3_VQ,
}
JANUS_VQ = {
    "num_embeddings": CODES,
    "embed_dim": 5,
    "latent_channels": 6,
    "base_channels": 64,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "num_patches": SIDE,
    "projection_dim": WIDTH,
    "num_hidden_layers": 2,
}
JANUS = {
    "model_type": "janus",
    "text_config": BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 64},
    "vision_config": {"num_image_tokens": SIDE**2},
    "vq_config": JANUS_VQ,
}
DEEPSEEK = {
    "model_type": "multi_modality",
    "language_config": BACKBONE | {"model_type": "llama", "vocab_size": WORDS, "max_position_embeddings": 600},
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "params": {"depth": 2, "input_dim": 5, "n_embed": WIDTH, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "params": {"image_token_embed": WIDTH, "image_token_size": CODES, "n_embed": WIDTH},
    },
    "gen_vision_config": {
        "cls": "VQ-16",
        "model_type": "gen_vision",
        "params": {"image_token_size": CODES, "n_embed": 5},
    },
}
TAMING_VQ = {
    "model": {
        "base_learning_rate": 4.5e-6,
        "target": "taming.models.vqgan.VQModel",
        "params": {
            "embed_dim": 5,
            "n_embed": CODES,
            "ckpt_path": "vqgan.ckpt",
            "lossconfig": {"target": "anything"},
            "ddconfig": {
                "double_z": False,
                "z_channels": 6,
                "resolution": 18,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 64,
                "ch_mult": [1, 2, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [8],
                "dropout": 0.0,
            },
        },
    }
}
BAAI_VQ = {
    "model_type": "Emu3VisionVQ",
    "codebook_size": CODES,
    "embed_dim": 4,
    "z_channels": 4,
    "ch": 64,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "temporal_downsample_factor": 4,
}


def deepseek_tensors():
    """Janus' under the names of DeepSeek's checkpoints."""
    names = {
        "model.language_model.": "language_model.model.",
        "model.generation_embeddings.": "gen_embed.",
        "model.generation_aligner.fc1.": "gen_aligner.layers.0.",
        "model.generation_aligner.hidden_layers.0.": "gen_aligner.layers.2.",
        "model.generation_head.proj_out.": "gen_head.output_mlp_projector.",
        "model.generation_head.vision_head.": "gen_head.vision_head.",
    }
    tensors = {}
    for name, array in janus_tensors().items():
        beginning = next((key for key in names if name.startswith(key)), None)
        if beginning is not None:
            tensors[name.replace(beginning, names[beginning])] = array
    return tensors


def random_weights(description, seed=0):
    """Weights of a decoder whose pictures have a spread of about one half, float32."""
    random, drawn = np.random.default_rng(seed), {}
    for name, shape in description.weight_shapes().items():
        if len(shape) >= 4:
            # Scores of attentions must be large enough for their weights to show.
            factor = 2 if name.endswith(("query.weight", "key.weight")) else 1
            value = random.normal(0, factor / np.sqrt(np.prod(shape[1:])), shape)
        elif name.endswith(("weight", "variance")):
            value = np.exp(random.normal(0, 0.3, shape))
        else:
            value = random.normal(0, 0.3, shape) if name != "codebook" else random.normal(0, 1, shape)
        drawn[name] = value.astype(np.float32)
    return drawn


def stored(description, naming, prefix="", seed=0):
    """`random_weights` as a checkpoint's tensors, with some that no decoder needs."""
    weights, tensors = random_weights(description, seed), {}
    for name, place in places(description, naming, prefix).items():
        value = weights[name]
        if len(place.shape) == 5:
            # What a picture's only frame does not meet must not matter.
            value = np.stack([np.full_like(value, 9), np.full_like(value, -9), value], axis=2)
        tensors[place.tensor] = np.ascontiguousarray(value.reshape(place.shape))
    rest = ("encoder.conv_in.weight", "quant_conv.bias", "quantize.codebook_used")
    return tensors | {f"{prefix}{name}": np.zeros(4, np.float32) for name in rest}


MID = (Stage(128, 2, True), Stage(64, 2), Stage(64, 2))
ATTENDED = (Stage(128, 2), Stage(128, 2, True), Stage(64, 2))
VIDEO = (Stage(128, 2, True), Stage(64, 2))
PLAIN = VqDescription(CODES, 5, 6, MID, SIDE, SIDE, normalised_codes=True)
NEAREST = dataclasses.replace(PLAIN, rounding="nearest")
TAMED = VqDescription(CODES, 5, 6, ATTENDED, SIDE, SIDE)
FRAMED = VqDescription(CODES, 4, 4, VIDEO, SIDE, SIDE, frame=FirstFrame(1, 2))

NORMED = backbone_tensors("model.", heads_normed=True)
EMU3_TENSORS = backbone_tensors("text_model.model.", head="text_model.lm_head.weight")
OTHER_PARTS = ("model.vqmodel.x",)
JANUS_TENSORS = {name: array for name, array in janus_tensors().items() if name not in OTHER_PARTS}

MODELS = {
    "janus": (JANUS, JANUS_TENSORS, PLAIN, TRANSFORMERS_JANUS, "model.vqmodel.", None),
    "janus, deepseek": (DEEPSEEK, deepseek_tensors(), PLAIN, LLAMAGEN, "gen_vision_model.", None),
    "llamagen": (LLAMAGEN_CONFIG, llamagen_tensors(), NEAREST, LLAMAGEN, "", {}),
    "chameleon": (CHAMELEON, NORMED, TAMED, TAMING, "", TAMING_VQ),
    "lumina": (CHAMELEON | {"mask_image_logits": False}, NORMED, TAMED, TAMING, "", TAMING_VQ),
    "emu3": (EMU3, EMU3_TENSORS, FRAMED, TRANSFORMERS_EMU3, "vqmodel.", None),
    "emu3, baai": (BAAI, backbone_tensors("model."), FRAMED, TAMING, "", BAAI_VQ),
}
"""Configuration and tensors of the decoder of tokens, the decoder of pictures, its names, their prefix, and its own
configuration if it is apart."""


def small_pictures(model):
    """A model whose pictures have ``SIDE`` rows and columns, whatever its family says."""
    decoding = model.decoding
    if decoding.grid == Grid(SIDE, SIDE):
        return model
    layout, length = None, SIDE**2
    if decoding.layout is not None:
        spans = decoding.layout.spans
        forced = [span.first for span in spans if span.count == 1]
        ends = tuple(token for token in forced[-2:] if token != forced[0])
        layout = Layout.grid(SIDE, SIDE, (spans[0].first, spans[0].count), row_end=forced[0], end=ends)
        length = layout.length
    return dataclasses.replace(
        model, decoding=dataclasses.replace(decoding, grid=Grid(SIDE, SIDE), layout=layout, length=length)
    )


def loaded(config, tensors):
    """A model in memory, and its checkpoint."""
    checkpoint = checkpoint_of(tensors, config)
    return small_pictures(find_family(checkpoint).load(checkpoint)), checkpoint


def picture_decoder_of(model, checkpoint, apart=None):
    """The context of the model's picture decoder, found by its family."""
    return open_picture_decoder(find_family(checkpoint, model.family), model, checkpoint, apart)


def write(folder, config, tensors):
    """A checkpoint on disk."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, str(folder / "model.safetensors"))
    return folder


def generated(model, rows, seed=0):
    """Tokens int64 (rows, length) that a model may generate, and the codes in them (rows, SIDE^2)."""
    random, decoding = np.random.default_rng(seed), model.decoding
    if decoding.layout is None:
        first = model.description.generated_first
        codes = random.integers(0, CODES, (rows, decoding.length))
        return codes + first, codes
    columns, codes = [], []
    for span in decoding.layout.spans:
        block = random.integers(0, span.count, (rows, span.times))
        columns.append(block + span.first)
        if span.count > 1:
            codes.append(block)
    return np.concatenate(columns, axis=1), np.concatenate(codes, axis=1)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    serialised = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])


def run(model, tokens):
    """The decoder's output before it is made pixels, and the pixels."""
    model.graph.output.append(onnx.helper.make_tensor_value_info(PICTURE, onnx.TensorProto.FLOAT, None))
    return session(model).run([PICTURE, "pixels"], {"tokens": tokens})


def assert_same_pixels(found, values):
    """Pixels are ``values`` without their fractions, one off only where rounding decides."""
    sure = np.abs(values - np.rint(values)) > 0.01
    assert sure.mean() > 0.5
    assert len(np.unique(found)) > 20
    np.testing.assert_array_equal(found[sure], np.floor(values)[sure])
    assert np.abs(found.astype(int) - np.floor(values)).max() <= 1
