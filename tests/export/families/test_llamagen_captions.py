"""LlamaGen from text: random checkpoints with the published names against a plain re-reading of the published source.

Here a caption is padded on its left to all of its positions and masked, as the authors' script does it; what is exported takes the
vectors alone.
"""

import json
import math

import numpy as np
import pytest

from coupled_sampling import Guidance, GuidedProvider, Request, open_bundle
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import ExportSettings, PrefixVectors, export_checkpoint, reference_logits
from coupled_sampling.export.families import find_family
from standins.checkpoints import checkpoint_of
from standins.picture_models import (
    CODES,
    HEADS,
    LAYERS,
    LLAMAGEN_CONFIG,
    SIDE,
    SIZE,
    WIDTH,
    draw,
    llamagen_tensors,
    norm,
    silu,
)

LENGTH, VECTOR = 5, 6
CONFIG = {key: value for key, value in LLAMAGEN_CONFIG.items() if key != "num_classes"} | {"gpt_type": "t2i"}
TENSORS = {name: array for name, array in llamagen_tensors().items() if "embedding_table" not in name} | draw(
    {
        "cls_embedding.cap_proj.fc1.weight": (WIDTH, VECTOR),
        "cls_embedding.cap_proj.fc2.weight": (WIDTH, WIDTH),
        "cls_embedding.uncond_embedding": (LENGTH, VECTOR),
    },
    seed=4,
)
CAPTION, NOTHING = (CODES + LENGTH,) * LENGTH, tuple(range(CODES, CODES + LENGTH))


def load(config=CONFIG, tensors=TENSORS, positions=None):
    checkpoint = checkpoint_of(tensors, config)
    return find_family(checkpoint).load(checkpoint, positions)


