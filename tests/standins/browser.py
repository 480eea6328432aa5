"""Headless Chromium, driven over its debugging pipe: nothing has to be installed beside it."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path, or in the variable CHROMIUM")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)

WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""More flags, for an adapter in software where there is no graphics processor."""

_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Chromium reads commands from descriptor 3 and writes answers to 4."""


class Page:
    """A tab. ``errors`` are what it wrote to its console as an error: exceptions, what its security policy refused."""

    def __init__(self, browser, session):
        self._browser, self._session, self.errors = browser, session, browser.errors.setdefault(session, [])
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        return self._browser.send(method, self._session, **parameters)

    def goto(self, url, ready="document.readyState === 'complete'"):
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && {ready}")

    def evaluate(self, expression):
        """What it is in the page; a promise is awaited."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition, seconds=30):
        """Until an expression is true; looked at whenever the page is drawn."""
        until = time.monotonic() + seconds
        promise = f"""new Promise((done) => {{
            setTimeout(done, {1000 * seconds}, false);
            const look = () => ({condition}) ? done(true) : requestAnimationFrame(look);
            look();
        }})"""
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError):  # the page it was asked of has gone
                if self.evaluate(promise):
                    return
        raise AssertionError(f"{condition} is not true after {seconds} s; the page shows: {self.text('body')}")

    def text(self, selector):
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def fill(self, selector, value):
        """As a visitor does, who then goes on to the next field."""
        self.evaluate(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def press(self, key, code, text=""):
        """A key, where the focus is."""
        named = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.send("Input.dispatchKeyEvent", type="keyDown", **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def screen(self, width, height, scheme="light", scale=1):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self):
        """PNG of all of it."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])


class Browser:
    """Chromium, as a context manager."""

    def __init__(self, profile, flags=()):
        self._profile, self._flags = profile, flags
        self._numbers, self._buffer, self.errors = itertools.count(1), b"", {}

    def __enter__(self):
        (theirs, self._out), (self._in, other) = os.pipe(), os.pipe()
        # Out of the way of the two numbers that they become.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, other)]
        started = [
            sys.executable,
            "-c",
            _START,
            *map(str, given),
            CHROMIUM,
            *_FLAGS,
            *self._flags,
            f"--user-data-dir={self._profile}",
        ]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [*started, "about:blank"],
            pass_fds=given, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True,
        )  # fmt: skip
        for end in (theirs, other, *given):
            os.close(end)
        return self

    def __exit__(self, *raised):
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait(10)
        os.close(self._in)
        os.close(self._out)

    def page(self):
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        return Page(self, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def send(self, method, session=None, **parameters):
        """The answer to a command; what else comes meanwhile is looked through for errors."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(command).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            told = self._read(until)
            if told.get("id") == number:
                assert "error" not in told, told["error"]
                return told["result"]
            self._note(told)

    def _read(self, until):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            more = os.read(self._in, 1 << 20)
            assert more, "Chromium has ended"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, told):
        parameters, errors = told.get("params", {}), self.errors.setdefault(told.get("sessionId"), [])
        if told["method"] == "Runtime.exceptionThrown":
            errors.append(parameters["exceptionDetails"])
        elif told["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            errors.append(parameters["entry"]["text"])
        elif told["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            errors.append(parameters["args"])
