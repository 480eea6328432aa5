"""Cosmos with text, 5B and 13B: sizes from tensors, the published code's facts in numpy as the oracle, what prompts begin with."""

import numpy as np
import pytest

from coupled_sampling import Decoder
from coupled_sampling.backends import open_model
from coupled_sampling.bundles import Grid, open_bundle
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import (
    CrossAttention,
    ExportSettings,
    GridRotary,
    LayerPositions,
    Norm,
    QueryKeyNorm,
    Storage,
    export_checkpoint,
)
from coupled_sampling.export.families import find_family
from standins.checkpoints import checkpoint_of
from standins.conditioned import some_vectors
from standins.cosmos_models import CLIP, LARGE_TEXT, SMALL_TEXT, cosmos_logits, cosmos_tensors, published
from standins.opening import on_cpu
from standins.torch_archives import archive_of
from standins.wrong_readings import assert_they_show, changed, rotary

pytest.importorskip("ml_dtypes", reason="needs the extra [export]")

CONFIG = {"video_latent_shape": list(CLIP)}
MODELS = {"5B": SMALL_TEXT, "13B": LARGE_TEXT}
BEGIN = SMALL_TEXT["codes"]
TOKENS = np.array([BEGIN, *np.random.default_rng(0).integers(0, BEGIN, 18)])
VECTORS = some_vectors(5, SMALL_TEXT["context"])


def load(sizes=SMALL_TEXT, config=CONFIG, tensors=None, positions=None, prefix=""):
    checkpoint = checkpoint_of(tensors or cosmos_tensors(sizes, prefix), config)
    return find_family(checkpoint).load(checkpoint, positions)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_gives_the_models_logits(model, prefix):
    sizes, found = MODELS[model], load(MODELS[model], prefix=prefix)
    expected = cosmos_logits(sizes, cosmos_tensors(sizes), TOKENS, vectors=VECTORS)
    assert expected.std() > 1
    size = {"frames": CLIP[0], "rows": CLIP[1], "columns": CLIP[2]}

    def grid(**changes):
        return rotary(grid=GridRotary(**vars(found.description.rotary.grid) | changes))

    def swapped(one, other):
        def wrong(description, weights):
            return description, lambda name: weights(
                name.replace(one, other) if one in name else name.replace(other, one)
            )

        return wrong

    wrong = [
        changed(query_key_norm=QueryKeyNorm(Norm("rms", 1e-2))),
        changed(condition=CrossAttention(len(VECTORS), sizes["context"])),  # padding that is masked
        changed(condition=None),
        changed(layer_positions=None),
        changed(layer_positions=LayerPositions(**size, prefix=0)),
        changed(layer_positions=LayerPositions(**size, prefix=1, base=500_000.0)),
        changed(layer_positions=LayerPositions(CLIP[0], CLIP[2], CLIP[1], prefix=1)),
        grid(prefix=0),
        grid(prefix_vanishes=True),
        swapped("cross_attention_norm", "mlp_norm"),
        swapped("cross_attention.key_norm", "attention.key_norm"),
    ]
    assert_they_show(found, wrong, TOKENS, expected, slice(BEGIN), 1e-4, VECTORS)


def test_published_sizes():
    for width, layers, tensors, parameters in ((4096, 16, 291, 4_584_845_312), (5120, 40, 723, 13_323_125_760)):
        checkpoint = published(width, layers, text=True)
        found = find_family(checkpoint).load(checkpoint)
        description, decoding = found.description, found.decoding
        shapes = description.weight_shapes()
        assert len(shapes) == len(checkpoint.names()) == tensors
        unused = 63 * width  # rows of the embedding
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters - unused
        assert (description.vocab_size, description.generated, description.positions) == (64_001, 64_000, 12_801)
        assert description.condition == CrossAttention(length=512, size=1024)
        assert description.layer_positions == LayerPositions(frames=5, rows=40, columns=64, prefix=1)
        assert shapes["layers.0.cross_attention.key.weight"] == (1024, 1024)
        assert shapes["layers.0.cross_attention.query.weight"] == (4096, width)
        assert (decoding.length, decoding.grid, decoding.prompt_frames) == (7_680, Grid(40, 64, 5), 2)
        assert (decoding.prompt_begin, decoding.guidance, decoding.drafting) == ((64_000,), 1.0, "copy:2560")
        assert decoding.top_p == (0.7 if width == 4096 else 0.8)
        assert any("Cosmos 1.0" in note for note in decoding.notes) == (width == 5120)
        assert decoding.after(1).length == 10_240


