"""The page at ``/``: what is served, and what a visitor finds, in headless Chromium."""

import re

import httpx
import pytest

from coupled_sampling import METHODS
from coupled_sampling.serving.http import HttpSettings, make_app
from coupled_sampling.serving.http.errors import ApiError
from standins.browser import Browser, needs_chromium
from standins.serving import on_loopback, served, text_bundle

KEY = "the right one"[4:9]


@pytest.fixture(scope="module")
def models():
    with served("fashion", rows=2) as one:
        yield one


@pytest.fixture(scope="module")
def address(models):
    with on_loopback(make_app(models)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


def guarded(app):
    """``app`` behind a key, but for the page itself."""

    async def guard(scope, receive, send):
        given = dict(scope.get("headers", ())).get(b"authorization")
        if scope["type"] == "http" and scope["path"].startswith("/v1/") and given != f"Bearer {KEY}".encode():
            await ApiError(401, "the key is wrong").response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guard


def test_the_page_and_its_files_are_served_without_a_key_and_may_load_nothing_else(models):
    with on_loopback(make_app(models, HttpSettings(keys=(KEY,)))) as url, httpx.Client(base_url=url) as client:
        page = client.get("/")
        named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        replies = [page, *map(client.get, ("page/panel.js", "page/events.js", *named))]
        assert len(named) == 3
        for reply in replies:
            assert reply.status_code == 200
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", reply.text)
        assert client.head("/").status_code == 200
        for missing in ("/page/page.py", "/page/..%2Fpage.py", "/page/"):
            assert client.get(missing).status_code == 404


def test_it_offers_every_method_but_ar(address):
    options = re.findall(r"<option[^>]*>([^<]+)</option>", httpx.get(address).text)
    assert sorted(["ar", *options]) == sorted(METHODS)


DONE = "document.querySelector('#status').textContent.startsWith('Done') || !document.querySelector('#failure').hidden"
READY = "document.querySelector('#status').textContent === 'Ready.'"


def figures(page, side):
    return {name: page.text(f"#{side} .{name}") for name in ("passes", "count", "rate", "seconds")}


@needs_chromium
def test_a_visitor_sees_both_methods_draw_the_same_picture(address, browser):
    page = browser.page()
    page.goto(f"{address}/", READY)
    page.fill("#name", "bag")
    page.evaluate("document.querySelector('#seed').focus()")
    page.press("Enter", 13, "\r")
    page.wait("document.querySelector('#coupled .rate').textContent > 1")  # while it runs
    page.wait(DONE)
    assert re.fullmatch(
        r"Done: 196 passes by ar, \d+ by scd-match, \d\.\d\d times fewer\. All 196 tokens are identical\.",
        page.text("#status"),
    )
    ar, coupled = figures(page, "ar"), figures(page, "coupled")
    assert (ar["passes"], ar["rate"]) == ("196", "1.00")
    assert float(coupled["rate"]) > 1.3
    tokens = [page.evaluate(f"document.querySelector('#{side}-tokens').textContent") for side in ("ar", "coupled")]
    assert tokens[0] == tokens[1]
    assert len(tokens[0].split()) == 196
    # The drawings themselves: the pictures are alike, and the cells have the colours of their passes.
    drawn = "((s) => { const c = document.querySelector(s); return c.toDataURL(); })"
    assert page.evaluate(f"{drawn}('#ar .picture')") == page.evaluate(f"{drawn}('#coupled .picture')")
    assert page.evaluate(f"{drawn}('#ar .cells')") != page.evaluate(f"{drawn}('#coupled .cells')")
    assert page.errors == []


@needs_chromium
def test_methods_of_the_same_law_may_differ_and_a_run_can_be_stopped(address, browser):
    page = browser.page()
    page.goto(f"{address}/", READY)
    page.fill("#method", "scd-gumbel")
    page.evaluate("document.querySelector('#another').click()")
    assert page.evaluate("document.querySelector('#seed').value") == "1"
    page.wait(DONE)
    assert "differ, as they may" in page.text("#status")
    page.evaluate("document.querySelector('#run').click()")
    page.wait("document.querySelector('#ar .passes').textContent > 0")
    page.evaluate("document.querySelector('#stop').click()")
    assert page.text("#status") == "Stopped."
    page.fill("#seed", "-1")
    page.evaluate("document.querySelector('#run').click()")
    page.wait("!document.querySelector('#failure').hidden")
    assert page.text("#failure") == 'The seed is "-1", expected a whole number from 0 to 9007199254740991.'
    assert page.errors == []


@needs_chromium
def test_a_wrong_key_is_told_and_a_right_one_opens(models, browser):
    with on_loopback(guarded(make_app(models))) as url:
        page = browser.page()
        page.goto(f"{url}/", "!document.querySelector('#failure').hidden")
        assert page.text("#failure") == "The server did not accept the API key: the key is wrong"
        page.fill("#key", "wrong")
        page.evaluate("document.querySelector('#run').click()")
        page.wait("!document.querySelector('#failure').hidden")
        assert page.text("#failure") == "The server did not accept the API key: the key is wrong"
        page.fill("#key", KEY)
        page.wait(READY)
        page.evaluate("document.querySelector('#run').click()")
        page.wait(DONE)
        assert "identical" in page.text("#status")


@needs_chromium
def test_every_control_has_a_name_and_a_small_screen_does_not_scroll_sideways(address, browser):
    page = browser.page()
    page.screen(320, 700, "dark")
    page.goto(f"{address}/", READY)
    page.evaluate("document.querySelector('#run').click()")
    page.wait(DONE)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('select, input, textarea, button, canvas, progress')].filter((x) => "
        "!(x.labels?.length || x.getAttribute('aria-label') || x.textContent.trim())).map((x) => x.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 20, 24)"


@needs_chromium
def test_a_visitor_sees_both_methods_write_the_same_text(browser, tmp_path):
    with served(text_bundle(tmp_path), "fashion", rows=2) as models, on_loopback(make_app(models)) as url:
        page = browser.page()
        page.goto(f"{url}/", READY)
        page.fill("#text", "Once upon a time")
        page.fill("#length", "40")
        page.evaluate("document.querySelector('#run').click()")
        page.wait(DONE)
        assert "All 40 tokens are identical." in page.text("#status")
        assert page.text("#ar .text") == page.text("#coupled .text") != ""
        assert float(figures(page, "coupled")["rate"]) > 1
        page.fill("#model", "fashion")
        assert page.evaluate("document.querySelector('#name').options.length") == 10
        page.evaluate("document.querySelector('#run').click()")
        page.wait("document.querySelector('#status').textContent.includes('All 196 tokens')")
        assert page.errors == []
