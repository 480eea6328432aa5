"""The JavaScript example gives the library's own noise, tokens and pictures: in Node, and in a browser.

Noise and drafting are tested by Node alone. The rest needs `npm ci` in examples/javascript, the page a Chromium, too: what
is missing is said in the reason for which a test is skipped. `CHROMIUM` names a browser that is not on the path.
"""

import hashlib
import json
import posixpath
import re
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import Sampling, generate, open_bundle
from coupled_sampling.drafting import DraftContext, find_drafting
from coupled_sampling.noise import CounterNoise, race_weights, uniforms
from standins.forbidden_repeats import toy_bundle
from standins.javascript import (
    CHROMIUM,
    FOLDER,
    NODE,
    by_node,
    by_python,
    drafting,
    evaluate,
    needs_browser,
    needs_node,
    needs_runtime,
    provider,
    run,
)

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
LAST = 2**64 - 1


@needs_node
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
        (0xFFFFFFFF, [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
    ],
)
def test_philox_gives_the_published_vectors(word, expected):
    """Random123 1.14.0, kat_vectors: philox4x64 with 10 rounds."""
    found = evaluate("philox.js", f"m.philox(new Uint32Array(8).fill({word}), new Uint32Array(4).fill({word}))")
    assert np.frombuffer(found, np.uint64).tolist() == expected


@needs_node
def test_the_frozen_uniforms():
    found = np.frombuffer(evaluate("philox.js", "m.uniforms(12345, 678, 9, 1001, 1)"))
    assert [u.hex() for u in found.tolist()] == [
        "0x1.6933aafa3f130p-4", "0x1.46c75fad608adp-1", "0x1.3f96dc47a45f0p-4", "0x1.7d43a2e68de2ep-1",
    ]  # fmt: skip


@needs_node
@pytest.mark.parametrize("key", [(0, 0), (1, 2), (2**32, 2**32 - 1), (2**63 + 7, 2**53), (LAST, LAST)])
@pytest.mark.parametrize(("round_", "first"), [(0, 0), (977, 2**32 - 3), (2**32 + 1, 5)])
def test_uniforms_are_those_of_python(key, round_, first):
    found = evaluate("philox.js", f"m.uniforms({key[0]}n, {key[1]}n, {round_}, {first}, 6)")
    np.testing.assert_array_equal(np.frombuffer(found).reshape(6, 4), uniforms(*key, round_, first, 6))


@needs_node
def test_race_weights_are_those_of_python_once_rounded():
    """The logarithms of two languages may differ in their last bit, of 53; a step graph takes 24."""
    positions, vocabulary = 400, 267
    script = f"""(() => {{
        const all = new Float64Array({positions * vocabulary});
        for (let i = 0; i < {positions}; i++) all.set(m.raceWeights({LAST}n, 3, i, {vocabulary}), i * {vocabulary});
        return all;
    }})()"""
    found = np.frombuffer(evaluate("philox.js", script)).reshape(positions, vocabulary)
    expected = np.stack([race_weights(LAST, 3, i, vocabulary) for i in range(positions)])
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


@needs_node
@pytest.mark.parametrize("seed", ["-1", "2n ** 64n", "0.5"])
def test_a_seed_out_of_range_is_refused(seed):
    script = f'import {{ uniforms }} from "./core/philox.js"; uniforms({seed}, 0, 0, 0, 1);'
    assert "RangeError" in run("--input-type=module", "--eval", script, expect=1)


@needs_node
@pytest.mark.parametrize("fill", [None, 0, 7])
@pytest.mark.parametrize("rule", ["repeat", "copy:1", "copy:3", "copy:14"])
def test_drafts_are_those_of_python(rule, fill):
    own = replace(find_drafting(rule), fill=fill)
    for tokens, prompt, wanted in ([9], 1, 4), ([9, 8, 7, 1, 2], 3, 7), (list(range(20)), 9, 20):
        context = DraftContext(0, np.array(tokens), prompt, wanted, None, 0)
        expected = own.propose([context], CounterNoise(), vocab_size=50, shared=False)[0].tokens
        theirs = f'm.findDrafting("{rule}", {json.dumps(fill)})'
        asked = f"[{theirs}.propose({tokens}, {prompt}, {wanted}), {theirs}.waits({tokens}, {prompt})]"
        found = evaluate("drafting.js", f"JSON.stringify({asked})")
        assert json.loads(found) == [expected.tolist(), own.waits(context.tokens, prompt)]


@needs_runtime
@pytest.mark.parametrize("method", METHODS)
def test_node_gives_the_tokens_and_steps_of_python(method):
    found = by_node("--prompt", "shoe", "--method", method, "--seed", LAST - 5)
    prompt = open_bundle("fashion").manifest.find_prompt("shoe")
    settings = {"length": 196, "method": method, "window": 16, "drafting": drafting("copy:14"), "seed": LAST - 5}
    tokens, traces = generate(provider("fashion"), [prompt], **settings)
    assert found["tokens"] == tokens[0].tolist()
    assert found["committed_per_step"] == traces[0].committed_per_step


