"""Picture decoders in checkpoints: names, codes and refusals, and bundles that make PNGs."""

import dataclasses
import json

import numpy as np
import pytest

from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import ExportSettings, export_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.pictures.names import LLAMAGEN, TAMING, TRANSFORMERS_EMU3, TRANSFORMERS_JANUS, places
from coupled_sampling.export.pictures.pixel_graph import vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_picture, values_to_pixels
from standins.checkpoints import checkpoint_of
from standins.picture_decoders import (
    CHAMELEON,
    EMU3,
    EMU3_VQ,
    FRAMED,
    JANUS,
    JANUS_VQ,
    MODELS,
    NEAREST,
    ORDER,
    PLAIN,
    TAMED,
    TAMING_VQ,
    assert_same_pixels,
    generated,
    loaded,
    picture_decoder_of,
    random_weights,
    run,
    stored,
    write,
)
from standins.picture_models import CODES, LLAMAGEN_CONFIG, SIDE, llamagen_tensors
from standins.torch_archives import archive_of
from standins.wrong_configurations import what_goes_wrong

pytest.importorskip("safetensors")

SPELT = {
    "decoder.conv_in.weight": (LLAMAGEN, PLAIN, "conv_in.weight"),
    "post_quant_conv.bias": (LLAMAGEN, PLAIN, "post_quant.bias"),
    "decoder.mid.1.proj_out.bias": (LLAMAGEN, PLAIN, "mid.attention.output.bias"),
    "decoder.mid.2.norm2.weight": (LLAMAGEN, PLAIN, "mid.block_2.norm2.weight"),
    "decoder.conv_blocks.0.attn.1.q.weight": (LLAMAGEN, PLAIN, "stages.0.attention.1.query.weight"),
    "decoder.conv_blocks.1.res.0.nin_shortcut.bias": (LLAMAGEN, PLAIN, "stages.1.block.0.shortcut.bias"),
    "decoder.conv_blocks.1.upsample.conv.weight": (LLAMAGEN, PLAIN, "stages.1.upsample.weight"),
    "decoder.up.0.block.1.conv2.weight": (TRANSFORMERS_JANUS, PLAIN, "stages.0.block.1.conv2.weight"),
    "decoder.up.2.block.1.conv2.weight": (TAMING, TAMED, "stages.0.block.1.conv2.weight"),
    "decoder.up.1.attn.0.norm.bias": (TAMING, TAMED, "stages.1.attention.0.norm.bias"),
    "decoder.up.1.attn.0.norm.conv_y.weight": (TAMING, FRAMED, "stages.0.attention.0.norm.scale.weight"),
    "decoder.up.0.block.1.norm1.norm_layer.weight": (TAMING, FRAMED, "stages.1.block.1.norm1.weight"),
    "decoder.norm_out.conv_b.bias": (TAMING, FRAMED, "norm_out.shift.bias"),
    "decoder.time_res_stack.0.norm2.running_var": (TAMING, FRAMED, "frame.block.0.norm2.variance"),
    "decoder.time_res_stack.0.conv1.conv.weight": (TAMING, FRAMED, "frame.block.0.conv1.weight"),
    "decoder.time_conv.1.conv.conv.bias": (TAMING, FRAMED, "frame.convolution.1.bias"),
    "post_quant_conv.conv.weight": (TAMING, FRAMED, "post_quant.weight"),
    "decoder.middle_block.attn_norm.norm_layer.bias": (TRANSFORMERS_EMU3, FRAMED, "mid.attention.norm.bias"),
    "decoder.middle_block.attn_1.out_proj.weight": (TRANSFORMERS_EMU3, FRAMED, "mid.attention.output.weight"),
    "decoder.up_block.up.1.attn_norms.1.conv_y.bias": (
        TRANSFORMERS_EMU3,
        FRAMED,
        "stages.0.attention.1.norm.scale.bias",
    ),
}


@pytest.mark.parametrize("tensor", SPELT)
def test_names_in_published_checkpoints(tensor):
    naming, description, name = SPELT[tensor]
    assert places(description, naming, "some.")[name].tensor == f"some.{tensor}"


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_the_decoder_the_codes_and_the_pixels(name, tmp_path):
    config, tensors, description, naming, prefix, own = MODELS[name]
    decoder = stored(description, naming, prefix)
    model, checkpoint = loaded(config, tensors if own is not None else tensors | decoder)
    apart = write(tmp_path / "vq", own, decoder) if own is not None else None
    tokens, codes = generated(model, 2)
    named = np.array(ORDER)[codes] if "vocabulary_map" in config else codes
    with picture_decoder_of(model, checkpoint, apart) as found:
        assert found.description == description
        np.testing.assert_array_equal(found.tokens.codes_of(tokens), named)
        weights = {weight: found.weights(weight) for weight in description.weight_shapes()}
        pixels = run(vq_pixel_graph(found.description, found.weights, found.tokens), tokens)[1]
    for weight, value in random_weights(description).items():
        np.testing.assert_array_equal(weights[weight], value)
    assert_same_pixels(pixels, values_to_pixels(description, reference_picture(description, weights, named)))


