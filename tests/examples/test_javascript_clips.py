"""Clips in the JavaScript example: tokens and frames of Python, in Node's file and on the page; needs what its pictures need."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from standins.browser import Browser, needs_chromium
from standins.clip_bundles import FRAMES, LENGTH, SIDE, write_clip_bundle
from standins.javascript import FOLDER, NODE, by_node, drafting, needs_node, needs_runtime, provider, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_bundle(tmp_path_factory.mktemp("clips") / "toy", methods=("ar", "scd-match"))


def frames_of(folder, tokens):
    from coupled_sampling.backends import PixelDecoder

    return PixelDecoder.open(folder)(np.array([tokens], np.int64))[0, ..., 0]


@needs_runtime
def test_node_writes_the_clip_of_python_as_an_animated_png(folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path, settings = (
        tmp_path / "clip.png",
        {"method": "scd-match", "window": 6, "drafting": drafting(f"copy:{SIDE**2}")},
    )
    found = by_node("--bundle", folder, "--seed", 3, "--out", path, "--zoom", 2, "--fps", 10)
    tokens, traces = generate(provider(folder), [[8]], length=LENGTH, seed=3, **settings)
    assert found["tokens"] == tokens[0].tolist()
    assert found["committed_per_step"] == traces[0].committed_per_step
    with image.open(path) as clip:
        assert (clip.n_frames, clip.info["loop"], clip.info["duration"]) == (FRAMES, 0, 100)
        for i, frame in enumerate(frames_of(folder, found["tokens"])):
            clip.seek(i)
            np.testing.assert_array_equal(np.asarray(clip.convert("L")), frame.repeat(2, axis=0).repeat(2, axis=1))


@needs_node
def test_shipped_models_have_names_and_others_folders():
    """A folder's path is not mistaken for a name, not even where its last part is one."""
    script = "import { bundleFolder as f } from './folder.mjs'; console.log(process.argv.slice(1).map(f).join('\\n'))"
    others = ["/else/moving", "moving/", "moved"]
    found = run("--input-type=module", "--eval", script, "moving", *others).decode().splitlines()
    assert Path(found[0]) == open_bundle("moving").folder
    assert found[1:] == others


@needs_runtime
def test_a_rate_that_no_clip_has_is_refused(folder):
    assert "fps is 61, expected an integer from 1 to 60" in run(
        "generate.mjs", "--bundle", folder, "--fps", 61, expect=1
    )


RED = """((s) => { const c = document.querySelector(s);
    return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0); })"""
DONE = "document.querySelector('#status').textContent.startsWith('Done') || !document.querySelector('#failure').hidden"


def watched(page, milliseconds):
    """The first pixels of what is shown of the clip within that time."""
    return page.evaluate(f"""new Promise((done) => {{
        const seen = new Set(), until = performance.now() + {milliseconds};
        const look = () => {{
            seen.add({RED}("#coupled .clip").join(" "));
            performance.now() < until ? requestAnimationFrame(look) : done([...seen]);
        }};
        look();
    }})""")


@needs_runtime
@needs_chromium
def test_the_page_plays_the_clip_and_shows_all_of_its_frames(folder, tmp_path):
    started = [NODE, "serve.mjs", "--port", "0", "--bundle", str(folder)]
    with (
        subprocess.Popen(started, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as server,
        Browser(tmp_path) as browser,
    ):
        try:
            page = browser.page()
            page.goto(server.stdout.readline().strip().replace("localhost", "127.0.0.1"), DONE)
            assert page.text("#failure") == ""
            tokens = page.evaluate("document.querySelector('#coupled-tokens').textContent").split()
            assert tokens == page.evaluate("document.querySelector('#ar-tokens').textContent").split()
            frames = frames_of(folder, tokens)
            assert set(watched(page, 800)) == {" ".join(map(str, frame.ravel())) for frame in frames}
            page.evaluate("document.querySelector('#pause').focus()")
            page.press("Enter", 13, "\r")
            assert page.text("#pause") == "Play"
            assert len(watched(page, 300)) == 1
            # All frames side by side, two in a row with two pixels between them, each pixel five by five.
            width, height = (
                page.evaluate(f"document.querySelector('#coupled canvas').{of}") for of in ("width", "height")
            )
            sheet = np.array(page.evaluate(f"{RED}('#coupled canvas')")).reshape(height, width)
            for i, frame in enumerate(frames):
                left, top = 22 * (i % 2), 22 * (i // 2)
                wanted = frame.repeat(5, axis=0).repeat(5, axis=1)
                np.testing.assert_array_equal(sheet[top : top + 20, left : left + 20], wanted)
            assert page.errors == []
        finally:
            server.kill()
