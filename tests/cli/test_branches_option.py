"""``--branches``: windows some of whose slots are for other guesses, for methods that take them; tokens stay those of ar."""

import json

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.bundles.records import Grid
from coupled_sampling.cli import task as task_module
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.entry import make_parser
from coupled_sampling.cli.pictures import draw_comparison
from coupled_sampling.cli.settings import run_settings
from coupled_sampling.generation import Generation
from coupled_sampling.trace import Trace

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")
trt_bundles = pytest.importorskip("standins.trt_bundles")

TOY = ("--tokens", "8", "--length", 24, "--window", 12, "--drafting", "repeat")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("toy") / "toy", steps=["scd-match"]))


def test_pictures_by_branches_are_those_of_ar(command, tmp_path):
    out, trace = tmp_path / "grid.png", tmp_path / "trace.json"
    windows = ("--window", 64, "--branches", 24, "--batch-size", 2)
    code, _, error = command(
        "generate", "--method", "scd-match", "--count", 2, *windows, "--out", out, "--trace", trace
    )
    assert code == 0, error
    made = [sequence["tokens"] for sequence in json.loads(trace.read_text())["sequences"]]
    settings = open_bundle("fashion").settings(method="ar")
    with open_model("fashion", rows=2, **settings.model) as model:
        prompts = list(open_bundle("fashion").manifest.prompts.values())[:2]
        ar = generate(model, [prompt.tokens for prompt in prompts], length=196)
    assert made == [tokens.tolist() for tokens in ar.tokens]


def test_figures_and_traces_of_wide_windows_say_what_branches_guessed(command, toy, tmp_path):
    """Windows of more slots than the model has positions."""
    wide = ("--tokens", "8", "--length", 24, "--window", 64, "--branches", 50, "--drafting", "repeat")
    arguments = ("--method", "scd-match", "--count", 3, "--beside-ar", "--json", "--trace", tmp_path / "trace.json")
    code, text, error = command("generate", toy.folder, *wide, *arguments)
    assert code == 0, error
    ar, match = json.loads(text)["methods"]
    assert match["identical_to_ar"]
    assert (ar["branches"], match["branches"], match["last_window"], match["step"]) == (0, 50, 64, "graph")
    assert ar["branch_tokens_per_step"] == 0 < match["branch_tokens_per_step"] < match["tokens_per_step"]
    written = json.loads((tmp_path / "trace.json").read_text())
    assert (written["window"], written["branches"]) == (64, 50)
    guessed = sum(len(sequence["branch_tokens"]) for sequence in written["sequences"])
    steps = sum(len(sequence["committed_per_step"]) for sequence in written["sequences"])
    assert match["branch_tokens_per_step"] == pytest.approx(guessed / steps)


def test_what_is_printed_names_the_branches(command, toy):
    code, text, _ = command("generate", toy.folder, "--method", "scd-match", "--count", 1, *TOY, "--branches", 6)
    assert code == 0
    assert ", 6 of 12 slots for branches" in text
    code, text, _ = command("compare", toy.folder, "--methods", "sjd,scd-match", "--count", 2, *TOY, "--branches", 6)
    assert code == 0
    assert "\nscd-match: 6 of 12 slots for branches\n" in text
    assert "sjd: 6" not in text


def test_only_methods_that_take_branches_open_the_tree_graph(command, monkeypatch, toy):
    opened = {}

    def watched(*arguments, **settings):
        opened[settings["method"]] = settings["trees"]
        return open_model(*arguments, **settings)

    monkeypatch.setattr(task_module, "open_model", watched)
    methods = ("--methods", "sjd,scd-match,speculative-match", "--count", 1)
    code, text, _ = command("compare", toy.folder, *methods, *TOY, "--branches", 6, "--json")
    assert code == 0
    rows = {row["method"]: row for row in json.loads(text)}
    assert opened == {"ar": False, "sjd": False, "scd-match": True, "speculative-match": True}
    assert {name: row["branches"] for name, row in rows.items()} == dict(zip(opened, (0, 0, 6, 6), strict=True))
    assert all(rows[name]["identical_to_ar"] for name in ("scd-match", "speculative-match"))


def test_windows_with_branches_are_verified(command, toy):
    arguments = (
        "--methods",
        "sjd,scd-match",
        "--samples",
        30,
        "--positions",
        3,
        *TOY,
        "--branches",
        6,
        "--step",
        "auto",
    )
    _, text, error = command("verify", toy.folder, *arguments, "--json")
    sjd, match = json.loads(text) if text else pytest.fail(error)
    assert (sjd["branches"], match["branches"], match["differing_tokens"]) == (0, 6, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("generate --method sjd --branches 3", "branches is 3, but sjd accepts drafts by rejection"),
        ("generate --branches 3", "branches is 3, but scd-gumbel accepts drafts by rejection"),
        ("compare --methods ar --branches 3", "branches is 3, but ar has no drafts; use scd-match"),
        ("compare --methods sjd,scd-gumbel --branches 3", "branches is 3, but sjd accepts drafts by rejection"),
        (
            "generate --method scd-match --window 24 --branches 24",
            "branches is 24, expected at most 22 of the window's 24 slots",
        ),
        ("generate --method scd-match --branches -1", "branches is -1, expected a number of slots >= 0"),
        ("generate --method scd-match --window 256", "window is 256, the model takes at most 196"),
        ("generate --method scd-match --window 500 --branches 9", "window is 500, the model takes at most 480"),
        (
            "compare --methods sjd,scd-match --window 256 --branches 192",
            "window is 256, but sjd takes no branches, and without these at most 196 slots go into one pass",
        ),
        (
            "generate --method scd-match --branches 4 --backend openvino",
            "backend 'openvino' runs no windows with branches",
        ),
        (
            "generate --method scd-match --branches 4 --guidance 2 --step graph",
            "step graphs for trees are not guided; leave step at 'auto'",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(command, words, expected):
    code, text, error = command(*words.split())
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert expected in error


def test_the_option_goes_into_the_settings():
    manifest = open_bundle("fashion").manifest
    for words, expected in ((["--branches", "8"], 8), ([], 0)):
        arguments = make_parser().parse_args(["compare", "--window", "16", *words])
        settings = run_settings(arguments, manifest, count=1, methods=("ar", "sjd", "scd-match"))
        assert (settings.decoding.method, settings.decoding.branches) == ("scd-match", expected)
        assert settings.methods == ("ar", "sjd", "scd-match")


def test_a_chart_shows_what_branches_guessed(tmp_path):
    pytest.importorskip("matplotlib")

    def chart(name, branch_tokens):
        trace = Trace([4, 4, 4, 4], branch_tokens=branch_tokens)
        result = MethodResult("scd-match", Generation([np.zeros(16, int)], [trace]), 1.0, None, 12, 6)
        draw_comparison([result], tmp_path / name, grid=Grid(4, 4), images=None)
        return np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)

    plain, branches = chart("plain.png", []), chart("branches.png", [1, 2, 9])
    red = [int(((one[..., 0] > 200) & (one[..., 1:] < 60).all(axis=-1)).sum()) for one in (plain, branches)]
    assert red[0] == 0 < red[1]
    quarter = plain.shape[1] // 4
    assert (plain[:, :quarter] != branches[:, :quarter]).any(), "the bar is the same"
