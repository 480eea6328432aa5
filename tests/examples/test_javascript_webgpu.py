"""The JavaScript example on WebGPU gives the tokens of wasm and of Python, and its state stays on the device.

It runs over Chromium's software adapter: what is tested is what is computed and what crosses, not how fast. It needs what the
page's tests need, and an adapter.
"""

import json
import re
import subprocess
import sys

import pytest

from coupled_sampling import generate, open_bundle
from standins import ROOT
from standins.browser import WEBGPU, Browser, needs_chromium
from standins.clip_bundles import SIDE, write_clip_bundle
from standins.forbidden_repeats import toy_bundle
from standins.javascript import by_node, by_python, drafting, needs_runtime, provider, run
from standins.webgpu import check_tokens, crossed, has_adapter, plain_prompt, served, tab

pytestmark = [needs_runtime, needs_chromium]

WHOLE = 1_000_000
"""Bytes of the caches of the embedded model, roughly: 1.8 MB."""

_SENTENCE = re.search(r"these are some nodes\s+of (.*?):", (ROOT / "docs" / "javascript.md").read_text(), re.DOTALL)[1]
LEFT_TO_THE_CPU = set(re.findall(r"[A-Z]\w+", _SENTENCE))
"""Operators of which the guide says that some of their nodes, on integers, are left to the CPU."""


def portable(source, out, *options):
    """The copy of a bundle that the example's script writes for WebGPU."""
    pytest.importorskip("onnx")
    command = [sys.executable, "examples/javascript/portable.py", str(source), str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module", autouse=True)
def adapter(tmp_path_factory):
    if not has_adapter(tmp_path_factory.mktemp("adapter")):
        pytest.skip("needs a Chromium with an adapter for WebGPU, in software or not")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion")
    with tab(portable("fashion", folder / "portable"), folder / "profile") as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "settings", "steps"),
    [
        ("ar", {}, 12),
        ("scd-match", {"window": 16}, 8),
        ("scd-match", {"window": 64, "branches": 24}, 5),
    ],
)
def test_webgpu_gives_the_tokens_and_steps_of_wasm_and_python(fashion, method, settings, steps, record_property):
    found = fashion.decode(method, steps=steps, seed=3, **settings)
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    wasm = by_node("--method", method, "--seed", 3, *arguments)
    prompt, rule = plain_prompt("fashion"), drafting("copy:14")
    branches = settings.get("branches", 0)
    window = settings.get("window", 16)
    if branches:
        python, trace = by_python(
            "fashion", prompt, length=196, window=window, branches=branches, drafting=rule, seed=3
        )
    else:
        whole = {"length": 196, "method": method, "window": window, "drafting": rule, "seed": 3}
        tokens, (trace,) = generate(provider("fashion"), [prompt], **whole)
        python = tokens[0].tolist()
    ties = [check_tokens("fashion", prompt, found["tokens"], other, seed=3) for other in (wasm["tokens"], python)]
    record_property("ties", str(ties))
    if ties == [None, None]:
        assert found["committed"] == wasm["committed_per_step"][:steps] == trace.committed_per_step[:steps]
    assert len(found["tokens"]) == sum(found["committed"]) > 0
    assert found["failure"] is None


def test_a_wrong_token_is_no_tie():
    prompt, wasm = plain_prompt("fashion"), by_node("--method", "ar", "--seed", 3)["tokens"]
    assert check_tokens("fashion", prompt, wasm[:20], wasm, seed=3) is None
    wrong = [*wasm[:20], (wasm[20] + 1) % 256]
    with pytest.raises(AssertionError, match=r"token 20 is .* their scores differ by"):
        check_tokens("fashion", prompt, wrong, wasm, seed=3)


def test_state_stays_on_the_device(fashion):
    """What crosses is a step's noise and some integers; 1.8 MB of caches and the ring of noise do not."""
    for method, settings in (("ar", {}), ("scd-match", {"window": 16})):
        found = fashion.decode(method, steps=5, seed=4, **settings)
        assert crossed(found, "up") < 0.1 * WHOLE, found["crossed"]
        assert crossed(found, "down") < 2_000, found["crossed"]
        assert crossed(found, "copied") < 0.1 * WHOLE, "caches are not written in place"
        assert crossed(found, "in") + crossed(found, "out") < 40_000, found["crossed"]


