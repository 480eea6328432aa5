"""Node and the JavaScript example, as its tests run it; and what Python says of the same."""

import json
import os
import shutil
import subprocess

import pytest

from coupled_sampling import generate, open_bundle
from standins import ROOT

FOLDER = ROOT / "examples" / "javascript"
NODE = shutil.which("node")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def node_version():
    """(major, minor), or (0, 0)."""
    if NODE is None:
        return 0, 0
    major, minor, _ = subprocess.run([NODE, "--version"], capture_output=True, text=True).stdout[1:].split(".")
    return int(major), int(minor)


def installed(package):
    return (FOLDER / "node_modules" / package).is_dir()


needs_node = pytest.mark.skipif(node_version() < (20, 15), reason="needs Node 20.15 or later on the path")
needs_runtime = pytest.mark.skipif(
    node_version() < (20, 15) or not installed("onnxruntime-web"),
    reason="needs Node 20.15 or later and `npm ci` in examples/javascript",
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or node_version() < (20, 15) or not installed("playwright-core"),
    reason="needs Chromium, Node 20.15 or later and `npm ci` in examples/javascript",
)


def run(*arguments, expect=0):
    """Standard output of Node; standard error where ``expect`` is not 0."""
    done = subprocess.run([NODE, *map(str, arguments)], cwd=FOLDER, capture_output=True, timeout=240)
    assert done.returncode == expect, done.stderr.decode()
    return done.stderr.decode() if expect else done.stdout


def evaluate(module, expression):
    """Bytes of what ``expression``, which uses the exports of ``module`` as `m`, gives: text, or a typed array's memory."""
    script = f"""
        import * as m from "./core/{module}";
        const found = {expression};
        process.stdout.write(typeof found === "string" ? found : Buffer.from(found.buffer));
    """
    return run("--input-type=module", "--eval", script)


def provider(bundle):
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends import OrtProvider

    return OrtProvider.open(bundle, threads=1)


def drafting(rule):
    """``rule`` with the fill token of `fashion`, as scripts in both languages take it from the manifest."""
    return open_bundle("fashion").settings(drafting=rule).drafting


def by_node(*arguments):
    return json.loads(run("generate.mjs", "--json", *arguments))


def by_python(bundle, prompt, **settings):
    """Tokens and trace of a window with branches, by the same graph."""
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends import open_model

    with open_model(bundle, method="scd-match", step="graph", trees=True, corrections=None) as model:
        tokens, traces = generate(model, [prompt], **settings)
    return tokens[0].tolist(), traces[0]