@needs_runtime
def test_another_seed_or_sequence_gives_other_tokens():
    """Equality would be hollow if the noise did not reach the graph."""
    found = [by_node("--seed", seed, "--sequence", sequence)["tokens"] for seed, sequence in ((0, 0), (1, 0), (0, 1))]
    assert found[0] != found[1]
    assert found[0] != found[2]


def rewritten(folder, change):
    """`fashion` in ``folder``, its manifest changed by ``change``."""
    source = open_bundle("fashion").folder
    for path in source.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    manifest = json.loads((source / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@needs_runtime
@pytest.mark.parametrize("method", ["ar", "scd-maximal", "scd-gumbel"])
def test_long_prompts_stop_tokens_and_other_settings(method, tmp_path):
    prompt, length = [259, *range(30, 50)], 120
    settings = {"length": length, "method": method, "window": 6, "drafting": drafting("repeat"), "seed": 4}
    model, sampling = provider("fashion"), Sampling(0.7)
    whole = generate(model, [prompt], **settings, sampling=sampling).tokens[0]
    stop = int(whole[length // 2])
    tokens, traces = generate(model, [prompt], **settings, sampling=sampling, stop=[stop])

    def change(manifest):
        manifest["prompts"] = {"long": {"tokens": prompt, "aliases": [], "title": "Long"}}
        manifest |= {"length": length, "stop_tokens": [stop], "grid": None, "pixel_graph": None}

    arguments = ["--method", method, "--window", 6, "--drafting", "repeat", "--temperature", "0.7", "--seed", 4]
    found = by_node("--bundle", rewritten(tmp_path, change), *arguments)
    assert found["tokens"] == tokens[0].tolist()
    assert found["committed_per_step"] == traces[0].committed_per_step
    assert traces[0].committed_per_step[0] == 0, "the prompt is read in one pass"
    assert 0 not in traces[0].committed_per_step[1:]
    assert found["tokens"][-1] == stop


@needs_runtime
@pytest.mark.parametrize("method", METHODS)
def test_drafts_end_where_no_law_can_be_made(method, tmp_path):
    """Drafts of all rules repeat tokens now and then, and the model cannot go on behind them."""
    bundle = toy_bundle(tmp_path, [8, 1])
    model = provider(bundle)
    for seed, rule in ((0, "repeat"), (1, "copy:3"), (2, "copy:5")):
        settings = {"length": 30, "method": method, "window": 6, "drafting": rule, "seed": seed}
        tokens, traces = generate(model, [[8, 1]], **settings)
        found = by_node("--bundle", bundle, "--method", method, "--window", 6, "--drafting", rule, "--seed", seed)
        assert found["tokens"] == tokens[0].tolist()
        assert found["committed_per_step"] == traces[0].committed_per_step
        assert (np.diff(tokens[0]) != 0).all()


@needs_runtime
@pytest.mark.parametrize("method", ["ar", "sjd", "scd-match"])
def test_a_decided_token_without_a_law_ends_the_request_by_name(method, tmp_path):
    settings = ["--method", method, "--window", 6, "--drafting", "repeat", "--seed", 5]
    found = run("generate.mjs", "--bundle", toy_bundle(tmp_path, [8, 1, 1]), *settings, expect=1)
    assert found.count("\n") == 1, "a stack, though the model is at fault"
    assert "request with seed 5, sequence 0: logits for position 3 hold NaN" in found


@needs_runtime
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), 'format is "other"'),
        (lambda m: m.update(format_version=99), "format_version is 99, expected at most"),
        (lambda m: m.update(condition_graph={"file": "x.onnx"}), "condition_graph is .*, expected none"),
        (lambda m: m.update(prompt_frames=1), "prompt_frames is 1, expected none"),
        (lambda m: m.update(step_graphs=[]), "this bundle has"),
        (lambda m: m.update(layout=[{"first": 0, "count": 1, "times": 1}]), "logits processors"),
        (lambda m: m["defaults"].update(top_p=0.9), '"top_p":0.9'),
        (lambda m: m["files"]["weights.bin"].update(bytes=7), "weights.bin has .* the manifest says 7"),
        (lambda m: m["files"]["step-scd-gumbel.onnx"].update(sha256="0" * 64), "step-scd-gumbel.onnx has SHA-256"),
    ],
)
def test_a_bundle_that_is_damaged_or_asks_for_more_is_refused(change, message, tmp_path):
    found = run("generate.mjs", "--bundle", rewritten(tmp_path, change), expect=1)
    assert found.count("\n") == 1, "a stack, though the bundle is at fault"
    assert re.search(message, found)


