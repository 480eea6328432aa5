"""Corrected step graphs of `fashion`: opened with a table, with the tokens and traces of HostStep, or refused by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from coupled_sampling import GuidedProvider, HostStep, Sampling, generate
from coupled_sampling.backends import OrtProvider, Place
from coupled_sampling.backends.ort import cpu, cuda
from coupled_sampling.backends.place import Wanted
from coupled_sampling.bundles.manifest import StepGraph
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.methods import find_method
from standins.correctors import random_low_rank

pytest.importorskip("onnxruntime")

BUNDLE = open_bundle("fashion")
TABLE = random_low_rank(0, BUNDLE.manifest.vocab_size, (1, 14), rank=32, scale=0.5)
SETTINGS = {"length": [50, 30, 40], "window": 12, "drafting": "copy:14", "seed": 3}
PROMPTS = [[256], [258], [260]]
METHODS = ("sjd", "scd-maximal", "scd-gumbel", "scd-match")


def wanted(method, bundle=BUNDLE, corrections=TABLE, **settings):
    place = Place(threads=1)
    return Wanted(bundle, place, 2, find_method(method), "graph", corrections=corrections, **settings)


def host_step(method, scale=1.0):
    if scale == 1:
        return HostStep(OrtProvider.open(BUNDLE, 2, threads=1), method, corrections=TABLE)
    inner = OrtProvider.open(BUNDLE, 4, threads=1)
    return HostStep(GuidedProvider(inner, scale, BUNDLE.manifest.unconditional_prompt), method, corrections=TABLE)


@pytest.mark.cases(4)
@pytest.mark.parametrize(("warped", "guidance"), [(False, 1.0), (True, 1.0), (False, 1.5)])
@pytest.mark.parametrize("method", METHODS)
def test_tokens_and_traces_are_those_of_host_step(method, warped, guidance):
    sampling = [Sampling(0.9, top_p=0.9), Sampling(), Sampling(top_k=20)] if warped else Sampling()
    step = cpu.open(wanted(method, warped=warped, guidance=guidance))
    ours = generate(step, PROMPTS, sampling=sampling, **SETTINGS)
    host = generate(host_step(method, guidance), PROMPTS, sampling=sampling, **SETTINGS)
    for found, expected in zip(ours.tokens, host.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [t.committed_per_step for t in ours.traces] == [t.committed_per_step for t in host.traces]


def test_a_method_that_redrafts_nothing_takes_its_own_graph():
    with cpu.open(wanted("ar")) as step:
        assert step.corrections is None


def test_a_closed_step_gives_its_tables_back():
    step = cpu.open(wanted("scd-match"))
    assert step.corrections is TABLE
    step.close()
    assert not hasattr(step, "_tables")


@pytest.fixture
def copied(tmp_path):
    """The bundle with step graphs as in ``records``."""
    shutil.copytree(BUNDLE.folder, tmp_path / "b")

    def made(*records):
        write_manifest(tmp_path / "b", dataclasses.replace(BUNDLE.manifest, step_graphs=records))
        return open_bundle(tmp_path / "b")

    return made


def test_a_bundle_without_corrected_graphs_is_refused_with_the_command_that_makes_them(copied):
    bundle = copied(StepGraph("step-scd-match.onnx", "scd-match"))
    message = cpu.takes(wanted("scd-match", bundle))
    assert "no step graph for scd-match corrected, it has scd-match; make one with" in message
    assert cpu.takes(wanted("scd-match", bundle, None)) is None
    assert cpu.takes(wanted("scd-match")) is None


def test_corrected_graphs_are_not_taken_without_a_table(copied):
    bundle = copied(StepGraph("step-sjd-corrected.onnx", "sjd", corrected=True))
    assert "no step graph for sjd, it has sjd corrected" in cpu.takes(wanted("sjd", bundle, None))


def test_a_corrector_of_another_kind_is_refused_by_name():
    class Own:
        lags = (1,)

        def correct(self, logits, changes):
            return logits

    assert "corrections is a Own" in cpu.takes(wanted("scd-match", corrections=Own()))
    assert "step='host'" in cpu.takes(wanted("scd-match", corrections=Own()))


def test_cuda_refuses_corrected_step_graphs():
    asked = dataclasses.replace(wanted("scd-match"), place=Place("cuda"))
    assert "run with backend 'cpu' only" in cuda.takes(asked)
    assert cuda.takes(dataclasses.replace(asked, corrections=None)) is None
    assert cuda.takes(dataclasses.replace(asked, step="host")) is None


def test_a_graph_that_is_corrected_unlike_what_the_manifest_says_is_refused(copied):
    bundle = copied(StepGraph("step-sjd.onnx", "sjd", corrected=True))
    with pytest.raises(BundleError, match="corrected False, the manifest promises True"):
        cpu.open(wanted("sjd", bundle))


def test_manifests_from_before_corrected_graphs_are_read_as_they_were(tmp_path):
    document = json.loads((BUNDLE.folder / "manifest.json").read_text())
    plain = [record for record in document["step_graphs"] if not (record["corrected"] or record["tree"])]
    kept = [{name: record[name] for name in ("file", "method", "warped", "guided", "noise")} for record in plain]
    assert len(kept) == 15
    shutil.copytree(BUNDLE.folder, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(document | {"step_graphs": kept}))
    bundle = open_bundle(tmp_path / "b")
    assert not any(graph.corrected for graph in bundle.manifest.step_graphs)
    assert bundle.step_graph("sjd").name == "step-sjd.onnx"
    assert bundle.step_graph("sjd", corrected=True) is None


def test_tables_must_fit_the_model():
    with pytest.raises(InvalidArgument, match="corrections is for 9 tokens, expected 267"):
        cpu.open(wanted("sjd", corrections=random_low_rank(0, 9, (1, 3))))
