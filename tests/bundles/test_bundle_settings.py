"""Settings of a bundle: what was given wins over its defaults, zero included; checked once, frozen, and passed on in parts."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import Decoder, Guidance, Request, Sampling, open_bundle
from coupled_sampling.bundles import DecodingSettings, GeneratedTokens
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.bundles.settings import decoding_settings
from coupled_sampling.drafting import Copy, NGram, Random, Repeat
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.testing import TableProvider, random_table


@pytest.fixture(scope="module")
def manifest():
    return open_bundle("fashion").manifest


def with_defaults(manifest, **changes):
    return dataclasses.replace(manifest, defaults=dataclasses.replace(manifest.defaults, **changes))


def test_nothing_given_is_the_bundles_own(manifest):
    defaults = {"method": "sjd", "window": 5, "drafting": "copy:3", "temperature": 0.5, "top_k": 7, "top_p": 0.9}
    settings = decoding_settings(with_defaults(manifest, **defaults, min_p=0.01, guidance=3.0))
    assert settings == DecodingSettings(
        length=196,
        method="sjd",
        window=5,
        drafting=Copy(3, fill=0),
        guidance=3.0,
        sampling=Sampling(0.5, 7, 0.9, 0.01),
        layout=manifest.layout,
        stop=manifest.stop_tokens,
    )


def test_what_is_given_wins_zero_included(manifest):
    defaults = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.01, "guidance": 3.0}
    given = {"method": "ar", "window": "auto", "drafting": "repeat", "guidance": 0.0, "length": 196}
    given |= {"temperature": 0.0, "top_k": 2, "top_p": 0.8, "min_p": 0.0}
    settings = decoding_settings(with_defaults(manifest, **defaults), given)
    assert (settings.method, settings.window, settings.guidance, settings.guided) == ("ar", "auto", 0.0, True)
    assert settings.sampling == Sampling(0.0, 2, 0.8, 0.0)
    assert settings.drafting == Repeat(fill=manifest.fill_token)


def test_random_first_guesses_are_tokens_that_the_model_generates(manifest):
    generated = manifest.generated_tokens
    expected = Random(generated.first, generated.count)
    assert decoding_settings(manifest, {"drafting": "random"}).drafting == expected
    assert decoding_settings(manifest, {"drafting": "random:3:4"}).drafting == Random(3, 4)


def test_copies_begin_with_the_bundles_fill_token(manifest):
    manifest = dataclasses.replace(manifest, fill_token=7)
    for given, expected in (
        ("copy:3", Copy(3, fill=7)),
        (Copy(3), Copy(3, fill=7)),
        (Copy(3, fill=1), Copy(3, fill=1)),
        ("repeat", Repeat(fill=7)),
        ("ngram:2", NGram(2, fill=7, generated=(0, 256))),
        (NGram(2, fill=0, generated=(3, 4)), NGram(2, fill=0, generated=(3, 4))),
    ):
        assert decoding_settings(manifest, {"drafting": given}).drafting == expected
    without = dataclasses.replace(manifest, fill_token=None)
    assert decoding_settings(without, {"drafting": "copy:3"}).drafting == Copy(3)
    assert decoding_settings(without, {"drafting": "ngram"}).drafting == NGram(3, generated=(0, 256))
    text = dataclasses.replace(without, generated_tokens=GeneratedTokens(0, manifest.vocab_size))
    assert decoding_settings(text, {"drafting": "ngram"}).drafting == NGram(3)


def test_a_default_window_wider_than_the_graph_is_the_graphs(manifest):
    assert decoding_settings(with_defaults(manifest, window=10_000)).window == manifest.window_graph.max_window


def test_a_layout_begins_where_each_prompt_ends():
    settings = DecodingSettings(2, layout=(Span(0, 1), Span(1, 2)), sampling=Sampling(top_k=3))
    short, long = settings.samplings([[0], [0, 0, 0]])
    assert (short.top_k, long.top_k) == (3, 3)
    logits = np.zeros((4, 4), np.float32)
    allowed = {
        name: np.isfinite(found.processors[0](logits, np.zeros(9, np.int64), np.arange(1, 5))).tolist()
        for name, found in (("short", short), ("long", long))
    }
    first, second, free = [True, False, False, False], [False, True, True, False], [True] * 4
    assert allowed == {"short": [first, second, free, free], "long": [free, free, first, second]}


def test_without_a_layout_all_prompts_share_one_record():
    settings = DecodingSettings(2)
    assert all(found is settings.sampling for found in settings.samplings([[0], [1]]))


MATCH = {"method": "scd-match"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "magic"}, "method is 'magic'"),
        ({"window": 0}, "window is 0"),
        ({"window": "wide"}, "window is 'wide'"),
        ({"window": 197}, "window is 197, the model takes at most 196"),
        ({"drafting": "guess"}, "drafting is 'guess'"),
        ({"guidance": float("inf")}, "guidance is inf, expected a finite number"),
        ({"guidance_interval": "3:9"}, "guidance_interval is '3:9', but guidance is 1"),
        ({"guidance": 2.0, "guidance_interval": "9:3"}, "guidance_interval is '9:3', expected FIRST:END"),
        ({"guidance": 2.0, "guidance_interval": "3"}, "guidance_interval is '3', expected FIRST:END"),
        ({"guidance": 2.0, "guidance_interval": "-3:9"}, "guidance_interval is '-3:9', expected FIRST:END"),
        ({"guidance": 2.0, "guidance_interval": 3}, "guidance_interval is 3, expected FIRST:END"),
        ({"length": 195}, "length is 195, but this model makes exactly 196"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"prompt_chunk": 0}, "prompt_chunk is 0"),
        ({"prompt_chunk": 197}, "prompt_chunk is 197, the model takes at most 196"),
        ({"guidance": "much"}, "guidance is 'much', expected a finite number"),
        ({"length": 196.0}, "length is 196.0"),
        (
            {"branches": 8},
            "branches is 8, but scd-gumbel accepts drafts by rejection.*use scd-match or speculative-match",
        ),
        ({"branches": 8, "method": "ar"}, "branches is 8, but ar has no drafts; use scd-match"),
        ({**MATCH, "branches": -1}, "branches is -1, expected a number of slots >= 0"),
        ({**MATCH, "branches": 8.0}, r"branches is 8\.0, expected a number of slots"),
        ({**MATCH, "branches": True}, "branches is True, expected a number of slots"),
        (
            {**MATCH, "branches": 15},
            "branches is 15, expected at most 14 of the window's 16 slots.*or for a wider window",
        ),
        ({**MATCH, "branches": 8, "window": 1}, "branches is 8, expected at most 0 of the window's 1 slots"),
        ({**MATCH, "branches": 8, "window": 481}, "window is 481, the model takes at most 480"),
        ({**MATCH, "branches": 0, "window": 197}, "window is 197, the model takes at most 196"),
        ({"windw": 3}, "settings have no windw, expected some of method, window, "),
    ],
)
def test_values_that_cannot_work_are_refused(manifest, given, words):
    with pytest.raises(InvalidArgument, match=words):
        decoding_settings(manifest, given)


def test_guidance_needs_an_unconditional_prompt(manifest):
    without = dataclasses.replace(manifest, unconditional_prompt=None)
    assert decoding_settings(without, {"guidance": 1.0}).guidance == 1
    with pytest.raises(InvalidArgument, match="has no unconditional prompt; leave it at 1"):
        decoding_settings(without, {"guidance": 0.0})


def test_an_interval_makes_a_scale_that_is_one_outside(manifest):
    settings = decoding_settings(manifest, {"guidance": 3.0, "guidance_interval": "2:5"})
    assert settings.model["guidance"] == settings.scale == Guidance.within(2, 5, 3.0).scale
    np.testing.assert_array_equal(settings.scale(np.arange(6)), [1, 1, 3, 3, 3, 1])
    for text, first, end in ((":5", 0, 5), ("2:", 2, 2**63 - 1), (":", 0, 2**63 - 1)):
        assert (
            decoding_settings(manifest, {"guidance": 3.0, "guidance_interval": text}).scale
            == Guidance.within(first, end, 3.0).scale
        )


def test_a_bundles_interval_is_for_its_guidance_and_for_others_but_not_for_none(manifest):
    defaults = dataclasses.replace(manifest.defaults, guidance=4.0, guidance_interval="2:5")
    own = dataclasses.replace(manifest, defaults=defaults)
    assert decoding_settings(own).scale == Guidance.within(2, 5, 4.0).scale
    assert decoding_settings(own, {"guidance": 3.0}).scale == Guidance.within(2, 5, 3.0).scale
    assert decoding_settings(own, {"guidance_interval": ":"}).scale(np.array([99])) == 4
    assert decoding_settings(own, {"guidance": 1.0}).scale == 1


def test_none_leaves_a_setting_to_the_bundle(manifest):
    assert open_bundle("fashion").settings(window=None, temperature=None) == decoding_settings(manifest)


def test_parts_go_on_to_what_takes_them():
    settings = DecodingSettings(5, method="ar", window=2, drafting="repeat", sampling=Sampling(top_k=2), stop=(3,))
    assert settings.model == {"method": "ar", "guidance": 1.0, "warped": True, "corrections": "auto", "trees": False}
    decoder = Decoder(TableProvider(random_table(0, 4), 4), **settings.decoder)
    assert (decoder.method.name, decoder.window) == ("ar", 2)
    request = settings.request([1, 2], seed=3, sequence=4)
    assert request == Request([1, 2], 5, seed=3, sequence=4, stop=(3,), sampling=settings.sampling)
    assert settings.request([1], length=2).length == 2

    def rule(generated, new):
        return None

    assert dataclasses.replace(settings, stop_rule=rule).request([1]).stop_rule is rule


def as_text(manifest, **changes):
    """The manifest of a model that makes no pictures, with 20 positions."""
    graph = dataclasses.replace(manifest.window_graph, max_length=20, max_window=20)
    plain = {"pixel_graph": None, "grid": None, "layout": (), "prompts": {}, "unconditional_prompt": None, "length": 12}
    return dataclasses.replace(manifest, window_graph=graph, **{**plain, **changes})


def test_the_usual_length_of_a_text_is_what_fits_behind_its_prompt(manifest):
    settings = decoding_settings(as_text(manifest))
    assert [settings.length_after(prompt) for prompt in (1, 9, 10, 20, 25)] == [12, 12, 11, 1, 1]
    assert settings.request([0] * 15).length == 6  # the last one is never an input
    asked = decoding_settings(as_text(manifest), {"length": 12})
    assert asked.request([0] * 15).length == 12  # and is refused by whoever decodes it
    guided = as_text(manifest, unconditional_prompt=(1, 2, 3))
    assert decoding_settings(guided, {"guidance": 2.0}).length_after(10) == 9


def test_a_picture_has_its_length_whatever_the_prompt(manifest):
    assert decoding_settings(manifest).length_after(100) == 196


def test_branches_widen_windows_to_the_columns_of_the_tree_graph(manifest):
    settings = decoding_settings(manifest, {**MATCH, "window": 480, "branches": 300})
    assert (settings.window, settings.branches, settings.model["trees"], settings.decoder["branches"]) == (
        480,
        300,
        True,
        300,
    )
    plain = decoding_settings(manifest, MATCH)
    assert (plain.branches, plain.model["trees"], plain.decoder["branches"]) == (0, False, 0)


def test_branches_of_the_bundle_go_with_its_window_and_with_methods_that_take_them(manifest):
    branching = with_defaults(manifest, method="scd-match", window=64, branches=24)
    for given, expected in (
        ({}, (64, 24)),
        ({"branches": 0}, (64, 0)),
        ({"branches": 8}, (64, 8)),
        ({"window": 32}, (32, 0)),
        ({"method": "sjd"}, (64, 0)),
        ({"method": "speculative-match"}, (64, 24)),
    ):
        settings = decoding_settings(branching, given)
        assert (settings.window, settings.branches) == expected
    wide = with_defaults(manifest, method="scd-match", window=256, branches=192)
    assert decoding_settings(wide).window == 256
    assert decoding_settings(wide, {"branches": 0}).window == 196


@pytest.mark.parametrize(
    "defaults",
    [{"branches": -1}, {"branches": 15}, {"branches": 1, "window": 2}, {"branches": 1, "method": "sjd"}],
    ids=str,
)
def test_defaults_with_branches_that_cannot_be_are_refused(manifest, defaults):
    with pytest.raises(
        BundleError, match=f"defaults.branches is {defaults['branches']}, expected an integer from 0 to"
    ):
        with_defaults(manifest, **{"method": "scd-match", "window": 16, **defaults})


def test_branches_need_a_tree_graph(manifest):
    without = dataclasses.replace(manifest, tree_graph=None, step_graphs=())
    with pytest.raises(InvalidArgument, match="branches are asked for, but the bundle fashion has no graph for trees"):
        decoding_settings(without, {**MATCH, "branches": 8})
    assert decoding_settings(without, {**MATCH, "branches": 0}).branches == 0
    with pytest.raises(BundleError, match=r"defaults\.branches is 8, expected 0 without a tree_graph"):
        with_defaults(without, method="scd-match", branches=8)


def test_beside_methods_with_branches_others_have_none():
    settings = DecodingSettings(5, method="scd-match", window=256, branches=192)
    found = {name: settings.by(name, 196) for name in ("ar", "sjd", "speculative-match")}
    assert {name: (own.method, own.window, own.branches) for name, own in found.items()} == {
        "ar": ("ar", 196, 0),
        "sjd": ("sjd", 256, 0),
        "speculative-match": ("speculative-match", 256, 192),
    }
    assert dataclasses.replace(settings, window="auto").by("ar", 196).window == "auto"
    with pytest.raises(InvalidArgument, match="method is 'magic'"):
        settings.by("magic", 196)
