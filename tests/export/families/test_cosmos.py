"""Cosmos without text: sizes and stretch from tensors, facts of the published code in numpy as the oracle, prompts of frames."""

import numpy as np
import pytest

from coupled_sampling import Decoder
from coupled_sampling.backends import open_model
from coupled_sampling.bundles import Grid, open_bundle
from coupled_sampling.drafting import Copy
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export import ExportSettings, GridRotary, Norm, QueryKeyNorm, export_checkpoint, open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.families.settings import MOST_POSITIONS
from coupled_sampling.export.graphs.rotary import rotary_tables
from standins.checkpoints import checkpoint_of
from standins.cosmos_models import CLIP, LARGE, SMALL, cosmos_logits, cosmos_tensors, published
from standins.opening import on_cpu
from standins.torch_archives import archive_of
from standins.tree_windows import furthest_of_trees
from standins.wrong_readings import assert_they_show, changed, rotary

pytest.importorskip("ml_dtypes", reason="needs the extra [export]")

CONFIG = {"video_latent_shape": list(CLIP)}
MODELS = {"4B": SMALL, "12B": LARGE}
TOKENS = np.random.default_rng(0).integers(0, SMALL["codes"], 18)


def load(sizes=SMALL, config=CONFIG, tensors=None, positions=None, prefix=""):
    checkpoint = checkpoint_of(tensors or cosmos_tensors(sizes, prefix), config)
    return find_family(checkpoint).load(checkpoint, positions)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_gives_the_models_logits(model, prefix):
    sizes, found = MODELS[model], load(MODELS[model], prefix=prefix)
    tensors = cosmos_tensors(sizes)
    expected = cosmos_logits(sizes, tensors, TOKENS)
    assert expected.std() > 1

    def swapped(one, other):
        def wrong(description, weights):
            return description, lambda name: weights(
                name.replace(one, other) if one in name else name.replace(other, one)
            )

        return wrong

    def grid(**changes):
        return rotary(grid=GridRotary(**vars(found.description.rotary.grid) | changes))

    wrong = [
        changed(norm=Norm("rms", 1e-2)),
        changed(query_key_norm=QueryKeyNorm(Norm("rms", 1e-2))),
        changed(query_key_norm=None),
        rotary(pairs="interleaved"),
        rotary(base=10_000.0),
        rotary(grid=None, scaling=None),
        grid(rows=CLIP[2], columns=CLIP[1]),
        grid(prefix=1),
        swapped("gate", "up"),
        swapped("query_norm", "key_norm"),
        lambda description, weights: (description, lambda name: weights("embedding.weight" if name == "head.weight" else name)),
    ]  # fmt: skip
    assert_they_show(found, wrong, TOKENS, expected, slice(sizes["codes"]), 1e-4)


def test_each_model_turns_as_its_own_kind():
    for model, other in (("4B", "12B"), ("12B", "4B")):
        found, stranger = (load(MODELS[name]).description for name in (model, other))
        expected = cosmos_logits(MODELS[model], cosmos_tensors(MODELS[model]), TOKENS)
        exportable = load(MODELS[model])
        assert found.rotary.scaling != stranger.rotary.scaling
        assert_they_show(exportable, [changed(rotary=stranger.rotary)], TOKENS, expected, slice(30), 1e-4)


def test_published_sizes():
    for width, layers, tensors, parameters in ((4096, 16, 179, 4_014_088_192), (5120, 40, 443, 11_560_975_360)):
        checkpoint = published(width, layers)
        found = find_family(checkpoint).load(checkpoint)
        shapes = found.description.weight_shapes()
        assert len(shapes) == len(checkpoint.names()) == tensors
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
        assert (found.description.heads, found.description.kv_heads, found.description.head_size) == (32, 8, 128)
        assert shapes["layers.0.attention.query.weight"] == (4096, width)
        assert shapes["layers.0.attention.output.weight"] == (width, 4096)
        assert shapes["layers.0.attention.query_norm.weight"] == (128,)
        assert found.description.positions == 12_800 <= MOST_POSITIONS
        assert (found.decoding.length, found.decoding.grid, found.decoding.prompt_frames) == (7_680, Grid(40, 64, 5), 2)
        assert found.decoding.generated_grid == Grid(40, 64, 3)
        assert (found.decoding.drafting, found.decoding.temperature, found.decoding.top_k) == ("copy:2560", 1.0, None)
        assert (found.decoding.guidance, found.decoding.unconditional_prompt, found.decoding.prompts) == (1.0, None, {})
        assert found.decoding.top_p == (0.8 if width == 4096 else 0.9)
        assert any("Cosmos 1.0" in note for note in found.decoding.notes) == (width == 5120)


