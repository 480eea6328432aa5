"""Models of clips on the command line: their files, frames while they are made, and what is refused."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.cli.clips import FrameFiles
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.pictures import draw_comparison
from coupled_sampling.cli.task import Task
from coupled_sampling.generation import Generation
from coupled_sampling.trace import Trace

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")
codebook_clips = pytest.importorskip("standins.codebook_clips")
clip_of = codebook_clips.clip_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return codebook_clips.write_clip_bundle(tmp_path_factory.mktemp("clips") / "clips")


def frames_in(path):
    """(n, H, W) and the milliseconds of each."""
    frames, milliseconds = [], []
    with Image.open(path) as clip:
        for i in range(clip.n_frames):
            clip.seek(i)
            frames.append(np.asarray(clip.convert("L")))
            milliseconds.append(round(clip.info["duration"]))
    return np.stack(frames), milliseconds


def tokens_in(trace):
    return [sequence["tokens"] for sequence in json.loads(trace.read_text())["sequences"]]


@pytest.mark.parametrize(
    ("name", "kind"), [("x.gif", "GIF"), ("x", "GIF"), ("x.webp", "WEBP"), ("x.png", "PNG"), ("x.APNG", "PNG")]
)
def test_each_frame_of_the_file_shows_those_of_all_clips(clips, tmp_path, command, name, kind):
    out, trace = tmp_path / name, tmp_path / "trace.json"
    code, said, _ = command("generate", clips, "--count", 2, "--out", out, "--trace", trace, "--fps", 10, "--seed", 3)
    assert (code, said.splitlines()[-1]) == (0, f"wrote {out}")
    assert Image.open(out).format == kind
    found, milliseconds = frames_in(out)
    one, other = (clip_of(tokens)[..., 0] for tokens in tokens_in(trace))
    # Beside each other, with two white pixels around and between them, and three times as large.
    expected = np.full((3, 4 + 2 * 2, 2 * 4 + 3 * 2), 255)
    expected[:, 2:6, 2:6], expected[:, 2:6, 8:12] = one, other
    np.testing.assert_array_equal(found, expected.repeat(3, axis=1).repeat(3, axis=2))
    assert milliseconds == [100] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "trace.json"])


def test_without_options_there_are_four_clips_in_a_gif(clips, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, _ = command("generate", clips, "--json")
    assert (code, json.loads(said)["out"]) == (0, "clips.gif")
    assert json.loads(said)["methods"][0]["sequences"] == 4
    found, milliseconds = frames_in(tmp_path / "clips.gif")
    assert found.shape == (3, 3 * (2 * 4 + 3 * 2), 3 * (2 * 4 + 3 * 2))
    assert milliseconds == [130, 120, 130]


def test_an_mp4_is_written(clips, tmp_path, command):
    av = pytest.importorskip("av", reason="needs the extra [video]")
    assert command("generate", clips, "--out", tmp_path / "x.mp4")[0] == 0
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_streamed_frames_are_those_of_the_clips(clips, tmp_path, command):
    frames, trace = tmp_path / "frames", tmp_path / "t.json"
    arguments = ["generate", clips, "--count", 3, "--batch-size", 2, "--beside-ar", "--method", "sjd", "--json"]
    code, said, _ = command(*arguments, "--out", tmp_path / "x.gif", "--trace", trace, "--stream", frames)
    assert (code, json.loads(said)["stream"]) == (0, str(frames))
    assert len(list(frames.iterdir())) == 9
    for i, tokens in enumerate(tokens_in(trace)):
        for j, frame in enumerate(clip_of(tokens)):
            found = np.asarray(Image.open(frames / f"clip-{i:02}-frame-{j:02}.png"))
            np.testing.assert_array_equal(found, frame[..., 0])


def test_a_frame_is_there_once_its_tokens_are(clips, tmp_path):
    from coupled_sampling.backends import PixelDecoder

    files = FrameFiles(tmp_path / "frames", PixelDecoder.open(clips), [[8]] * 2, "scd-match")
    tokens = np.random.default_rng(0).integers(0, 8, (2, 12))
    there, seen = {0: 0, 1: 0}, {}
    for clip, end in [(0, 3), (1, 1), (0, 4), (1, 9), (0, 5), (0, 12), (1, 12)]:
        commit = SimpleNamespace(handle=clip, tokens=tokens[clip, there[clip] : end])
        files.watch("ar", commit)  # of another method
        files.watch("scd-match", commit)
        there[clip] = end
        now = {path.name: path.read_bytes() for path in (tmp_path / "frames").glob("*")}
        names = {f"clip-{i:02}-frame-{j:02}.png" for i in there for j in range(there[i] // 4)}
        assert (set(now), seen) == (names, {name: now[name] for name in seen})
        seen = now
    found = [np.asarray(Image.open(tmp_path / "frames" / name)) for name in sorted(seen)]
    np.testing.assert_array_equal(found, np.concatenate([clip_of(one)[..., 0] for one in tokens]))


def test_what_is_not_decided_is_filled_with_tokens_that_may_stand_there(clips, tmp_path):
    asked = []

    def pixels(tokens):
        asked.extend(tokens.copy())
        return np.zeros((1, 3, 4, 4, 1), np.uint8)

    manifest = open_bundle(clips).manifest
    layout = (Span(2, 3, 4), Span(7, 1), Span(2, 3, 4), Span(7, 1), Span(2, 3, 4))
    pixels.bundle = SimpleNamespace(manifest=dataclasses.replace(manifest, length=14, layout=layout))
    pixels.shape = (3, 4, 4, 1)
    files = FrameFiles(tmp_path / "frames", pixels, [[8]], "ar")
    files.watch("ar", SimpleNamespace(handle=0, tokens=np.array([4, 3, 4])))
    files.watch("ar", SimpleNamespace(handle=0, tokens=np.array([3, 7])))
    assert [one.tolist() for one in asked] == [[4, 3, 4, 3, 7, 2, 2, 2, 2, 7, 2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("clips", ["--out", "x.jpg"], "expected a file that ends in .gif, .webp, .png, .apng, .mp4, since clips makes clips"),
        ("fashion", ["--out", "x.gif"], "expected a file that ends in .png, .jpg, .jpeg, since fashion makes pictures"),
        ("fashion", ["--fps", "10"], "fps is 10.0, but the model fashion makes no clips; leave it out"),
        ("fashion", ["--stream", "new"], "stream is new, but the model fashion makes no clips; leave it out"),
        ("clips", ["--fps", "60"], "fps is 60, expected 0.1 to 50 frames in a second for GIF"),
        ("clips", ["--out", "x.webp", "--count", "10000"], "count is 10000, but a WEBP of 18006 by 186 pixels is too large"),
        ("fashion", ["--out", "x.jpg", "--count", "10000"], "count is 10000, but a JPEG of 90006 by 906 pixels is too large"),
        ("clips", ["--guidance-interval", "12:", "--guidance", "2"], "which guides none of the 12 tokens from 0 on"),
        ("clips", ["--out", "x.mp4"], "pip install 'coupled-sampling[video]'"),
        ("clips", ["--stream", "full"], "cannot write full: it has mine in it; name a new or an empty folder"),
        ("clips", ["--stream", "full/mine"], "cannot write full/mine: it is no folder"),
        ("clips", ["--stream", "missing/new"], "does not exist"),
        ("clips", ["--stream", "x.gif", "--out", "x.gif"], "out and stream are both x.gif; name two"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_work(clips, tmp_path, command, monkeypatch, model, options, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(Task, "compare", lambda *_, **__: pytest.fail("it began"))
    code, said, error = command("generate", clips if model == "clips" else model, *options)
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(("field", "value"), [("frames", 4), ("height", 5), ("channels", 3)])
def test_pixels_that_are_not_what_the_manifest_promises_are_refused_before_the_work(
    clips, tmp_path, command, monkeypatch, field, value
):
    shutil.copytree(clips, tmp_path / "clips")
    document = json.loads((tmp_path / "clips/manifest.json").read_text())
    document["pixel_graph"][field] = value
    (tmp_path / "clips/manifest.json").write_text(json.dumps(document))
    monkeypatch.setattr(Task, "compare", lambda *_, **__: pytest.fail("it began"))
    code, _, error = command("generate", tmp_path / "clips", "--out", tmp_path / "x.gif")
    assert (code, error.count("\n")) == (2, 1)
    assert "pixels.onnx has the inputs and outputs" in error


def test_inspect_says_how_many_frames(clips, command):
    _, text, _ = command("inspect", clips)
    assert "grid:          3 frames of 2 x 2 tokens\npixels:        3 frames of 4 x 4 x 1\n" in text
    manifest = json.loads(command("inspect", clips, "--json")[1])
    assert manifest["grid"] == {"rows": 2, "columns": 2, "frames": 3}
    assert manifest["pixel_graph"]["frames"] == 3


def test_clips_are_compared_with_a_chart(clips, tmp_path, command):
    pytest.importorskip("matplotlib")
    code, _, _ = command("compare", clips, "--methods", "scd-match", "--count", 1, "--plot", tmp_path / "x.png")
    assert (code, Image.open(tmp_path / "x.png").size[0]) == (0, 1540)


def test_a_chart_shows_every_frame_and_what_branches_guessed_in_it(tmp_path):
    pytest.importorskip("matplotlib")
    red, magenta = (255, 0, 0), (255, 0, 255)
    image = np.full((3, 4, 4, 3), magenta, np.uint8)

    def chart(name, *branch_tokens):
        results = [
            MethodResult(name, Generation([np.zeros(12, int)], [Trace([4, 4, 4], branch_tokens=one)]), 1.0, None, 12, 6)
            for name, one in zip(("sjd", "scd-match"), branch_tokens, strict=False)
        ]
        draw_comparison(results, tmp_path / name, grid=codebook_clips.CLIP, images=np.stack([image] * len(results)))
        return np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)

    def runs(found, colour):
        """In how many runs of columns a colour is seen."""
        seen = (np.abs(found - colour).max(axis=-1) < 40).any(axis=0)
        return int((np.diff(seen.astype(int)) == 1).sum())

    one, two = chart("one.png", []), chart("two.png", [], [1, 9])
    assert [runs(found, magenta) for found in (one, two)] == [3, 3], "frames of the clip"
    assert [runs(found, red) for found in (one, two)] == [0, 2], "guesses in the first and in the third frame"
    assert len(two) > len(one) + 50, "a row for each method"