def test_what_is_left_to_the_cpu_is_listed(fashion):
    listed = fashion.call("async ({ method }) => bundles.webgpu.listPlacement(method)", {"method": "scd-match"})
    assert set(listed["cpu"]) <= LEFT_TO_THE_CPU, listed["cpu"]
    heavy = {kind: len(listed["device"][kind]) for kind in ("Gemm", "MatMul", "Softmax", "ScatterElements", "ArgMax")}
    assert heavy == {"Gemm": 25, "MatMul": 12, "Softmax": 7, "ScatterElements": 14, "ArgMax": 2}


def test_graphs_as_they_were_exported_run_too_but_their_caches_cross(tmp_path):
    """The control of the two above: what they measure can be otherwise."""
    with tab(open_bundle("fashion").folder, tmp_path) as opened:
        found = opened.decode("scd-match", window=16, steps=4, seed=3)
        listed = opened.call("async ({ method }) => bundles.webgpu.listPlacement(method)", {"method": "scd-match"})
    wasm = by_node("--method", "scd-match", "--window", 16, "--seed", 3)["tokens"]
    check_tokens("fashion", plain_prompt("fashion"), found["tokens"], wasm, seed=3)
    assert crossed(found, "up") > WHOLE
    assert crossed(found, "down") > WHOLE
    assert (len(listed["cpu"]["TensorScatter"]), len(listed["cpu"]["Attention"])) == (13, 6)