FREQUENCIES = {
    4096: ([1, 0.55075178, 0.30332752], 3.6314e-6, [1, 0.53532864, 0.28657675], 3.7360e-6),
    5120: ([0.5, 0.27537589, 0.15166376], 1.8157e-6, [1, 0.48251025, 0.18266422, 0.07670637, 0.04106312], 1.8680e-6),
}


@pytest.mark.parametrize("width", FREQUENCIES)
def test_angles_of_the_published_sizes(width):
    """Values of the published code, and where each axis has its pairs: in both halves, first the frame's, then row and column."""
    checkpoint = published(width, 1)
    description = find_family(checkpoint).load(checkpoint).description
    assert (description.rotary.pairs, description.rotary.base) == ("half", 500_000.0)
    cos, sin = rotary_tables(description.rotary, 128, description.positions)
    time, last_time, space, last_space = FREQUENCIES[width]
    assert cos.shape == (12_800, 64)
    for place, first, count, expected, last in (
        (2560, 0, 22, time, last_time),
        (64, 22, 21, space, last_space),
        (1, 43, 21, space, last_space),
    ):
        angles = np.arctan2(sin[place], cos[place])
        np.testing.assert_allclose(angles[first : first + len(expected)], expected, rtol=2e-6)
        np.testing.assert_allclose(angles[first + count - 1], last, rtol=1e-4)
        np.testing.assert_array_equal(np.delete(angles, slice(first, first + count)), 0)
        np.testing.assert_allclose(np.hypot(cos[place], sin[place]), 1, rtol=1e-6)  # no factor of YaRN's
    np.testing.assert_array_equal(sin[0], 0)


def test_stretched_columns_as_wide_as_they_are_would_show():
    """The trap: the published code takes 40 for columns, too."""
    checkpoint = published(5120, 1)
    turned = find_family(checkpoint).load(checkpoint).description.rotary
    assert turned.grid.trained == (3, 40, 40)
    wide = rotary(grid=GridRotary(**vars(turned.grid) | {"trained": (3, 40, 64)}))
    description, _ = wide(find_family(checkpoint).load(checkpoint).description, None)
    sin = [rotary_tables(one, 128, 2)[1][1] for one in (turned, description.rotary)]
    assert np.abs(sin[0] - sin[1])[43:].max() > 0.02


@pytest.mark.parametrize("model", MODELS)
def test_windows_may_be_trees(model):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert furthest_of_trees(load(MODELS[model]).description) <= 1e-4


