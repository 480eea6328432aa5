"""What `open_model` makes of ``trees``: the graph that takes them and the step that decides them, or why there is none."""

import dataclasses

import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.contracts import Trees
from coupled_sampling.errors import InvalidArgument
from standins.fake_onnxruntime import FakeRuntime

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
trt_bundles = pytest.importorskip("standins.trt_bundles")

SETTINGS = {"length": 16, "window": 10, "branches": 6, "drafting": "repeat", "seed": 5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """With step graphs, some of which take trees."""
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("trees") / "toy", steps=["scd-match"]))


def without_trees(bundle):
    steps = tuple(graph for graph in bundle.manifest.step_graphs if not graph.tree)
    return dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, tree_graph=None, step_graphs=steps)
    )


def test_trees_are_opened_where_they_are_asked_for(bundle):
    for trees in (False, True):
        with open_model(bundle, Place(threads=1), trees=trees) as provider:
            assert isinstance(provider, Trees) == trees
    with open_model(bundle, Place(threads=1), 2, method="scd-match", trees=True) as step:
        assert step.runs.step == "graph"
        assert step.refuses_branches is None
        found = generate(step, [[8], [3, 1]], **SETTINGS).tokens
    expected = generate(open_model(bundle, rows=2), [[8], [3, 1]], method="ar", length=16, seed=5).tokens
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]


def test_auto_takes_the_step_that_can_decide_them(bundle):
    assert check_model(bundle, method="scd-match") == "graph"
    assert check_model(bundle, method="scd-match", trees=True) == "graph"
    assert check_model(bundle, method="speculative-match", trees=True) == "host"
    with pytest.raises(
        InvalidArgument, match=r"step is 'graph', and backend 'cuda' decides windows with branches by host"
    ):
        check_model(bundle, Place("cuda"), method="scd-match", step="graph", trees=True)


def test_methods_that_take_no_branches_are_refused(bundle):
    for method, words in (("sjd", "accepts drafts by rejection"), ("ar", "has no drafts")):
        with pytest.raises(
            InvalidArgument, match=f"trees is True, for branches, but {method} {words}.*leave branches out"
        ):
            open_model(bundle, method=method, trees=True)
    with pytest.raises(InvalidArgument, match="trees is 1, expected True or False"):
        open_model(bundle, trees=1)


def test_a_bundle_without_a_tree_graph_is_told_what_makes_one(bundle):
    for method in (None, "scd-match"):
        with pytest.raises(
            InvalidArgument, match="the bundle toy has no graph for trees; `coupled-sampling step-graphs`"
        ):
            check_model(without_trees(bundle), method=method, trees=True)
    assert check_model(without_trees(bundle), method="scd-match") == "graph"


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "openvino"])
@pytest.mark.parametrize("method", [None, "scd-match"])
def test_back_ends_without_trees_are_refused_by_name(bundle, backend, method):
    words = f"backend '{backend}' runs no windows with branches; choose one of cpu, cuda, ort, or leave branches out"
    with pytest.raises(InvalidArgument, match=words):
        open_model(bundle, Place(backend), method=method, trees=True)


def test_cuda_has_trees(monkeypatch, bundle):
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: FakeRuntime())
    with open_model(bundle, Place("cuda"), method="scd-match", step="host", trees=True) as step:
        assert step.runs.device == 0
        found = generate(step, [[8]], **SETTINGS).tokens[0].tolist()
    assert found == generate(open_model(bundle), [[8]], method="ar", length=16, seed=5).tokens[0].tolist()
    assert check_model(bundle, Place("cuda"), method="scd-match", trees=True) == "host"
