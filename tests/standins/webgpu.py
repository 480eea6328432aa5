"""The JavaScript example's decoding in Chromium, on its software adapter for WebGPU; and what crosses to that adapter and back."""

import contextlib
import json
import re
import subprocess
import time

import numpy as np

from coupled_sampling import open_bundle
from coupled_sampling.noise import race_weights
from standins.browser import WEBGPU, Browser
from standins.javascript import FOLDER, NODE, provider

TIE = 1e-4
"""How far apart two tokens' race scores may be, relatively, that another order of sums may exchange them."""

_SETUP = """(() => {
    const map = Object.assign(document.createElement("script"), { type: "importmap", textContent: %s });
    document.head.append(map);
    const counted = (window.counted = { up: 0, down: 0, copied: 0, alive: 0 });
    if (!globalThis.GPUDevice) return;
    const { createBuffer } = GPUDevice.prototype, { writeBuffer } = GPUQueue.prototype;
    const { mapAsync, destroy } = GPUBuffer.prototype, alive = new WeakSet();
    const { copyBufferToBuffer } = GPUCommandEncoder.prototype;
    GPUCommandEncoder.prototype.copyBufferToBuffer = function (...settings) {
        counted.copied += typeof settings[1] === "number" ? settings[4] ?? 0 : settings[2] ?? settings[0].size;
        return copyBufferToBuffer.apply(this, settings);
    };
    GPUDevice.prototype.createBuffer = function (settings) {
        const buffer = createBuffer.call(this, settings);
        if (settings.mappedAtCreation) counted.up += settings.size;
        alive.add(buffer);
        counted.alive += 1;
        return buffer;
    };
    GPUQueue.prototype.writeBuffer = function (buffer, offset, data, ...rest) {
        counted.up += rest[1] ?? data.byteLength;
        return writeBuffer.call(this, buffer, offset, data, ...rest);
    };
    GPUBuffer.prototype.mapAsync = function (mode, ...rest) {
        if (mode & GPUMapMode.READ) counted.down += this.size;
        return mapAsync.call(this, mode, ...rest);
    };
    GPUBuffer.prototype.destroy = function () {
        if (alive.delete(this)) counted.alive -= 1;
        return destroy.call(this);
    };
})()"""

_DECODE = """async ({ provider, method, branches, steps, ...settings }) => {
    const { openBundle } = await import("/core/bundle.js"), { decode } = await import("/core/decoder.js");
    const read = async (name) => new Uint8Array(await (await fetch(`/bundle/${name}`)).arrayBuffer());
    const bundle = ((window.bundles ??= {})[provider] ??= await openBundle(read, { provider }));
    const sessions = (window.sessions ??= {}), key = `${provider} ${method} ${branches > 0}`;
    const session = (sessions[key] ??= await bundle.openStep(method, branches));
    const prompt = Object.values(bundle.manifest.prompts)[0].tokens;
    const found = { committed: [], crossed: [], tokens: [], failure: null };
    let before = { ...counted };
    try {
        for await (const state of decode(bundle, session, { ...settings, method, branches, prompt })) {
            const { up, down, copied } = counted, { tokens, committed, bytes } = state;
            found.crossed.push({ up: up - before.up, down: down - before.down, copied: copied - before.copied, ...bytes });
            found.committed.push(committed);
            found.tokens = tokens;
            before = { ...counted };
            if (found.committed.length === steps) break;
        }
    } catch (error) {
        found.failure = `${error.name}: ${error.message}`;
    }
    return { ...found, alive: counted.alive };
}"""


@contextlib.contextmanager
def served(bundle):
    """The address at which `npm start` serves the page of a bundle's folder: by number, as the browser may look nothing up."""
    started = [NODE, "serve.mjs", "--port", "0", "--bundle", str(bundle)]
    with subprocess.Popen(started, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip().replace("localhost", "127.0.0.1")
        finally:
            server.kill()


class Tab:
    """A page that has the example's modules and has not drawn anything."""

    def __init__(self, browser, address):
        self.page = browser.page()
        self.page.goto(address + "style.css")
        imports = re.search(r'<script type="importmap">(.*?)</script>', (FOLDER / "index.html").read_text(), re.DOTALL)[
            1
        ]
        self.page.evaluate(_SETUP % json.dumps(imports))

    def call(self, function, argument, seconds=400):
        """What an asynchronous function gives, however long it takes."""
        self.page.evaluate(
            f"void (window.answer = ({function})({json.dumps(argument)}).then(found => (window.found = {{ found }})))"
        )
        until = time.monotonic() + seconds
        look = "Promise.race([window.answer, new Promise(done => setTimeout(done, 5000))]).then(() => window.found)"
        while time.monotonic() < until:
            answered = self.page.evaluate(look)
            if answered:
                self.page.evaluate("void (window.found = undefined)")
                return answered["found"]
        raise AssertionError(f"no answer within {seconds} s")

    def decode(self, method, *, provider="webgpu", branches=0, steps=None, **settings):
        """Tokens, tokens of each step, and bytes of each: of JavaScript's memory `in` and `out`, of all that crosses to the adapter
        and back, `up` and `down`, and of what is `copied` there, which what crosses is, too."""
        return self.call(
            _DECODE, {"provider": provider, "method": method, "branches": branches, "steps": steps, **settings}
        )


@contextlib.contextmanager
def tab(bundle, profile, flags=WEBGPU):
    with served(bundle) as address, Browser(profile, flags) as browser:
        yield Tab(browser, address)


def has_adapter(profile):
    """Whether this Chromium gives a page an adapter."""
    with served(open_bundle("fashion").folder) as address, Browser(profile, WEBGPU) as browser:
        page = browser.page()
        page.goto(address + "style.css")  # WebGPU needs a secure context, which about:blank is not
        return bool(page.evaluate("(async () => Boolean(await navigator.gpu?.requestAdapter()))()"))


def check_tokens(bundle, prompt, found, expected, *, seed, sequence=0, temperature=1.0):
    """Refuse tokens that differ from `expected` otherwise than by a tie of two scores, and say at which position one is, or None.

    `ar` and `scd-match` take the token whose race weight over its probability is least. Where two are as good as equal the order
    of sums decides, and what follows has another prefix, so that nothing more can be compared.
    """
    count = min(len(found), len(expected))
    differs = next((i for i in range(count) if found[i] != expected[i]), None)
    if differs is None:
        return None
    model, start = provider(bundle), len(prompt) + differs
    logits = model.forward(np.array([[*prompt, *expected[:differs]]], np.int64), np.zeros(1, np.int64))[0, -1]
    scores = np.log(race_weights(seed, sequence, start, len(logits))) - np.float64(logits) / temperature
    gap = abs(scores[found[differs]] - scores[expected[differs]])
    assert gap < TIE, (
        f"token {differs} is {found[differs]}, expected {expected[differs]}: their scores differ by {gap:.2e}"
    )
    return differs


def crossed(found, kind, skip=2):
    """Mean bytes of a kind that crossed in a step; the first ones, in which shaders are made, are left out."""
    steps = found["crossed"][skip:]
    return sum(step[kind] for step in steps) / len(steps)


def plain_prompt(bundle):
    return list(next(iter(open_bundle(bundle).manifest.prompts.values())).tokens)
