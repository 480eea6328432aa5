"""The embedded model of clips: what its manifest promises, and that clips decoded in parallel are those of ordinary sampling."""

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle

ort = pytest.importorskip("coupled_sampling.backends.ort.provider")
pixels = pytest.importorskip("coupled_sampling.backends.ort.pixels")

MOST_BYTES = 12_000_000
FRAME = 64


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("moving")


def decoded(bundle, prompts, method, window, seed=2, rows=1):
    model = ort.OrtProvider.open(bundle, batch_size=rows, threads=1)  # tests run side by side
    settings = bundle.settings(method=method, window=window)
    return generate(model, prompts, length=settings.length, seed=seed, **settings.decoder)


@pytest.fixture(scope="module")
def ar(bundle):
    return decoded(bundle, [bundle.manifest.find_prompt("bag")], "ar", 1).tokens


def test_it_is_small_and_says_where_it_is_from(bundle):
    manifest = bundle.manifest
    assert sum(record.bytes for record in manifest.files.values()) <= MOST_BYTES
    assert manifest.licence == "Apache-2.0"
    assert manifest.provenance["data"]["licence"] == "MIT"
    training = manifest.provenance["training"]
    assert 3e6 <= training["parameters"] <= 4.1e6
    assert training["equal_to_frame_before_test"] < 0.6  # not easy by emptiness


def test_its_grid_has_frames_and_drafts_come_from_the_one_before(bundle):
    manifest = bundle.manifest
    assert (manifest.grid.frames, manifest.frame_tokens, manifest.pixel_graph.shape) == (16, FRAME, (16, 32, 32, 1))
    assert manifest.defaults.drafting == f"copy:{FRAME}"
    assert [manifest.frames_of(n) for n in (0, FRAME - 1, FRAME, 16 * FRAME)] == [0, 0, 1, 16]


@pytest.mark.cases(1)
@pytest.mark.parametrize(("window", "least"), [(128, 9), pytest.param(7, 3, marks=pytest.mark.long)])
def test_match_gives_the_very_clip_of_ar_in_far_fewer_passes(bundle, ar, window, least):
    made = decoded(bundle, [bundle.manifest.find_prompt("bag")], "scd-match", window)
    np.testing.assert_array_equal(made.tokens[0], ar[0])
    assert 16 * FRAME / made.traces[0].nfe > least


@pytest.mark.long
def test_guidance_gives_the_same_clip_too(bundle):
    from coupled_sampling.backends import open_model

    prompt = [bundle.manifest.find_prompt("shoe")]
    given = {"guidance": 2.0, "corrections": "none"}
    made = []
    for method in ("ar", "scd-match"):
        settings = bundle.settings(method=method, window=1 if method == "ar" else 64, **given)
        with open_model(bundle, **settings.model) as model:
            made.append(generate(model, prompt, length=settings.length, seed=1, **settings.decoder).tokens[0])
    np.testing.assert_array_equal(*made)


def test_frames_depend_on_their_own_tokens_only(bundle, ar):
    decode = pixels.PixelDecoder.open(bundle, threads=1)
    begun = ar[0].copy()
    begun[5 * FRAME + 3 :] = 0
    whole, part = decode(np.stack([ar[0], begun]))
    np.testing.assert_array_equal(part[:5], whole[:5])
    assert not np.array_equal(part[5], whole[5])


def test_an_item_moves_and_its_background_stays(bundle, ar):
    (clip,) = pixels.PixelDecoder.open(bundle, threads=1)(ar[0][None])[..., 0].astype(float)
    bright = clip > 0.42 * 255
    assert 0.05 < bright.mean() < 0.6  # there is an item
    moved = np.abs(np.diff(clip, axis=0))
    assert moved[bright[1:] | bright[:-1]].mean() > 2 * moved[~(bright[1:] | bright[:-1])].mean()
