"""Settings of a run: the options that commands have in common, read once and frozen; no namespace is written."""

import copy
import dataclasses

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles.settings import DecodingSettings, decoding_settings
from coupled_sampling.cli.entry import make_parser
from coupled_sampling.cli.models import Place
from coupled_sampling.cli.settings import TO_LOOK_AT, RunSettings, run_settings
from coupled_sampling.cli.task import Task
from coupled_sampling.errors import InvalidArgument


@pytest.fixture(scope="module")
def manifest():
    return open_bundle("fashion").manifest


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


def test_a_slip_of_the_hand_does_not_take_all_memory():
    assert RunSettings(DecodingSettings(4), Place(), ("ar",), count=10**6).count == 10**6
    with pytest.raises(InvalidArgument, match="count is 1000001, expected at most 1000000"):
        RunSettings(DecodingSettings(4), Place(), ("ar",), count=10**6 + 1)


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
        decoding_settings(manifest, {"window": 8, "temperature": 0.0, "top_k": 3}),
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


def test_without_a_number_there_are_many_pictures_or_one_text(manifest):
    arguments = make_parser().parse_args(["generate"])
    text = dataclasses.replace(manifest, pixel_graph=None, grid=None, layout=())
    assert [run_settings(arguments, one, count=TO_LOOK_AT).count for one in (manifest, text)] == [16, 1]
    assert run_settings(arguments, text, count=5).count == 5


def test_fewer_clips_than_pictures_are_compared(command, monkeypatch):
    counts = []

    def compare(task, *_, **__):
        counts.append(len(task.prompts))
        raise InvalidArgument("nothing is decoded here")

    monkeypatch.setattr(Task, "compare", compare)
    for model in ("fashion", "moving"):
        assert command("compare", model)[0] == 2
    assert counts == [40, 4]