@needs_runtime
def test_the_picture_is_that_of_the_pixel_decoder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from coupled_sampling.backends import PixelDecoder

    path = tmp_path / "bag.png"
    tokens = by_node("--prompt", "bag", "--out", path, "--zoom", 2)["tokens"]
    expected = PixelDecoder.open("fashion")(np.array([tokens]))[0, ..., 0]
    np.testing.assert_array_equal(np.asarray(image.open(path)), expected.repeat(2, axis=0).repeat(2, axis=1))


@pytest.fixture(scope="module")
def address():
    """Where `npm start` serves the page."""
    with subprocess.Popen([NODE, "serve.mjs", "--port", "0"], cwd=FOLDER, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@needs_runtime
def test_the_server_gives_what_the_page_needs_and_nothing_else(address):
    served = {
        "": "text/html", "page.js": "text/javascript", "style.css": "text/css",
        "ort/ort-wasm-simd-threaded.wasm": "application/wasm", "bundle/manifest.json": "application/json",
        "bundle/weights.bin": "application/octet-stream",
    }  # fmt: skip
    for path, kind in served.items():
        with urllib.request.urlopen(address + path, timeout=10) as response:
            assert response.headers["Content-Type"].startswith(kind)
            body = response.read()
    weights = open_bundle("fashion").manifest.files["weights.bin"]
    assert hashlib.sha256(body).hexdigest() == weights.sha256
    for path in ("package.json", "serve.mjs", "../README.md", "bundle/..%2f__init__.py", "core/", "bundle/none"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path, timeout=10)


@needs_runtime
def test_the_server_gives_every_module_that_the_page_imports(address):
    seen, open_ = set(), ["page.js"]
    while open_:
        path = open_.pop()
        seen.add(path)
        with urllib.request.urlopen(address + path, timeout=10) as response:
            source = response.read().decode()
        named = re.findall(r'^import .* from "(\..*)";$', source, re.MULTILINE)
        open_ += {posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) for name in named} - seen
    assert {"tree.js", "core/trees.js", "core/step.js"} <= seen


@pytest.fixture(scope="module")
def page(address):
    """What a visitor finds: a picture by the address, with a window one slot wider, by no address, and with damaged weights."""
    return json.loads(run("check_page.mjs", address + "?prompt=bag&seed=5&method=scd-gumbel&window=16", CHROMIUM))


@needs_browser
def test_the_page_gives_the_tokens_of_python(page):
    model, prompt = provider("fashion"), open_bundle("fashion").manifest.find_prompt("bag")
    for found, window in ((page["first"], 16), (page["second"], 17)):
        assert found["window"] == str(window)
        for name, method in (("ar", "ar"), ("coupled", "scd-gumbel")):
            settings = {"length": 196, "method": method, "window": window, "drafting": drafting("copy:14"), "seed": 5}
            tokens, traces = generate(model, [prompt], **settings)
            assert found[name] == tokens[0].tolist()
            shown = found["steps"][name == "coupled"], found["rates"][name == "coupled"]
            assert shown == (str(traces[0].nfe), f"{traces[0].tokens_per_step:.2f}")
    assert page["first"]["coupled"] != page["second"]["coupled"], "the window's slider does nothing"


@needs_browser
def test_the_page_opens_with_branches_and_draws_them(page):
    found, prompt = page["trees"], open_bundle("fashion").manifest.find_prompt("bag")
    tokens, trace = by_python(
        "fashion", prompt, length=196, window=64, branches=24, drafting=drafting("copy:14"), seed=5
    )
    assert (found["window"], found["branches"], page["first"]["branches"]) == ("64", "24", "0")
    assert found["coupled"] == found["ar"] == tokens
    assert found["steps"][1] == str(trace.nfe)
    assert page["first"]["drafts"] == ["", ""]
    assert found["drafts"][0] == ""
    assert re.fullmatch(
        "Drafts of step [0-9]+, where branches gave most: [0-9]+ held, [1-9][0-9]* of them in branches",
        found["drafts"][1],
    )
    assert found["colours"] > 2, "the drawing is empty"


@needs_browser
def test_the_page_shows_the_picture(page):
    from coupled_sampling.backends import PixelDecoder

    expected = PixelDecoder.open("fashion")(np.array([page["first"]["coupled"]]))[0, ..., 0]
    canvas = page["first"]["picture"]
    shown = np.array(canvas["values"]).reshape(canvas["height"], canvas["width"])
    zoom = canvas["height"] // expected.shape[0]
    np.testing.assert_array_equal(shown, expected.repeat(zoom, axis=0).repeat(zoom, axis=1))


@needs_browser
def test_the_page_names_its_controls_says_what_failed_and_writes_no_errors(page):
    assert page["errors"] == []
    assert page["unnamed"] == []
    assert page["first"]["failure"] == page["second"]["failure"] == ""
    assert "weights.bin has 7 bytes" in page["failure"]