def test_weights_in_half_precision_are_refused_or_widened(tmp_path):
    """The software adapter has no shaders for them. The clip's model, whose weights are such, runs once they are float32."""
    settings = {"window": 8, "seed": 3}
    with tab(portable("moving", tmp_path / "half"), tmp_path / "first") as opened:
        has_half = opened.page.evaluate(
            "(async () => (await navigator.gpu.requestAdapter()).features.has('shader-f16'))()"
        )
        found = opened.decode("scd-match", steps=1, **settings)
    if not has_half:
        assert found["failure"].startswith("UnusableWebGPU: the bundle's weights are in half precision")
    prompt = plain_prompt("moving")
    with tab(portable("moving", tmp_path / "wide", "--float32"), tmp_path / "second") as opened:
        found = [opened.decode("scd-match", steps=4, provider=provider, **settings) for provider in ("webgpu", "wasm")]
    rule = open_bundle("moving").settings(drafting="copy:64").drafting
    python = generate(
        provider("moving"), [prompt], length=40, method="scd-match", window=8, drafting=rule, seed=3
    ).tokens[0]
    for other in (found[1]["tokens"], python.tolist()):
        check_tokens("moving", prompt, found[0]["tokens"], other, seed=3)
    assert sum(found[0]["committed"]) == len(found[0]["tokens"]) >= 4


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_methods_that_need_float64_are_refused_by_name(fashion, method):
    asked = """async ({ method }) => {
        const answer = await bundles.webgpu.openStep(method).catch((error) => `${error.name}: ${error.message}`);
        return [answer, bundles.webgpu.methods];
    }"""
    answer, methods = fashion.call(asked, {"method": method})
    assert answer.startswith(f'RangeError: method is "{method}", this bundle has ar, scd-match for webgpu')
    assert answer.endswith("that one needs float64, which webgpu lacks")
    assert methods == ["ar", "scd-match"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    made = write_clip_bundle(folder / "toy", methods=("ar", "scd-match"))
    return made, portable(made, folder / "portable")


def test_buffers_are_released(clips, tmp_path):
    """The same decoding again leaves no buffer behind, whether all of it was asked for or not."""
    with tab(clips[1], tmp_path) as opened:
        alive = [opened.decode("scd-match", window=6, steps=steps)["alive"] for steps in (None, None, 2, None, 2, None)]
    assert alive[1] > 0
    assert len(set(alive[1:])) == 1, alive


@pytest.mark.parametrize(("prompt", "fails"), [([8, 1], False), ([8, 1, 1], True)])
def test_what_is_no_number_is_seen_on_the_device(prompt, fails, tmp_path):
    """A shader's compiler may take NaN for impossible: drafts end behind it all the same, and a token that needs it is refused."""
    bundle = toy_bundle(tmp_path, prompt, ("ar", "scd-match"))
    with tab(portable(bundle, tmp_path / "portable"), tmp_path / "profile") as opened:
        settings = {"window": 6, "drafting": "copy:3", "seed": 1}
        found, wasm = (opened.decode("scd-match", provider=name, **settings) for name in ("webgpu", "wasm"))
    assert check_tokens(bundle, prompt, found["tokens"], wasm["tokens"], seed=1) is None
    assert (found["committed"], found["failure"]) == (wasm["committed"], wasm["failure"])
    assert ("logits for position 3 hold NaN" in (found["failure"] or "")) == fails


def test_the_page_draws_a_clip_by_webgpu_and_lists_what_it_leaves(clips, tmp_path):
    done = (
        "document.querySelector('#status').textContent.startsWith('Done') || !document.querySelector('#failure').hidden"
    )
    with served(clips[1]) as address, Browser(tmp_path, WEBGPU) as browser:
        page = browser.page()
        page.goto(address + "?provider=webgpu&seed=3&branches=0&window=6")
        for _ in range(8):
            if page.evaluate(done):
                break
            page.evaluate("new Promise((done) => setTimeout(done, 5000))")
        assert page.text("#failure") == ""
        shown = {
            name: page.evaluate(f"document.querySelector('#{name}-tokens').textContent") for name in ("ar", "coupled")
        }
        settings = {"length": SIDE**2 * 3, "method": "scd-match", "window": 6, "drafting": f"copy:{SIDE**2}", "seed": 3}
        expected = by_node("--bundle", clips[0], "--method", "scd-match", "--seed", 3, "--window", 6)["tokens"]
        python = generate(provider(clips[0]), [[8]], **settings).tokens[0].tolist()
        for tokens in shown.values():
            for other in (expected, python):
                check_tokens(clips[0], [8], list(map(int, tokens.split())), other, seed=3)
        assert page.evaluate("document.querySelector('#provider').value") == "webgpu"
        page.evaluate("document.querySelector('#placement').open = true")
        page.wait("document.querySelectorAll('#placement-list li').length === 2", 50)
        assert "scd-match: " in page.text("#placement-list")
        assert "Attention" not in page.text("#placement-list")
        assert page.errors == []
        # Back to the CPU, by the control: the page begins anew with the same prompt and seed.
        page.evaluate(
            "(() => { const field = document.querySelector('#provider'); field.value = 'wasm';"
            " field.dispatchEvent(new Event('change')); })()"
        )
        page.wait(f"location.search.includes('provider=wasm') && location.search.includes('seed=3') && ({done})")
        assert page.evaluate("document.querySelector('#placement').hidden")


def test_a_browser_without_webgpu_is_told_so(clips, tmp_path):
    with served(clips[1]) as address, Browser(tmp_path) as browser:
        page = browser.page()
        page.goto(address + "?provider=webgpu", "!document.querySelector('#failure').hidden")
        told = page.text("#failure")
        assert told.startswith("This did not work: ")
        assert "WebGPU" in told
        assert told.endswith(
            "use a browser and a machine that have it, or the provider wasm, which computes the same on the CPU"
        )
        assert page.evaluate("document.querySelector('#drawing').hidden"), "wasm took its place"
        assert not page.evaluate("document.querySelector('#provider').disabled"), "no way back"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("webgpu", "UnusableWebGPU: there is no WebGPU here"),
        ("cuda", 'RangeError: provider is "cuda", expected one of'),
    ],
)
def test_node_has_no_webgpu_and_says_so(asked, told):
    script = f"""
        import {{ openBundle }} from "./core/bundle.js";
        import {{ bundleFolder, folderReader }} from "./folder.mjs";
        const read = folderReader(bundleFolder("fashion"));
        const error = await openBundle(read, {{ provider: {json.dumps(asked)} }}).catch((error) => error);
        process.stdout.write(`${{error.name}}: ${{error.message}}`);
    """
    assert run("--input-type=module", "--eval", script).decode().startswith(told)
