"""Cosmos from its published files to clips: export, inspect, prompts made of frames, generate, compare and what a server does."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.cli.pictures import sheet
from coupled_sampling.export.pictures import PictureTokens, reference_video_pixels
from standins import ROOT
from standins.conditioned import some_vectors
from standins.cosmos_archives import CODES, DECODER, write_cosmos
from standins.cosmos_models import SMALL, SMALL_TEXT
from standins.video_decoders import video_weights

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ml_dtypes", reason="needs the extra [export]")
pytest.importorskip("tqdm")

GUIDE = ROOT / "docs" / "families-visual.md"
FRAMES = np.random.default_rng(0).integers(0, CODES, (2, 2, 3))
PROMPTS = {"4B": FRAMES.ravel().tolist(), "5B": [CODES, *FRAMES.ravel().tolist()]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cosmos")


@pytest.fixture(scope="module")
def bundles(home):
    from coupled_sampling.cli import main

    made = {}
    for name, sizes in (("4B", SMALL), ("5B", SMALL_TEXT)):
        write_cosmos(home / f"cosmos-0.{name}", sizes)
        options = ["--vq", str(home / "decoder.jit"), "--window", "1,8", "--check"]
        assert main(["export", str(home / f"cosmos-0.{name}"), str(home / name), *options]) == 0
        np.save(home / f"{name}.npy", np.array(PROMPTS[name], np.uint16))
        made[name] = home / name
    np.save(home / "vectors.npy", some_vectors(5, SMALL_TEXT["context"]))
    return made


def shown(tokens):
    """The frames of a clip's tokens, by numpy."""
    description = dataclasses.replace(DECODER, frames=len(tokens) // 6)
    places = PictureTokens(len(tokens), 0, CODES)
    return reference_video_pixels(description, video_weights(DECODER), places, np.array([tokens]))[0]


def alike(found, expected):
    """Whether frames are the same but for a value on the edge between two."""
    apart = np.abs(np.asarray(found).astype(int) - expected)
    return apart.max() <= 1 and (apart > 0).mean() < 0.01


@pytest.mark.cases(1)
@pytest.mark.parametrize("model", ["4B", "5B"])
def test_a_clip_begins_with_the_frames_of_its_prompt(bundles, home, tmp_path, command, model):
    frames, trace = tmp_path / "frames", tmp_path / "trace.json"
    options = ["--tokens-file", home / f"{model}.npy", "--count", 2, "--method", "scd-match", "--beside-ar", "--json"]
    options += ["--condition", home / "vectors.npy"] if model == "5B" else []
    options += ["--stream", frames, "--trace", trace, "--out", tmp_path / ("x.gif" if model == "4B" else "x.png")]
    code, said, errors = command("generate", bundles[model], *options)
    assert (code, errors) == (0, "")
    assert json.loads(said)["methods"][1]["identical_to_ar"]
    clips = []
    for i, sequence in enumerate(json.loads(trace.read_text())["sequences"]):
        assert (sequence["prompt"], len(sequence["tokens"])) == (PROMPTS[model], 6)
        expected = shown(FRAMES.ravel().tolist() + sequence["tokens"])
        assert alike(expected[:9], shown(FRAMES.ravel().tolist())), "what comes later changes what was given"
        written = [np.asarray(Image.open(path)) for path in sorted(frames.glob(f"clip-{i:02}-*.png"))]
        assert alike(written, expected)
        clips.append(written)
    assert not np.array_equal(clips[0][9:], clips[1][9:])
    with Image.open(tmp_path / ("x.gif" if model == "4B" else "x.png")) as clip:
        assert clip.n_frames == 17
        for i in (0, 8, 16) if model == "5B" else ():
            clip.seek(i)
            np.testing.assert_array_equal(np.asarray(clip.convert("RGB")), sheet(np.stack(clips)[:, i]))


def test_inspect_says_what_a_prompt_is(bundles, command):
    assert open_bundle(bundles["4B"]).manifest.name == "cosmos-0.4B"
    for model, begin in (("4B", ""), ("5B", "begins with 64000 and ")):
        lines = dict(line.split(":", 1) for line in command("inspect", bundles[model])[1].splitlines())
        ends = "ends with 2 frames of 2 x 3 tokens, which the clip goes on from"
        assert lines["prompts"].strip() == f"none by name; each {begin}{ends}"
        assert (lines["grid"].strip(), lines["pixels"].strip()) == (
            "1 frame of 2 x 3 tokens",
            "17 frames of 32 x 48 x 3",
        )


@pytest.mark.parametrize(
    ("model", "prompt", "words"),
    [
        ("4B", PROMPTS["4B"][1:], "prompt has 11 tokens, expected 12 tokens from 0 to 63999 at its end"),
        ("4B", PROMPTS["5B"], "prompt token 0 is 64000, expected tokens in [0, 64000)"),
        (
            "5B",
            PROMPTS["4B"],
            f"12 tokens, of which token 0 is {PROMPTS['4B'][0]}, expected 64000 first, and then 12 tokens from 0 to 63999",
        ),
        ("5B", [64_000, *PROMPTS["5B"]], "prompt has 14 tokens, expected 64000 first"),
    ],
)
def test_other_prompts_are_refused(bundles, home, tmp_path, command, model, prompt, words):
    told = ["--condition", home / "vectors.npy"] if model == "5B" else []
    tokens = ",".join(map(str, prompt))
    code, _, errors = command("generate", bundles[model], "--tokens", tokens, *told, "--out", tmp_path / "x.gif")
    assert (code, errors.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert words in errors


def test_methods_are_compared(bundles, home, command):
    options = ["--tokens-file", home / "4B.npy", "--methods", "scd-match", "--count", 1]
    code, text, _ = command("compare", bundles["4B"], *options, "--json")
    assert (code, [row["identical_to_ar"] for row in json.loads(text)]) == (0, [True, True])


def test_a_prompt_is_made_of_frames_as_the_guide_says(bundles, home, tmp_path, monkeypatch, command):
    (block,) = [text for text in GUIDE.read_text().split("\n\n") if "cosmos_video_encoder(checkpoint" in text]
    block = "\n".join(line.removeprefix("    ") for line in block.splitlines()).replace(
        "rows=40, columns=64", "rows=2, columns=3"
    )
    (tmp_path / "encoder.jit").symlink_to(home / "encoder.jit")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 9, 32, 48, 3), np.uint8)
    np.save(tmp_path / "video.npy", pixels)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "guide", "exec"), {})
    prompt = np.load("prompt.npy")
    assert (prompt.shape, np.unique(prompt).size > 2) == ((1, 12), True)
    assert command("generate", bundles["4B"], "--tokens-file", "prompt.npy", "--count", 1, "--trace", "t.json")[0] == 0
    (sequence,) = json.loads((tmp_path / "t.json").read_text())["sequences"]
    assert sequence["prompt"] == prompt[0].tolist()


