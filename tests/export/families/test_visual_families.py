"""Families of picture models without PyTorch: checkpoints in, the right weights, tokens and layouts, or a refusal.

The oracle is one forward pass of a Llama with the variations of these families, written here on their own tensor names.
"""

import json

import numpy as np
import pytest

from coupled_sampling.bundles.manifest import Grid, PaddedPrompt
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.bundles import ExportSettings, export_checkpoint
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.families.vqgan import open_picture_decoder
from coupled_sampling.export.graphs.decoder import decoder_graph
from coupled_sampling.export.graphs.reference import reference_logits
from standins.checkpoints import checkpoint_of
from standins.opening import on_cpu
from standins.picture_models import (
    BAAI,
    BACKBONE,
    CODES,
    EMU3_HEAD,
    LLAMAGEN_CONFIG,
    SIDE,
    WIDTH,
    WORDS,
    backbone_tensors,
    janus_logits,
    janus_tensors,
    joint_logits,
    llamagen_logits,
    llamagen_tensors,
)
from standins.published import published, recommended
from standins.tree_windows import furthest_of_trees
from standins.wrong_configurations import what_goes_wrong

NAMED = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 4 + i for i in range(CODES)}
CHAMELEON = BACKBONE | {
    "model_type": "chameleon",
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "vocabulary_map": NAMED | {"<racm3:break>": 17, "<eoss>": 16, "<reserved08799>": 20, "<reserved08824>": 30},
    "swin_norm": False,
    "vq_config": {"anything": 1},
}
SWIN = CHAMELEON | {"swin_norm": True}
LUMINA = CHAMELEON | {"mask_image_logits": False, "z_loss_weight": 0.0, "dropout": 0.05}
ROLES = {"<|extra_200|>": 17, "<|extra_201|>": 18, "<|extra_203|>": 20, "<|extra_204|>": 21}
ROLES |= {"<|image token|>": 22, "<|image start|>": 23, "<|image end|>": 24}
EMU3 = {
    "model_type": "emu3",
    "text_config": BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 9216},
    "vocabulary_map": ROLES | {"0": 15, "9": 14, "*": 9} | {f"<|visual token {i:06d}|>": 25 + i for i in range(CODES)},
    "vq_config": {"anything": 1},
}
JANUS = {
    "model_type": "janus",
    "text_config": BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 700},
    "vision_config": {"num_image_tokens": SIDE**2},
    "vq_config": {"num_embeddings": CODES, "embed_dim": 5, "projection_dim": WIDTH, "num_hidden_layers": 2},
    "image_token_id": 3,
}


NORMED = backbone_tensors("model.", heads_normed=True) | {"model.vqmodel.encoder.weight": np.zeros(3, np.float32)}
MODELS = {
    "chameleon": (CHAMELEON, NORMED, slice(4, 16), joint_logits("model.", "lm_head.weight", slice(4, 16))),
    "swin": (SWIN, NORMED, slice(4, 16), joint_logits("model.", "lm_head.weight", slice(4, 16), swin=True)),
    "lumina": (LUMINA, NORMED, slice(4, 21), joint_logits("model.", "lm_head.weight", slice(4, 21))),
    "emu3": (
        EMU3,
        backbone_tensors("text_model.model.", head=EMU3_HEAD) | {"vqmodel.x": np.zeros(3, np.float32)},
        slice(17, WORDS),
        joint_logits("text_model.model.", EMU3_HEAD, slice(17, WORDS), base=1e6),
    ),
    "emu3, own": (
        BAAI,
        backbone_tensors("model."),
        slice(17, WORDS),
        joint_logits("model.", "lm_head.weight", slice(17, WORDS), base=1e6),
    ),
    "janus": (JANUS, janus_tensors(), slice(WORDS, WORDS + CODES), janus_logits),
    "llamagen": (LLAMAGEN_CONFIG, llamagen_tensors(), slice(CODES), llamagen_logits),
}