SIZES = ("quantize.embedding.weight", "post_quant_conv.weight", "res.0.conv1.weight")
"""Where sizes are read off the tensors, those of these cannot be wrong in themselves."""


@pytest.mark.parametrize("name", MODELS)
def test_missing_left_over_and_wrong_tensors_are_refused(name, tmp_path):
    config, tensors, description, naming, prefix, own = MODELS[name]
    decoder = stored(description, naming, prefix)
    model, checkpoint = loaded(config, tensors)

    def open_with(changed):
        if own is None:
            whole = checkpoint_of(tensors | changed, config)
            return picture_decoder_of(model, whole, None)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return picture_decoder_of(model, checkpoint, write(folder, own, changed))

    needed = [place.tensor for place in places(description, naming, prefix).values()]
    assert len(needed) > 60
    for tensor in [needed[0], needed[2], needed[-1], *np.random.default_rng(0).choice(needed, 6).tolist()]:
        without = {key: array for key, array in decoder.items() if key != tensor}
        with pytest.raises(CheckpointError, match=tensor.replace(".", r"\.")), open_with(without):
            pass
        if naming is LLAMAGEN and tensor.endswith(SIZES):
            continue
        shape = (*decoder[tensor].shape[:-1], 3 + decoder[tensor].shape[-1])
        with pytest.raises(CheckpointError) as refusal, open_with(decoder | {tensor: np.zeros(shape, np.float32)}):
            pass
        assert f"{tensor!r} has shape {shape}, expected {decoder[tensor].shape}" in str(refusal.value)
    extra = {f"{prefix}decoder.up.9.attn.0.q.weight": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"does not use: .*up\.9\.attn"), open_with(decoder | extra):
        pass


def params(**changes):
    inner = TAMING_VQ["model"]["params"] | {key: value for key, value in changes.items() if key != "ddconfig"}
    inner["ddconfig"] = inner["ddconfig"] | changes.get("ddconfig", {})
    return {"model": TAMING_VQ["model"] | {"params": inner}}