def test_a_server_shows_the_prompts_frames_first_and_refuses_what_it_cannot_be_told(bundles, tmp_path, command):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from coupled_sampling.serving.http import make_app
    from standins.serving import on_loopback, served

    for arguments in (("serve", bundles["5B"], "--port", 0), ("triton", bundles["5B"], tmp_path / "models")):
        code, _, errors = command(*arguments)
        assert (code, list(tmp_path.iterdir())) == (2, [])
        assert "the model cosmos-0.5B looks at vectors that come with a request (up to 512 of 20 numbers)" in errors
    with served(bundles["4B"], rows=2) as models, on_loopback(make_app(models)) as address:

        def ask(prompt, **more):
            body = {"prompt": prompt, "output_format": "png", "return_token_ids": True, **more}
            return httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)

        made = ask(PROMPTS["4B"]).json()
        (one,) = made["data"]
        assert (made["frames"], made["size"], len(one["token_ids"])) == (17, "48x32", 6)
        with Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) as clip:
            found = []
            for i in range(clip.n_frames):
                clip.seek(i)
                found.append(np.asarray(clip.convert("RGB")))
        assert alike(found, shown(PROMPTS["4B"] + one["token_ids"]))
        events = [
            line for line in ask(PROMPTS["4B"], stream=True, partial_images=3).text.splitlines() if "data:" in line
        ]
        parts = [json.loads(line.removeprefix("data:")) for line in events]
        assert [part.get("frame") for part in parts] == [4, 8, 12, None]
        frame = np.asarray(Image.open(io.BytesIO(base64.b64decode(parts[1]["b64_json"]))).convert("RGB"))
        assert alike(frame, shown(PROMPTS["4B"])[8])
        for wrong, stream in ((PROMPTS["4B"][1:], False), ([3, *PROMPTS["4B"]], True), (PROMPTS["5B"][:-1], False)):
            reply = ask(wrong, stream=stream)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")
            assert "expected 12 tokens from 0 to 63999" in reply.json()["error"]["message"]
