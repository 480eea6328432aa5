"""The script of the JavaScript example that writes a bundle for WebGPU: what it refuses, before anything is written."""

import sys
from dataclasses import replace
from importlib import import_module

import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.bundles import write_manifest
from coupled_sampling.bundles.files import read_contents
from coupled_sampling.export import Storage
from coupled_sampling.export.step_bundle import write_step_graphs
from standins import ROOT
from standins.toy_bundles import toy_gpt, write_toy_bundle
from standins.trt_bundles import write_bundle

onnx = pytest.importorskip("onnx")


@pytest.fixture
def portable(monkeypatch):
    """The command: its exit code."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "javascript"))
    script = import_module("portable")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["portable.py", *map(str, words)])
        return script.main()

    return run


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = write_toy_bundle(tmp_path_factory.mktemp("portable") / "toy", toy_gpt(16), max_window=8)
    write_step_graphs(folder, ("ar",))
    return folder


def test_only_a_bundle_is_replaced_and_only_by_force(portable, toy, tmp_path, capsys):
    assert portable(toy, tmp_path / "copy") == 0
    graph = open_bundle(tmp_path / "copy").manifest.step_graphs[0].file
    assert {node.op_type for node in onnx.load(tmp_path / "copy" / graph).graph.node}.isdisjoint(
        {"TensorScatter", "Attention"}
    )
    before = read_contents(tmp_path / "copy")
    assert portable(toy, tmp_path / "copy") == 1
    assert "it exists" in capsys.readouterr().err
    assert read_contents(tmp_path / "copy") == before
    assert portable(toy, tmp_path / "copy", "--force") == 0
    (tmp_path / "copy" / "notes.txt").write_text("a user's")
    assert portable(toy, tmp_path / "copy", "--force") == 1
    assert "notes.txt" in capsys.readouterr().err
    assert (tmp_path / "copy" / "notes.txt").read_text() == "a user's"


@pytest.mark.long
@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_widened_and_no_number_changes(portable, tmp_path, weights):
    source = write_bundle(tmp_path / "source", steps=["ar"], storage=Storage(weights))
    assert portable(source, tmp_path / "copy", "--float32") == 0
    graph = onnx.load(tmp_path / "copy" / open_bundle(source).manifest.step_graphs[0].file, load_external_data=False)
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    assert halves.isdisjoint(tensor.data_type for tensor in graph.graph.initializer)
    settings = {"length": 12, "seed": 3}
    tokens = []
    for folder in (source, tmp_path / "copy"):
        with open_model(folder, method="ar", step="graph") as step:
            tokens.append(generate(step, [[8]], **settings).tokens[0].tolist())
    assert tokens[0] == tokens[1]


def test_what_the_page_cannot_run_is_not_written(portable, toy, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for path in toy.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest = open_bundle(toy).manifest
    for changed, said in (
        (replace(manifest, step_graphs=()), "has no plain step graphs; make a copy that has some"),
        (replace(manifest, window_graph=replace(manifest.window_graph, dtype="float16")), "computes in float16"),
    ):
        write_manifest(other, changed)
        assert portable(other, tmp_path / "copy") == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "copy").exists()
