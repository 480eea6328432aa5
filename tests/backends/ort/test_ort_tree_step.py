"""Step graphs for trees of `fashion`: opened by `open_model`, with HostStep's tokens and traces, or refused by name."""

import dataclasses
import shutil

import numpy as np
import pytest

from coupled_sampling import HostStep, Sampling, generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.ort import cpu
from coupled_sampling.backends.ort.step_trees import decided_ends
from coupled_sampling.backends.place import Wanted
from coupled_sampling.bundles.manifest import StepGraph
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import TreeSteps, Window
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.methods import find_method

pytest.importorskip("onnxruntime")

BUNDLE = open_bundle("fashion")
SETTINGS = {"length": [40, 25, 30], "window": 24, "branches": 12, "drafting": "copy:14", "seed": 3}
PROMPTS = [[256], [258], [260]]


def opened(rows=2, **settings):
    return open_model(BUNDLE, Place(threads=1), rows, method="scd-match", step="graph", trees=True, **settings)


@pytest.mark.parametrize(("warped", "corrections"), [(False, "none"), (False, "fitted"), (True, "fitted")])
def test_tokens_and_traces_are_those_of_host_step(warped, corrections):
    """The traces show that both had the same branches, and so the same candidates."""
    sampling = [Sampling(0.9, top_p=0.9), Sampling(), Sampling(top_k=20)] if warped else Sampling()
    with opened(warped=warped, corrections=corrections) as step:
        ours = generate(step, PROMPTS, sampling=sampling, **SETTINGS)
        assert isinstance(step, TreeSteps)
        assert (step.runs.step, step.max_columns) == ("graph", 480)
    table = BUNDLE.corrector("scd-match", corrections)
    host = HostStep(OrtProvider.open(BUNDLE, 2, threads=1, trees=True), "scd-match", corrections=table)
    theirs = generate(host, PROMPTS, sampling=sampling, **SETTINGS)
    for found, expected in zip(ours.tokens, theirs.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [t.committed_per_step for t in ours.traces] == [t.committed_per_step for t in theirs.traces]
    assert sum(t.nfe for t in ours.traces) < 38


def test_windows_may_be_wider_than_what_positions_are_left():
    """A window of 60 slots is written to the columns behind the last position."""
    prompt = [258, *np.random.default_rng(0).integers(0, 256, 170).tolist()]
    with opened(1, corrections="none") as step:
        tree = generate(step, [prompt], length=25, window=60, branches=50, seed=5)
    with open_model(BUNDLE, Place(threads=1), method="ar", step="graph") as step:
        ar = generate(step, [prompt], length=25, seed=5)
    np.testing.assert_array_equal(tree.tokens[0], ar.tokens[0])
    assert tree.traces[0].nfe < 20


def one_window(parents, known, path):
    one, width = np.ones(1, np.int64), len(parents)
    return Window(
        np.zeros((1, width), np.int64), 10 * one, known * one, path * one, 0 * one, one == 1, one, [None], [one], [None],
        branches=(width - known - path) * one, parents=np.array([parents]),
    )  # fmt: skip


def test_noise_enters_for_the_deepest_branch():
    """At position start + depth + 1, that of its own token."""
    assert decided_ends(one_window([-1, 0, 1, 1, 3, 4], known=2, path=1)) == [10 + 4 + 2]
    assert decided_ends(one_window([-1, 0, 1, 0], known=1, path=2)) == [10 + 2 + 2]


def test_a_bundle_without_such_graphs_decides_on_the_host(tmp_path):
    shutil.copytree(BUNDLE.folder, tmp_path / "b")
    plain = tuple(graph for graph in BUNDLE.manifest.step_graphs if not graph.tree)
    write_manifest(tmp_path / "b", dataclasses.replace(BUNDLE.manifest, step_graphs=plain))
    bundle = open_bundle(tmp_path / "b")
    settings = {"method": "scd-match", "trees": True, "corrections": "none"}
    with open_model(bundle, **settings) as step:
        assert step.runs.step == "host"
    with pytest.raises(InvalidArgument, match="no step graph for scd-match for trees, it has"):
        open_model(bundle, step="graph", **settings)


def test_guided_trees_are_decided_on_the_host():
    wanted = Wanted(BUNDLE, Place(threads=1), 1, find_method("scd-match"), "graph", guidance=2.0, trees=True)
    assert "step graphs for trees are not guided; leave step at 'auto'" in cpu.takes(wanted)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    shutil.copytree(BUNDLE.folder, tmp_path / "b")
    records = (StepGraph("step-scd-match.onnx", "scd-match", tree=True),)
    write_manifest(tmp_path / "b", dataclasses.replace(BUNDLE.manifest, step_graphs=records))
    wanted = Wanted(open_bundle(tmp_path / "b"), Place(threads=1), 1, find_method("scd-match"), "graph", trees=True)
    with pytest.raises(BundleError, match="tree False, the manifest promises True"):
        cpu.open(wanted)
    without = dataclasses.replace(BUNDLE.manifest, step_graphs=records)
    with pytest.raises(BundleError, match="a tree_graph beside it"):
        dataclasses.replace(without, tree_graph=None)
