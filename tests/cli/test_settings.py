"""Settings: what was given wins over the bundle's defaults, zero included; checked once, frozen, and no namespace is written."""

import copy
import dataclasses

import numpy as np
import pytest

from coupled_sampling import Sampling, open_bundle
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.cli.entry import make_parser
from coupled_sampling.cli.models import Place
from coupled_sampling.cli.settings import DecodingSettings, Given, RunSettings, decoding_settings, run_settings
from coupled_sampling.drafting import Copy, Random, Repeat
from coupled_sampling.errors import InvalidArgument


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
        drafting=Copy(3),
        guidance=3.0,
        sampling=Sampling(0.5, 7, 0.9, 0.01),
        layout=manifest.layout,
        stop=manifest.stop_tokens,
    )


def test_what_is_given_wins_zero_included(manifest):
    defaults = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.01, "guidance": 3.0}
    given = Given("ar", "auto", "repeat", 0.0, 196, temperature=0.0, top_k=2, top_p=0.8, min_p=0.0)
    settings = decoding_settings(with_defaults(manifest, **defaults), given)
    assert (settings.method, settings.window, settings.guidance, settings.guided) == ("ar", "auto", 0.0, True)
    assert settings.sampling == Sampling(0.0, 2, 0.8, 0.0)
    assert settings.drafting == Repeat()


def test_random_first_guesses_are_tokens_that_the_model_generates(manifest):
    generated = manifest.generated_tokens
    expected = Random(generated.first, generated.count)
    assert decoding_settings(manifest, Given(drafting="random")).drafting == expected
    assert decoding_settings(manifest, Given(drafting="random:3:4")).drafting == Random(3, 4)


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "magic"}, "method is 'magic'"),
        ({"window": 0}, "window is 0"),
        ({"window": "wide"}, "window is 'wide'"),
        ({"window": 197}, "window is 197, the model takes at most 196"),
        ({"drafting": "guess"}, "drafting is 'guess'"),
        ({"guidance": float("inf")}, "guidance is inf, expected a finite number"),
        ({"length": 195}, "length is 195, but this model makes exactly 196"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_values_that_cannot_work_are_refused(manifest, given, words):
    with pytest.raises(InvalidArgument, match=words):
        decoding_settings(manifest, Given(**given))


def test_guidance_needs_an_unconditional_prompt(manifest):
    without = dataclasses.replace(manifest, unconditional_prompt=None)
    assert decoding_settings(without, Given(guidance=1.0)).guidance == 1
    with pytest.raises(InvalidArgument, match="has no unconditional prompt; leave it at 1"):
        decoding_settings(without, Given(guidance=0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count is 0"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"step": "gpu"}, "step is 'gpu', expected one of auto, host, graph, kernels"),
        ({"methods": ("ar", "magic")}, "method is 'magic'"),
    ],
)
def test_a_run_that_cannot_work_is_refused(changes, words):
    with pytest.raises(InvalidArgument, match=words):
        RunSettings(DecodingSettings(4), Place(), **{"methods": ("ar",), **changes})


def test_no_more_rows_than_sequences():
    settings = RunSettings(DecodingSettings(4), Place(), ("ar",), count=3, batch_size=16)
    assert settings.rows == 3
    assert dataclasses.replace(settings, batch_size=2).rows == 2


def test_arguments_are_read_and_never_written(manifest):
    line = "generate --window 8 --seed 5 --batch-size 4 --threads 2 --step host --temperature 0 --top-k 3"
    arguments = make_parser().parse_args(line.split())
    before = copy.deepcopy(vars(arguments))
    settings = run_settings(arguments, manifest, count=9)
    assert vars(arguments) == before
    assert settings == RunSettings(
        decoding_settings(manifest, Given(window=8, temperature=0.0, top_k=3)),
        Place(threads=2, max_window=8),
        (manifest.defaults.method,),
        step="host",
        count=9,
        batch_size=4,
        seed=5,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    named = run_settings(arguments, manifest, count=9, methods=("sjd", "ar"))
    assert (named.methods, named.decoding.method) == (("sjd", "ar"), "sjd")


def test_the_widest_window_is_not_known_beforehand_where_it_is_searched(manifest):
    arguments = make_parser().parse_args(["verify", "--window", "auto"])
    settings = run_settings(arguments, manifest, count=100)
    assert (settings.decoding.window, settings.place.max_window, settings.rows) == ("auto", None, 16)