GATED = "keys that are not understood"
REFUSED = {
    "unknown key of Janus": ("janus", {"mystery": 1}, f"{GATED}: mystery = 1"),
    "patches of Janus": ("janus", {"num_patches": 4}, "num_patches is 4, and only 3"),
    "width of Janus": ("janus", {"base_channels": 16}, "width is 16, expected a multiple of groups"),
    "blocks of Janus": ("janus", {"num_res_blocks": 3}, "stages|up.0.block.2"),
    "codes of Janus": (
        "janus",
        {"num_embeddings": CODES, "out_channels": 4},
        r"\(3, 64, 3, 3\), expected \(4, 64, 3, 3\)",
    ),
    "unknown key of LlamaGen": ("llamagen", {"mystery": 1}, f"{GATED}: mystery = 1"),
    "multipliers of LlamaGen": ("llamagen", {"decoder_ch_mult": [1, 2, 2]}, r"decoder_ch_mult is \[1, 2, 2\]"),
    "codes of LlamaGen": ("llamagen", {"codebook_size": 99}, "codebook_size is 99, and only 12"),
    "unknown key of Chameleon": ("chameleon", params(mystery=1), f"{GATED}: mystery = 1"),
    "unknown key of its decoder": ("chameleon", params(ddconfig={"mystery": 1}), f"{GATED}: mystery = 1"),
    "remapped codes": ("chameleon", params(remap="used.npy"), "remap is 'used.npy'"),
    "tanh": ("chameleon", params(ddconfig={"tanh_out": True}), "tanh_out is True"),
    "linear attention": ("chameleon", params(ddconfig={"use_linear_attn": True}), "use_linear_attn is True"),
    "no convolution": ("chameleon", params(ddconfig={"resamp_with_conv": False}), "resamp_with_conv is False"),
    "codes of Chameleon": ("chameleon", params(n_embed=13), "has 13 codes, expected one for each of the 12"),
    "another class": ("chameleon", {"model": {"target": "taming.GumbelVQ", "params": {}}}, "taming.GumbelVQ"),
    "unknown key of Emu3": ("emu3", {"mystery": 1}, f"{GATED}: mystery = 1"),
    "heads of Emu3": ("emu3", {"num_attention_heads": 2}, "num_attention_heads is 2"),
    "time of Emu3": ("emu3", {"temporal_downsample_factor": 0}, "temporal_downsample_factor is 0"),
    "unknown key of BAAI's": ("emu3, baai", {"mystery": 1}, f"{GATED}: mystery = 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case, tmp_path):
    name, changes, message = REFUSED[case]
    config, tensors, description, naming, prefix, own = MODELS[name]
    decoder, apart = stored(description, naming, prefix), None
    model, _ = loaded(config, tensors)
    if own is None:
        checkpoint = checkpoint_of(tensors | decoder, config | {"vq_config": config["vq_config"] | changes})
    else:
        checkpoint, apart = checkpoint_of(tensors, config), write(tmp_path / "vq", own | changes, decoder)
    with pytest.raises(CheckpointError, match=message), picture_decoder_of(model, checkpoint, apart):
        pass


def test_configurations_may_leave_out_what_is_default(tmp_path):
    """The published sizes then, which these checkpoints do not have: a block more in every stage."""
    model, _ = loaded(JANUS, MODELS["janus"][1])
    bare = {key: JANUS_VQ[key] for key in ("num_embeddings", "embed_dim", "projection_dim", "num_hidden_layers")}
    checkpoint = checkpoint_of(
        MODELS["janus"][1] | stored(PLAIN, TRANSFORMERS_JANUS, "model.vqmodel."), JANUS | {"vq_config": bare}
    )
    with pytest.raises(CheckpointError, match=r"decoder\.up\.0\.block\.2"), picture_decoder_of(model, checkpoint):
        pass
    model, _ = loaded(EMU3, MODELS["emu3"][1])
    bare = {key: EMU3_VQ[key] for key in ("codebook_size",)}
    tensors = MODELS["emu3"][1] | stored(FRAMED, TRANSFORMERS_EMU3, "vqmodel.")
    with (
        pytest.raises(CheckpointError, match=r"decoder\.time_res_stack\.1"),
        picture_decoder_of(model, checkpoint_of(tensors, EMU3 | {"vq_config": bare})),
    ):
        pass
    flat = write(tmp_path / "flat", TAMING_VQ["model"]["params"], stored(TAMED, TAMING))
    model, checkpoint = loaded(CHAMELEON, MODELS["chameleon"][1])
    with picture_decoder_of(model, checkpoint, flat) as found:
        assert found.description == TAMED


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"IMGIMGAAZ": 4, "IMGIMGABZ": 5, "IMGIMGKAZ": 6}, "picture token 'IMGIMGKAZ'"),
        (
            {"IMGIMGAAZ": 4, "IMGIMGABZ": 5, "IMGIMGADZ": 6},
            "codes 0 to 3, which their names spell; expected each of 0 to 2",
        ),
        ({"IMGIMGAAZ": 4, "IMGIMGABZ": 5, "IMGIMGBZ": 6}, "codes 0 to 1"),
    ],
)
def test_names_that_spell_no_codes_are_refused(vocabulary, message, tmp_path):
    config, tensors, description, naming, _, own = MODELS["chameleon"]
    model, checkpoint = loaded(config | {"vocabulary_map": vocabulary}, tensors)
    inner = own["model"]["params"] | {"n_embed": 3}
    smaller = stored(dataclasses.replace(description, codes=3), naming)
    apart = write(tmp_path / "vq", {"model": {"params": inner}}, smaller)
    with pytest.raises(CheckpointError, match=message), picture_decoder_of(model, checkpoint, apart):
        pass


def test_a_decoder_where_none_belongs_is_refused(tmp_path):
    apart = write(tmp_path / "vq", {}, stored(NEAREST, LLAMAGEN))
    cases = {}
    for name in ("janus", "emu3"):
        config, tensors, description, naming, prefix, _ = MODELS[name]
        cases[name] = loaded(config, tensors | stored(description, naming, prefix))
    model, checkpoint = loaded(LLAMAGEN_CONFIG, llamagen_tensors())
    cases["positions have no room"] = (
        dataclasses.replace(model, decoding=dataclasses.replace(model.decoding, grid=None)),
        checkpoint,
    )
    cases["family llama have no"] = dataclasses.replace(model, family="llama"), checkpoint
    messages = {"janus": "in its own checkpoint", "emu3": "holds a picture decoder itself"}
    for case, (model, checkpoint) in cases.items():
        with (
            pytest.raises(InvalidArgument, match=messages.get(case, case)),
            picture_decoder_of(model, checkpoint, apart),
        ):
            pass


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_its_decoder_has_no_pixels(name):
    config, tensors, *_ = MODELS[name]
    model, checkpoint = loaded(config, tensors)
    with picture_decoder_of(model, checkpoint) as found:
        assert found is None