def test_rows_of_the_embedding_that_do_not_fit_are_refused():
    for checkpoint in (published(4096, 1, rows=64064), published(4096, 1, text=True, rows=64000)):
        with pytest.raises(CheckpointError, match=r"tok_embeddings\.weight has 64\d+ rows and output\.weight 64000"):
            find_family(checkpoint).load(checkpoint)
    tensors = cosmos_tensors(SMALL_TEXT)
    least = tensors | {"tok_embeddings.weight": tensors["tok_embeddings.weight"][: BEGIN + 1]}
    assert load(tensors=least).weights("embedding.weight").shape == (BEGIN + 1, 48)
    np.testing.assert_array_equal(load().weights("embedding.weight"), least["tok_embeddings.weight"])


def test_missing_left_over_and_wrong_tensors_are_refused():
    tensors = cosmos_tensors(SMALL_TEXT)
    for name in (one for one in tensors if ".cross_attention" in one):
        with pytest.raises(CheckpointError, match=name.removesuffix(".weight")):
            load(tensors={key: array for key, array in tensors.items() if key != name})
        with pytest.raises(CheckpointError, match=r"cross_attention"):
            load(tensors=tensors | {name: np.zeros((5, 7), np.float32)})
    with pytest.raises(CheckpointError, match=r"layers\.0\.cross_attention\.wk"):
        load(tensors=tensors | {"layers.0.cross_attention.wk.weight": np.zeros(5, np.float32)})


def test_a_configuration_that_says_something_else_is_refused():
    for rows in (30, 64):
        load(
            config=CONFIG | {"vocab_size": rows, "insert_cross_attn": True, "context_dim": 20, "input_types": ["text"]}
        )
    for key, value in (
        ("vocab_size", 31),
        ("insert_cross_attn", False),
        ("apply_abs_pos_emb", False),
        ("context_dim", 1024),
        ("insert_cross_attn_every_k_layers", 2),
        ("apply_yarn", True),
    ):
        with pytest.raises(CheckpointError, match=key):
            load(config=CONFIG | {key: value})


@pytest.mark.parametrize("model", MODELS)
def test_a_clip_goes_on_from_what_begins_a_video(model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    tensors = cosmos_tensors(MODELS[model], "model.")
    (tmp_path / "model.pt").write_bytes(archive_of(tensors))
    (tmp_path / "config.json").write_text('{"video_latent_shape": [3, 2, 3]}')
    settings = ExportSettings(prompt_frames=1, windows=(1, 8))
    assert export_checkpoint(tmp_path, tmp_path / "bundle", settings, check=on_cpu).largest_difference < 1e-4
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert (manifest.prompt_begin, manifest.prompt_frames, manifest.grid) == ((BEGIN,), 1, Grid(2, 3, 2))
    assert (manifest.length, manifest.fill_token, manifest.condition_graph.length) == (12, None, 512)
    prompt, made = TOKENS[:7].tolist(), {"ar": [], "scd-match": []}
    for method, tokens in made.items():
        chosen = bundle.settings(method=method, top_p=1.0)
        with open_model(bundle, **chosen.model) as opened:
            decoder = Decoder(opened, **chosen.decoder)
            decoder.add(chosen.request(prompt, seed=3, condition=VECTORS))
            while decoder.active or decoder.waiting:
                for commit in decoder.step():
                    tokens += commit.tokens.tolist()
    assert made["ar"] == made["scd-match"]
    assert len(made["ar"]) == 12
    assert manifest.picture_tokens(prompt, made["ar"]).tolist() == prompt[1:] + made["ar"]
    for wrong in (prompt[1:], [BEGIN, *prompt], prompt[:-1], [*prompt[1:], BEGIN], [BEGIN, *prompt[1:-1], BEGIN]):
        with pytest.raises(InvalidArgument, match=rf"{len(wrong)} tokens.* expected {BEGIN} first, and then 6 tokens"):
            chosen.request(wrong)


def test_fewer_positions_than_a_clip_still_begin_a_video(tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "model.pt").write_bytes(archive_of(cosmos_tensors(SMALL_TEXT)))
    with pytest.raises(InvalidArgument, match="compute is 'bfloat16', but this model takes a condition"):
        export_checkpoint(tmp_path, tmp_path / "bundle", ExportSettings(storage=Storage("bfloat16", "bfloat16")))
    export_checkpoint(tmp_path, tmp_path / "bundle", ExportSettings(max_length=16, windows=(1,)))
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.manifest.grid, bundle.manifest.prompt_begin) == (None, (BEGIN,))
    settings = bundle.settings()
    settings.request([BEGIN, 1, 2])
    with pytest.raises(InvalidArgument, match=f"prompt has 2 tokens, of which token 0 is 1, expected {BEGIN} first"):
        settings.request([1, BEGIN])