def load(name, config=None, tensors=None, positions=None):
    checkpoint = checkpoint_of(tensors or MODELS[name][1], config or MODELS[name][0])
    return find_family(checkpoint).load(checkpoint, positions)


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_gives_the_models_logits(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    config, tensors, generated, logits = MODELS[model]
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors, str(tmp_path / "model.safetensors"))
    with open_checkpoint(tmp_path) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, 10)
        vocab_size = exportable.description.vocab_size
        tokens = np.random.default_rng(1).integers(0, vocab_size, 10)
        found = reference_logits(exportable.description, exportable.weights, tokens)
    expected = logits(tensors, tokens)
    assert expected.std() > 0.3
    np.testing.assert_allclose(found[:, generated], expected, atol=2e-5)
    assert np.isneginf(np.delete(found, generated, axis=1)).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_is_the_reference(model):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    exportable = load(model, positions=10)
    description = exportable.description
    session = onnxruntime.InferenceSession(decoder_graph(description, exportable.weights).SerializeToString())
    cache = np.zeros((1, description.kv_heads, description.cache_length, description.head_size), np.float32)
    tokens = np.random.default_rng(2).integers(0, description.vocab_size, 9)
    inputs = {value.name: cache for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    inputs |= {"input_ids": tokens[None], "start": np.array([0]), "kv_length": np.array([9])}
    found = session.run(["logits"], inputs)[0][0]
    expected = reference_logits(description, exportable.weights, tokens)
    finite = np.isfinite(expected)
    assert (np.isneginf(found) == ~finite).all()
    np.testing.assert_allclose(found[finite], expected[finite], atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_windows_may_be_trees(model):
    pytest.importorskip("onnx")
    assert furthest_of_trees(load(model, positions=None if model == "llamagen" else 20).description) <= 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_missing_left_over_and_wrong_tensors_are_refused(model):
    _, tensors, _, _ = MODELS[model]
    others = ("vqmodel", "vision_model", "model.aligner")
    needed = [
        n for n in tensors if not any(part in n for part in others) and (model != "janus" or n != "lm_head.weight")
    ]
    assert len(needed) > 15
    for name in needed:
        with pytest.raises(CheckpointError, match=name):
            load(model, tensors={key: array for key, array in tensors.items() if key != name})
        with pytest.raises(CheckpointError, match=name):
            load(model, tensors=tensors | {name: np.zeros((3, 5), np.float32)})
    with pytest.raises(CheckpointError, match=r"lora\.weight"):
        load(model, tensors=tensors | {"lora.weight": np.zeros((2, WIDTH), np.float32)})


def nested(config, part, **changes):
    return config | {part: config[part] | changes}


GATED = "keys that are not understood"
REFUSED = {
    "unknown key of Chameleon": ("chameleon", CHAMELEON | {"residual_scale": 2}, f"{GATED}: residual_scale = 2"),
    "head size of Chameleon": ("chameleon", CHAMELEON | {"head_dim": 8}, "head_dim is 8"),
    "tied Chameleon": ("chameleon", CHAMELEON | {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    "no picture tokens": ("chameleon", CHAMELEON | {"vocabulary_map": {"a": 1}}, "0 tokens are named IMGIMG"),
    "no names": ("chameleon", CHAMELEON | {"vocabulary_map": None}, "vocabulary_map is None"),
    "holes": ("chameleon", nested(CHAMELEON, "vocabulary_map", IMGIMGAAZ=33), "12 tokens are named IMGIMG"),
    "no row ends": ("lumina", LUMINA | {"vocabulary_map": NAMED}, "vocabulary_map has no '<reserved08799>'"),
    "dynamic scaling": ("chameleon", CHAMELEON | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "unknown key of Emu3": ("emu3", EMU3 | {"mystery": 1}, f"{GATED}: mystery = 1"),
    "unknown key of its text": ("emu3", nested(EMU3, "text_config", mystery=1), f"{GATED}: mystery = 1"),
    "no frame end": ("emu3", EMU3 | {"vocabulary_map": {"<|visual token 000000|>": 3}}, "has no .*extra_201"),
    "unknown key of BAAI's": ("emu3, own", BAAI | {"mystery": 1}, f"{GATED}: mystery = 1"),
    "unknown key of Janus": ("janus", JANUS | {"mystery": 1}, f"{GATED}: mystery = 1"),
    "unknown key of its codes": ("janus", nested(JANUS, "vq_config", mystery=1), f"{GATED}: mystery = 1"),
    "unknown key of its words": ("janus", nested(JANUS, "text_config", mystery=1), f"{GATED}: mystery = 1"),
    "activation of Janus": ("janus", nested(JANUS, "vq_config", hidden_act="relu"), "hidden_act is 'relu'"),
    "picture of Janus": ("janus", nested(JANUS, "vision_config", num_image_tokens=8), "num_image_tokens is 8"),
    "unknown key of LlamaGen": ("llamagen", LLAMAGEN_CONFIG | {"mystery": 1}, f"{GATED}: mystery = 1"),
    "text to picture": ("llamagen", LLAMAGEN_CONFIG | {"gpt_type": "t2i"}, "gpt_type is 't2i'"),
    "block": ("llamagen", LLAMAGEN_CONFIG | {"block_size": 8}, "block_size is 8"),
    "no block": ("llamagen", {key: LLAMAGEN_CONFIG[key] for key in ("model_type", "n_head")}, "no 'block_size'"),
    "width": ("llamagen", LLAMAGEN_CONFIG | {"dim": 32}, "dim is 32"),
    "classes": ("llamagen", LLAMAGEN_CONFIG | {"num_classes": 9}, "has 7 rows, expected 9 or 10"),
    "no heads": ("llamagen", LLAMAGEN_CONFIG | {"n_head": None}, "say n_head"),
    "prefix": ("llamagen", LLAMAGEN_CONFIG | {"cls_token_num": 120}, "cls_token_num is 120"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case):
    model, config, message = REFUSED[case]
    load(model)
    with pytest.raises(CheckpointError, match=message):
        load(model, config)


@pytest.mark.parametrize("model", MODELS)
def test_more_positions_than_the_checkpoint_has_are_refused(model):
    with pytest.raises(InvalidArgument, match="positions is 9999"):
        load(model, positions=9999)


def test_defaults_that_configurations_leave_out():
    text = {
        key: value
        for key, value in EMU3["text_config"].items()
        if key not in ("rms_norm_eps", "max_position_embeddings")
    }
    description = load("emu3", EMU3 | {"text_config": text}).description
    assert (description.norm.epsilon, description.positions, description.rotary.base) == (1e-5, 9216, 1e6)
    given = nested(EMU3, "text_config", rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    assert load("emu3", given).description.rotary.base == 50.0
    text = {
        key: value
        for key, value in JANUS["text_config"].items()
        if key not in ("rms_norm_eps", "max_position_embeddings")
    }
    description = load("janus", JANUS | {"text_config": text}).description
    assert (description.norm.epsilon, description.positions, description.rotary.base) == (1e-6, 2048, 10000.0)
    with pytest.raises(CheckpointError, match=r"expected \(32000, 16\)"):
        load("janus", JANUS | {"text_config": {key: value for key, value in text.items() if key != "vocab_size"}})


def published_row(columns, pictures, row_end):
    return [*([set(pictures)] * columns), {row_end}]


def allowed(decoding, vocab_size):
    """Tokens that the layout allows, position by position."""
    processor = decoding.layout.processor(5)
    for position in range(5, 5 + decoding.layout.length):
        logits = processor(np.zeros((1, vocab_size), np.float32), np.zeros(0, np.int64), np.array([position]))
        yield set(np.flatnonzero(np.isfinite(logits[0])).tolist())


def test_decoding_of_chameleon():
    decoding = load("chameleon").decoding
    assert (decoding.length, decoding.grid, decoding.layout, decoding.drafting) == (1024, Grid(32, 32), None, "copy:32")
    assert (decoding.temperature, decoding.top_p, decoding.guidance) == (0.7, 0.9, 3.0)
    assert decoding.unconditional_prompt == decoding.prompts["empty"].tokens == (1, 17)
    short = load("chameleon", positions=1024).decoding
    assert (short.length, short.grid, short.drafting) == (0, None, "random:4:12")
    bare = load("chameleon", CHAMELEON | {"vocabulary_map": NAMED}).decoding
    assert (bare.unconditional_prompt, bare.guidance, bare.prompts) == (None, 1.0, {})


def test_decoding_of_lumina():
    exportable = load("lumina")
    decoding, description = exportable.decoding, exportable.description
    assert (description.generated_first, description.generated) == (4, 17)
    assert (decoding.grid, decoding.drafting, decoding.top_k, decoding.guidance) == (Grid(48, 48), "copy:49", 2000, 4.0)
    assert decoding.unconditional_prompt == (17, 30, 30)
    # Its MultiModalLogitsProcessor: picture tokens, every 49th a row end, and the end after the last row.
    assert list(allowed(decoding, WORDS)) == [*(published_row(48, range(4, 16), 20) * 48), {16}]
    assert load("lumina", positions=48 * 49 + 2).decoding.layout is None
    assert load("lumina", positions=48 * 49 + 3).decoding.layout is not None


def test_decoding_of_emu3():
    exportable = load("emu3")
    decoding = exportable.decoding
    assert (decoding.length, decoding.grid, decoding.drafting) == (90 * 91 + 2, Grid(90, 90), "copy:91")
    assert (decoding.top_k, decoding.guidance, decoding.temperature) == (2048, 3.0, 1.0)
    assert decoding.unconditional_prompt == (20, 23, 14, 15, 9, 14, 15, 22)
    # Its Emu3PrefixConstrainedLogitsHelper, up to the end of the picture.
    assert list(allowed(decoding, WORDS)) == [*(published_row(90, range(25, 37), 17) * 90), {18}, {24}]
    unnamed = {name: number for name, number in EMU3["vocabulary_map"].items() if name != "*"}
    assert load("emu3", EMU3 | {"vocabulary_map": unnamed}).decoding.guidance == 1.0


def test_decoding_of_baais_emu3():
    exportable = load("emu3, own", BAAI)
    decoding = exportable.decoding
    assert (decoding.grid, decoding.drafting) == (Grid(3, 3), "copy:4")
    assert decoding.unconditional_prompt == (20, 23, 18, 9, 18, 22)
    assert list(allowed(decoding, WORDS)) == [*(published_row(3, range(25, 37), 17) * 3), {18}, {24}]


@pytest.mark.parametrize(
    ("model", "name"), [("chameleon", "Chameleon"), ("lumina", "Lumina-mGPT"), ("emu3", "Emu3"), ("emu3, own", "Emu3")]
)
def test_settings_are_those_that_were_published(model, name):
    assert recommended(load(model).decoding) == published(name)


def test_decoding_of_janus(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    decoding = load("janus").decoding
    assert (decoding.length, decoding.grid, decoding.drafting) == (9, Grid(3, 3), "copy:3")
    assert (decoding.unconditional_prompt, decoding.guidance) == (None, 1.0)
    (tmp_path / "config.json").write_text(json.dumps(JANUS))
    names = {"<｜begin▁of▁sentence｜>": 0, "<｜▁pad▁｜>": 2, "<begin_of_image>": 6}  # noqa: RUF001
    added = [{"id": number, "content": name} for name, number in names.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    safetensors.save_file(MODELS["janus"][1], str(tmp_path / "model.safetensors"))
    with open_checkpoint(tmp_path) as checkpoint:
        decoding = find_family(checkpoint).load(checkpoint).decoding
    assert decoding.unconditional_prompt == PaddedPrompt(2)
    assert decoding.prompts["empty"].tokens == (0, *([2] * 24), 6)
    assert recommended(decoding) == published("Janus")


def test_decoding_of_llamagen():
    decoding = load("llamagen").decoding
    assert (decoding.length, decoding.grid, decoding.drafting, decoding.top_k) == (9, Grid(3, 3), "copy:3", CODES)
    assert [decoding.prompts[str(k)].tokens for k in range(6)] == [(CODES + k,) for k in range(6)]
    assert (len(decoding.prompts), decoding.unconditional_prompt, decoding.guidance) == (6, (CODES + 6,), 4.0)
    temperature, top_k, top_p, guidance = published("LlamaGen")
    assert recommended(decoding) == (temperature, min(top_k, CODES), top_p, guidance)
    untrained = load("llamagen", tensors=llamagen_tensors(classes=6)).decoding
    assert (len(untrained.prompts), untrained.unconditional_prompt, untrained.guidance) == (6, None, 1.0)


@pytest.mark.parametrize("model", ["chameleon", "lumina", "emu3", "emu3, own", "janus", "llamagen"])
def test_bundles_can_be_written_and_have_the_familys_settings(model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    safetensors = pytest.importorskip("safetensors.numpy")
    source = tmp_path / "source"
    source.mkdir()
    config, tensors, _, _ = MODELS[model]
    (source / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors, str(source / "model.safetensors"))
    exported = export_checkpoint(source, tmp_path / "bundle", ExportSettings(windows=(1, 8)), check=on_cpu)
    assert exported.largest_difference < 1e-3
    written = json.loads((exported.folder / "manifest.json").read_text())
    assert written["tree_graph"]["file"] in written["files"]
    assert written["tree_graph"]["cache_length"] % 32 == 0
    assert written["tree_graph"]["cache_length"] >= written["window_graph"]["max_length"] + 256
    decoding = load(model).decoding
    assert written["length"] == decoding.length
    assert written["defaults"]["drafting"] == decoding.drafting
    assert written["defaults"]["guidance"] == decoding.guidance


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_value_of_any_key_is_refused_or_taken(model):
    config, tensors = MODELS[model][:2]

    def read(changed):
        checkpoint = checkpoint_of(tensors, changed)
        family = find_family(checkpoint)
        with open_picture_decoder(family, family.load(checkpoint), checkpoint):
            pass

    assert what_goes_wrong(config, read) == []