def test_missing_left_over_and_wrong_tensors_are_refused():
    tensors = cosmos_tensors(SMALL)
    load(tensors=tensors | {"layers.0.attention._extra_state": np.zeros(3, np.uint8)})
    for name in tensors:
        with pytest.raises(CheckpointError):
            load(tensors={key: array for key, array in tensors.items() if key != name})
        if name not in ("norm.weight", "layers.0.feed_forward.w1.weight", "tok_embeddings.weight", "output.weight"):
            with pytest.raises(CheckpointError, match=name.removesuffix(".weight")):
                load(tensors=tensors | {name: np.zeros((5, 7), np.float32)})
    with pytest.raises(CheckpointError, match=r"lora\.weight"):
        load(tensors=tensors | {"lora.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match="expected a multiple of the size of a head"):
        load(tensors=tensors | {"layers.0.attention.wk.weight": np.zeros((23, 48), np.float32)})


def test_a_configuration_that_says_something_else_is_refused_and_one_of_other_things_is_not():
    load(
        config=CONFIG
        | {"dim": 48, "n_heads": 4, "norm_eps": 1e-5, "rope_theta": 500000, "max_batch_size": 1, "seed": None}
    )
    for key, value in (
        ("dim", 64),
        ("n_layers", 3),
        ("n_kv_heads", 4),
        ("norm_eps", 1e-6),
        ("rope_theta", 10000.0),
        ("pytorch_rope_version", "v1"),
        ("use_qk_normalization", False),
        ("apply_abs_pos_emb", True),
        ("apply_yarn", True),
        ("yarn_scale", 4),
        ("original_latent_shape", [3, 40, 40]),
        ("video_latent_shape", [5, 40]),
        ("video_latent_shape", [5, 40, 0]),
        ("video_latent_shape", [1024, 1024, 1024]),
    ):
        with pytest.raises(CheckpointError, match=key):
            load(config=CONFIG | {key: value})
    load(LARGE, config=CONFIG | {"apply_yarn": True})
    with pytest.raises(CheckpointError, match="a clip of at most 1048576 tokens"):  # and not once tables are made
        load(config={"video_latent_shape": [2**20, 2**20, 2**20]}, positions=4)


def test_fewer_positions_than_a_clip_make_no_clip():
    decoding = load(positions=17).decoding
    assert (decoding.grid, decoding.prompt_frames, decoding.length) == (None, 0, 0)
    with pytest.raises(InvalidArgument, match="hold no frames"):
        decoding.after(1)
    with pytest.raises(InvalidArgument, match="expected 1 to 2 of the 3 frames"):
        load().decoding.after(3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Bundles of both numbers of frames, by way of a PyTorch archive."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    home, bundles = tmp_path_factory.mktemp("cosmos"), {}
    tensors = cosmos_tensors(LARGE, "model.")
    (home / "model.pt").write_bytes(archive_of({"model": tensors}))
    (home / "config.json").write_text('{"video_latent_shape": [3, 2, 3], "input_types": ["video"]}')
    for frames in (None, 1):
        settings = ExportSettings(prompt_frames=frames, windows=(1, 8))
        done = export_checkpoint(home, home / f"bundle-{frames}", settings, check=on_cpu)
        assert (done.family, done.parameters) == ("cosmos", sum(array.size for array in tensors.values()))
        assert done.largest_difference < 1e-4
        bundles[frames] = open_bundle(home / f"bundle-{frames}")
    with open_checkpoint(home) as checkpoint:
        assert checkpoint.kind == "torch"
    return bundles


def test_what_the_manifest_says(exported):
    manifest = exported[None].manifest
    assert (manifest.prompt_frames, manifest.grid, manifest.length) == (2, Grid(2, 3, 1), 6)
    assert (manifest.defaults.window, manifest.defaults.drafting, manifest.defaults.top_p) == (18, "copy:6", 0.9)
    assert (manifest.fill_token, manifest.prompts, manifest.frame_tokens) == (None, {}, 6)
    one = exported[1].manifest
    assert (one.prompt_frames, one.grid, one.length) == (1, Grid(2, 3, 2), 12)


@pytest.mark.parametrize("frames", [None, 1])
def test_a_clip_goes_on_from_its_prompt(exported, frames):
    bundle = exported[frames]
    prompt, made = TOKENS[: 18 - bundle.manifest.length].tolist(), {"ar": [], "scd-match": []}
    for method, tokens in made.items():
        settings = bundle.settings(method=method)
        assert settings.drafting == Copy(6, generated=(0, SMALL["codes"]))
        with open_model(bundle, **settings.model) as model:
            decoder = Decoder(model, **settings.decoder)
            decoder.add(settings.request(prompt, seed=3))
            while decoder.active or decoder.waiting:
                for commit in decoder.step():
                    tokens += commit.tokens.tolist()
    assert bundle.manifest.picture_tokens(prompt, made["ar"]).tolist() == prompt + made["ar"]
    assert len(made["ar"]) == bundle.manifest.length
    assert made["ar"] == made["scd-match"]
    for wrong in (prompt[1:], [0, *prompt], [*prompt[:-1], 30]):
        with pytest.raises(
            InvalidArgument, match=f"prompt has {len(wrong)} tokens,.* expected {len(prompt)} tokens from 0 to 29"
        ):
            settings.request(wrong)