@pytest.mark.parametrize("name", ["janus", "llamagen", "emu3, baai"])
def test_an_exported_bundle_makes_pictures(name, tmp_path):
    pytest.importorskip("PIL")
    config, tensors, description, naming, prefix, own = MODELS[name]
    decoder = stored(description, naming, prefix)
    source = write(tmp_path / "source", config, tensors if own is not None else tensors | decoder)
    more = [] if own is None else ["--vq", str(write(tmp_path / "vq", own, decoder))]
    out = tmp_path / "bundle"
    assert main(["export", str(source), str(out), "--window", "1,4", *more]) == 0
    manifest = open_bundle(out).manifest
    graph = manifest.pixel_graph
    side = SIDE * description.scale
    assert (graph.file, graph.height, graph.width, graph.channels) == ("pixels.onnx", side, side, 3)
    assert manifest.provenance["pixels"] == {"source": "source" if own is None else "vq"}
    model, _ = loaded(config, tensors)
    tokens, codes = generated(model, 2)
    expected = reference_picture(description, random_weights(description), codes)
    assert_same_pixels(PixelDecoder.open(out)(tokens), values_to_pixels(description, expected))
    if manifest.prompts:
        prompt, picture = next(iter(manifest.prompts)), tmp_path / "grid.png"
        assert (
            main(["generate", str(out), "--prompt", prompt, "--count", "2", "--window", "4", "--out", str(picture)])
            == 0
        )
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_llamagen_is_exported_from_the_files_that_are_published(tmp_path):
    """Both are archives of PyTorch, whose tensors are in the entry ``model``; only the model needs a configuration beside it."""
    pytest.importorskip("ml_dtypes", reason="needs the extra [export]")
    tensors, decoder = llamagen_tensors(), stored(NEAREST, LLAMAGEN)
    for folder, file, content in (("c2i", "c2i_B_256.pt", tensors), ("vq", "vq_ds16_c2i.pt", decoder)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(archive_of({"model": content, "steps": 3}))
    (tmp_path / "c2i" / "config.json").write_text(json.dumps(LLAMAGEN_CONFIG))
    converted = write(tmp_path / "model", LLAMAGEN_CONFIG, tensors), write(tmp_path / "decoder", {}, decoder)
    made = []
    for source, vq in ((tmp_path / "c2i" / "c2i_B_256.pt", tmp_path / "vq" / "vq_ds16_c2i.pt"), converted):
        done = export_checkpoint(source, tmp_path / f"bundle-{source.stem}", ExportSettings(windows=(1,), vq=vq))
        made.append(open_bundle(done.folder).manifest)
    assert made[0].files == made[1].files
    assert made[0].pixel_graph.file in made[0].files
    assert (made[0].name, made[0].grid) == ("c2i_B_256", Grid(SIDE, SIDE))


def test_a_refused_decoder_leaves_no_bundle(tmp_path):
    source = write(tmp_path / "source", LLAMAGEN_CONFIG, llamagen_tensors())
    apart = write(tmp_path / "vq", {"mystery": 1}, stored(NEAREST, LLAMAGEN))
    with pytest.raises(CheckpointError, match=GATED):
        export_checkpoint(source, tmp_path / "bundle", ExportSettings(windows=(1,), vq=apart))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "vq"]
    without = export_checkpoint(source, tmp_path / "bundle", ExportSettings(windows=(1,)))
    assert json.loads((without.folder / "manifest.json").read_text()).get("pixel_graph") is None


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_value_of_any_key_is_refused_or_taken(name):
    config, tensors, description, naming, prefix, own = MODELS[name]
    decoder = stored(description, naming, prefix)
    model, plain = loaded(config, tensors)
    family, part = find_family(plain), "vq_config" if "vq_config" in config else "gen_vision_config"

    def read(changed):
        if own is None:
            family.pictures(model, checkpoint_of(tensors | decoder, config | {part: changed}), None)
        else:
            family.pictures(model, plain, checkpoint_of(decoder, changed))

    assert what_goes_wrong(config[part] if own is None else own, read) == []
