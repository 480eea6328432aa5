"""The page at ``/`` for a model of clips, in headless Chromium: frames as they come, then the clip, again and again."""

from itertools import pairwise

import httpx
import numpy as np
import pytest

from coupled_sampling.backends import PixelDecoder
from coupled_sampling.serving.http import make_app
from standins.browser import Browser, needs_chromium
from standins.clip_bundles import FRAMES, LENGTH, SIDE, write_clip_bundle
from standins.serving import on_loopback, served

RUN = "document.querySelector('#run').click()"
DONE = "document.querySelector('#status').textContent.startsWith('Done') || !document.querySelector('#failure').hidden"
READY = "document.querySelector('#status').textContent === 'Ready.'"
RED = """((c) => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0))"""
ON = f"{RED}(document.querySelector('#SIDE .picture'))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_bundle(tmp_path_factory.mktemp("clips") / "toy")


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, "fashion", rows=2) as models, on_loopback(make_app(models)) as url:
        yield url


def watched(page, side, milliseconds):
    """Every picture that the side shows within that time, in order."""
    return page.evaluate(f"""new Promise((done) => {{
        const seen = [], until = performance.now() + {milliseconds};
        const look = () => {{
            const now = {ON.replace("SIDE", side)};
            if (now.join() !== seen.at(-1)?.join()) seen.push(now);
            performance.now() < until ? requestAnimationFrame(look) : done(seen);
        }};
        look();
    }})""")


@needs_chromium
def test_a_visitor_sees_both_methods_make_the_same_clip(address, folder, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        page = browser.page()
        page.goto(f"{address}/", READY)
        assert page.text("#name-label") == "Clip of"
        page.evaluate(RUN)
        page.wait(DONE)
        assert f"All {LENGTH} tokens are identical." in page.text("#status")
        tokens = page.evaluate("document.querySelector('#ar-tokens').textContent").split()
        clip = PixelDecoder.open(folder)(np.array([tokens], np.int64))[0, ..., 0].reshape(FRAMES, -1).tolist()

        # It repeats, frame after frame; eight of them take a second.
        seen = [clip.index(shown) for shown in watched(page, "coupled", 1000)]
        assert set(seen) == set(range(FRAMES))
        assert len(seen) <= 11, "it is too fast"
        nexts = [(after - before) % FRAMES for before, after in pairwise(seen)]
        assert 2 * nexts.count(1) > len(nexts), "it does not go forward"  # a busy machine may skip some
        assert page.evaluate(f"{ON.replace('SIDE', 'ar')}.join() === {ON.replace('SIDE', 'coupled')}.join()")

        # It stands still when told so by the keyboard, and goes on.
        page.evaluate("document.querySelector('#pause').focus()")
        page.press("Enter", 13, "\r")
        assert page.text("#pause") == "Play"
        assert len(watched(page, "ar", 300)) == 1
        page.press("Enter", 13, "\r")
        assert len(watched(page, "ar", 300)) > 1

        # Cells: one for each token, frames beside each other, with the colours of their passes.
        assert page.evaluate("[...document.querySelectorAll('.cells')].map((c) => [c.width / 12, c.height / 12])") == [
            [2 * SIDE + 1, 2 * SIDE + 1]
        ] * 2  # fmt: skip
        drawn = page.evaluate("""(() => {
            const canvas = document.querySelector("#ar .cells"), context = canvas.getContext("2d"), found = [];
            for (let y = 0; y < canvas.height; y += 12)
                for (let x = 0; x < canvas.width; x += 12)
                    if (context.getImageData(x + 3, y + 3, 1, 1).data[3]) found.push([x / 12, y / 12]);
            return found;
        })()""")
        whole = [[0, 0], [1, 0], [0, 1], [1, 1]]
        expected = [[x + dx, y + dy] for dx, dy in ((0, 0), (3, 0), (0, 3)) for x, y in whole]
        assert sorted(drawn) == sorted(expected)

        # Another model's pictures do not move.
        page.fill("#model", "fashion")
        assert page.text("#name-label") == "Picture of"
        assert page.evaluate("document.querySelector('#pause').hidden")
        page.evaluate(RUN)
        page.wait("document.querySelector('#status').textContent.includes('All 196 tokens')")
        assert len(watched(page, "ar", 300)) == 1
        assert page.errors == []


@needs_chromium
def test_a_clip_stands_still_for_visitors_who_want_less_motion(address, tmp_path):
    with Browser(tmp_path) as browser:
        page = browser.page()
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        page.goto(f"{address}/", READY)
        page.evaluate(RUN)
        page.wait(DONE)
        assert page.text("#pause") == "Play"
        assert len(watched(page, "ar", 300)) == 1


def test_the_modules_of_the_page_are_served(address):
    for name in ("player.js", "sheet.js"):
        assert httpx.get(f"{address}/page/{name}").status_code == 200