def authors_logits(vectors, codes, *, unconditional=False):
    """Scores (LENGTH + len(codes), CODES) after ``vectors`` (n, VECTOR) behind padding, or no caption under their mask."""
    t = {name: array.astype(np.float64) for name, array in TENSORS.items()}
    mask = np.arange(LENGTH) >= LENGTH - len(vectors)
    caption = np.concatenate([np.zeros((LENGTH - len(vectors), VECTOR)), vectors])
    caption = t["cls_embedding.uncond_embedding"] if unconditional else caption
    y = caption @ t["cls_embedding.cap_proj.fc1.weight"].T
    y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    x = np.concatenate([y @ t["cls_embedding.cap_proj.fc2.weight"].T, t["tok_embeddings.weight"][codes]])
    allowed = np.tri(len(x), dtype=bool)
    allowed[:, :LENGTH] &= mask
    allowed |= np.eye(len(x), dtype=bool)
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    turns = np.concatenate([np.zeros((LENGTH, 2)), np.exp(1j * np.stack([rows, columns], 1))])[: len(x), None]
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        y = norm(x, t[f"{block}.attention_norm.weight"]) @ t[f"{block}.attention.wqkv.weight"].T
        query, key, value = y.reshape(len(y), 3, HEADS, SIZE).transpose(1, 2, 0, 3)
        query, key = (part.reshape(*part.shape[:2], -1, 2) @ [1, 1j] * turns[:, 0] for part in (query, key))
        scores = np.where(allowed, (query @ key.conj().transpose(0, 2, 1)).real / math.sqrt(SIZE), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ value
        x = x + mixed.transpose(1, 0, 2).reshape(len(x), -1) @ t[f"{block}.attention.wo.weight"].T
        y = norm(x, t[f"{block}.ffn_norm.weight"])
        gate, up = (y @ t[f"{block}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ t[f"{block}.feed_forward.w2.weight"].T
    return norm(x, t["norm.weight"]) @ t["output.weight"].T


def some_vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, VECTOR))


def some_codes(count):
    return np.random.default_rng(8).integers(0, CODES, count)


@pytest.mark.parametrize("count", [LENGTH, LENGTH - 2, 1])
@pytest.mark.parametrize("prompt", [CAPTION, NOTHING], ids=["caption", "nothing"])
def test_a_checkpoint_gives_the_models_logits(count, prompt):
    exportable, vectors, codes = load(), some_vectors(count), some_codes(7)
    found = reference_logits(
        exportable.description, exportable.weights, np.concatenate([prompt, codes]), condition=vectors
    )
    expected = authors_logits(vectors, codes, unconditional=prompt == NOTHING)
    assert expected.std() > 0.3
    # What padding itself scores is of no use to anybody, and needs no mask to be right.
    np.testing.assert_allclose(found[LENGTH - count :, :CODES], expected[LENGTH - count :], atol=2e-5)
    assert np.isneginf(found[:, CODES:]).all()


def test_the_wrong_side_of_the_padding_shows():
    """Negative control."""
    vectors, codes = some_vectors(3), some_codes(4)
    expected = authors_logits(vectors, codes)
    other = authors_logits(np.concatenate([np.zeros((2, VECTOR)), vectors]), codes)
    assert np.abs(other - expected)[LENGTH:].max() > 1e-2


def test_decoding():
    model = load()
    decoding, description = model.decoding, model.description
    assert (decoding.length, decoding.grid, decoding.drafting) == (SIDE**2, Grid(SIDE, SIDE), f"copy:{SIDE}")
    assert {name: prompt.tokens for name, prompt in decoding.prompts.items()} == {"caption": CAPTION}
    assert (decoding.unconditional_prompt, decoding.guidance, decoding.top_k) == (NOTHING, 7.5, CODES)
    assert description.condition == PrefixVectors(LENGTH, VECTOR, WIDTH, CODES + LENGTH)
    assert (description.positions, description.generated) == (LENGTH + SIDE**2, CODES)
    short = load(positions=LENGTH + 3)
    assert (short.decoding.length, short.decoding.grid) == (4, None)


def test_a_bundle_is_checked_and_draws_with_guidance(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    safetensors = pytest.importorskip("safetensors.numpy")
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    safetensors.save_file(TENSORS, str(source / "model.safetensors"))
    settings = ExportSettings(windows=(1, 8))
    exported = export_checkpoint(
        source, tmp_path / "bundle", settings, check=lambda bundle, *, rows: OrtProvider.open(bundle, rows, threads=1)
    )
    assert exported.largest_difference < 1e-3
    bundle = open_bundle(exported.folder)
    manifest = bundle.manifest
    assert (manifest.condition_graph.file, manifest.fill_token) == ("condition.onnx", None)
    assert (bundle.tree_graph.name, manifest.defaults.guidance) == ("window-tree.onnx", 7.5)
    guided = GuidedProvider(
        OrtProvider.open(bundle, batch_size=2, threads=1), 2.0, lambda _: manifest.unconditional_prompt
    )
    vectors, codes = some_vectors(3), some_codes(3)
    asked = Request(manifest.find_prompt("caption"), 4, condition=vectors, guidance=Guidance(scale=3.0))
    assert guided.takes(asked) is None
    guided.begin(0, asked)
    found = guided.forward(np.array([[*CAPTION, *codes]]), np.array([0]))[0, LENGTH - 1 :, :CODES]
    one, other = (authors_logits(vectors, codes, unconditional=nothing)[LENGTH - 1 :] for nothing in (False, True))
    np.testing.assert_allclose(found, other + 3.0 * (one - other), atol=1e-3)
    with pytest.raises(InvalidArgument, match="takes a condition, which step graphs cannot be told"):
        export_checkpoint(source, tmp_path / "steps", ExportSettings(windows=(1, 8), step_graphs=("scd-match",)))


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"gpt_type": "c2i"}, {}, "gpt_type is 'c2i'"),
        ({"cls_token_num": 120}, {}, "cls_token_num is 120"),
        ({"caption_dim": 2048}, {}, "caption_dim is 2048"),
        ({"mystery": 1}, {}, "mystery = 1"),
        ({"block_size": 2**22}, {}, "block_size is 4194304, .* 576, at most 1048576"),
        ({}, {"cls_embedding.uncond_embedding": np.zeros(3, np.float32)}, r"has shape \(3,\), expected 2 axes"),
        ({}, {"cls_embedding.cap_proj.fc1.weight": np.zeros((4, 9), np.float32)}, "fc1.weight' has shape"),
        ({}, {"cls_embedding.cap_proj.fc2.bias": np.zeros(4, np.float32)}, "fc2.bias; they may change the numbers"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        load(CONFIG | config, TENSORS | tensors)


def test_a_missing_table_is_named():
    with pytest.raises(CheckpointError, match="uncond_embedding"):
        load(tensors={name: array for name, array in TENSORS.items() if "uncond" not in name})
