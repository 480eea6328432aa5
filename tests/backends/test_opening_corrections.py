"""What `open_model` makes of ``corrections``: the bundle's, plain ones, one's own, or none; and which steps can have them."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import Decoder, generate, open_bundle
from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.bundles import CorrectionTables, write_corrections
from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.plain_corrections import RunningAverages
from standins.correctors import Kept, random_low_rank

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
gpu_machine = pytest.importorskip("standins.gpu_machine")
trt_bundles = pytest.importorskip("standins.trt_bundles")

WORDS = 11
PROMPTS = [[8], [3, 1]]
SETTINGS = {"length": 16, "window": 6, "drafting": "repeat", "seed": 5}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A bundle without tables, with step graphs for two methods."""
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("plain") / "toy", steps=["scd-match", "sjd"]))


@pytest.fixture(scope="module")
def fitted(plain, tmp_path_factory):
    """The same with tables."""
    tables = {use: random_low_rank(seed, WORDS, (1,), scale=0.5) for seed, use in enumerate(("match", "rejection"))}
    return write_corrections(plain, CorrectionTables(tables), {}, out=tmp_path_factory.mktemp("fitted") / "toy")


def tokens_of(model, **settings):
    return [row.tolist() for row in generate(model, PROMPTS, **SETTINGS, **settings).tokens]


def corrects(bundle, method, place=None, **settings):
    with open_model(bundle, place or Place(threads=1), 2, method=method, **settings) as model:
        return model.runs.step, model.runs.corrections


def test_by_default_the_bundles_table_is_used_where_there_is_one(plain, fitted):
    for method, step in (("scd-match", "graph"), ("sjd", "graph"), ("scd-maximal", "host"), ("scd-gumbel", "host")):
        assert corrects(plain, method) == (step, "")
        assert corrects(fitted, method) == (step, "LowRank")
        assert corrects(fitted, method, step="host") == ("host", "LowRank")
        for kind in ("none", None):
            assert corrects(fitted, method, corrections=kind) == (step, "")
    for method in ("ar", "speculative"):
        assert corrects(fitted, method) == corrects(fitted, method, corrections="fitted") == ("host", "")


def test_a_step_has_the_table_for_how_its_method_accepts(fitted):
    for method, use in (("scd-match", "match"), ("sjd", "rejection"), ("scd-maximal", "rejection")):
        with open_model(fitted, method=method, step="host") as model:
            expected = fitted.correction_tables().fitted[use]
            np.testing.assert_array_equal(model.corrections.unigram, expected.unigram)


def test_a_graph_that_corrects_nothing_is_opened_without_a_table_and_not_with_one(fitted):
    graphs = tuple(graph for graph in fitted.manifest.step_graphs if not graph.corrected)
    old = dataclasses.replace(fitted, manifest=dataclasses.replace(fitted.manifest, step_graphs=graphs))
    assert corrects(old, "scd-match") == ("graph", "")
    assert corrects(old, "scd-match", step="graph") == ("graph", "")
    assert corrects(old, "scd-match", corrections="fitted") == ("host", "LowRank")
    with pytest.raises(InvalidArgument, match="has no step graph for scd-match corrected"):
        open_model(old, method="scd-match", step="graph", corrections="fitted")


def test_plain_corrections_and_those_of_ones_own_are_the_hosts(plain, fitted):
    own = Kept(1)
    for corrections, name in (("plain", "RunningAverages"), (own, "Kept")):
        assert corrects(fitted, "scd-match", corrections=corrections) == ("host", name)
        assert check_model(fitted, method="scd-match", corrections=corrections) == "host"
        with pytest.raises(
            InvalidArgument, match=r"step is 'graph', but corrections is a \w+, of which a step graph.*step='host'"
        ):
            check_model(fitted, method="scd-match", step="graph", corrections=corrections)
        assert check_model(fitted, method="ar", corrections=corrections) == "host"
    with open_model(plain, rows=2, method="scd-match", corrections=own) as model:
        tokens_of(model)
    assert own.asked, "it was never asked"
    with open_model(plain, method="scd-match", corrections="plain") as model:
        assert isinstance(model.corrections, RunningAverages)
        assert model.corrections.lags == (1,)


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_kernels_have_the_table_and_nothing_else(monkeypatch, fitted, backend):
    with gpu_machine.gpu_machine(monkeypatch):
        for method in ("scd-match", "scd-maximal"):
            assert corrects(fitted, method, Place(backend)) == ("kernels", "LowRank")
        with open_model(fitted, Place(backend), 2, method="sjd") as model:
            found = tokens_of(model)
        assert corrects(fitted, "sjd", Place(backend), corrections="plain") == ("host", "RunningAverages")
        with pytest.raises(InvalidArgument, match="and the kernels correct laws by a LowRank only; use step='host'"):
            check_model(fitted, Place(backend), method="sjd", step="kernels", corrections="plain")
    with open_model(fitted, rows=2, method="sjd", step="host") as model:
        assert found == tokens_of(model)


def test_a_step_in_tensorrt_corrects_nothing_and_says_so(monkeypatch, fitted):
    with gpu_machine.gpu_machine(monkeypatch):
        assert corrects(fitted, "scd-match", Place("tensorrt", max_window=6), step="graph") == ("graph", "")
        with pytest.raises(InvalidArgument, match="corrections are given, which an engine cannot apply"):
            check_model(fitted, Place("tensorrt"), method="scd-match", step="graph", corrections="fitted")


def test_what_cannot_be_is_refused_by_name(plain):
    other = random_low_rank(0, WORDS + 1, (1,))
    for settings, words in (
        (
            {"method": "sjd", "corrections": "fitted"},
            "the bundle toy has no table for sjd; run `coupled-sampling fit-corr",
        ),
        ({"method": "sjd", "corrections": "best"}, "corrections is 'best', expected one of auto, none, plain, fitted"),
        ({"method": "sjd", "corrections": 3}, "corrections is 3, expected an object with lags and correct"),
        ({"method": "sjd", "corrections": LowRank}, "corrections is <class"),
        ({"method": "sjd", "corrections": Kept(0)}, "lags is"),
        ({"method": "sjd", "corrections": other}, "corrections is for 12 tokens, expected 11, the model's"),
        ({"corrections": "plain"}, "corrections is 'plain', but method is None: a provider decides no steps"),
        ({"corrections": "fitted"}, "corrections is 'fitted', but method is None"),
        ({"corrections": Kept(1)}, "but method is None"),
    ):
        for ask in (open_model, check_model):
            with pytest.raises(InvalidArgument, match=words):
                ask(plain, **settings)


def test_a_provider_is_opened_without_corrections(fitted):
    for kind in ("auto", "none", None):
        assert check_model(fitted, corrections=kind) == "host"
    with open_model(fitted, rows=2) as provider:
        corrected = tokens_of(provider, method="sjd", corrections=fitted.corrector("sjd"))
    with open_model(fitted, rows=2, method="sjd", step="host") as step:
        assert corrected == tokens_of(step)


def test_an_argument_that_there_is_not_is_no_silence(plain):
    with pytest.raises(TypeError, match="unexpected keyword argument 'corections'"):
        open_model(plain, method="sjd", corections="none")
    with pytest.raises(TypeError, match="unexpected keyword argument 'progress'"):
        check_model(plain, method="sjd", progress=None)


def test_settings_go_on_to_a_step_and_to_a_provider(fitted):
    """The same words work for both, and both correct where they are told to."""
    settings = fitted.settings(method="sjd", window=6, corrections="fitted")
    with open_model(fitted, **settings.model) as step:
        decoder = Decoder(step, **settings.decoder)
        assert step.runs.corrections == "LowRank"
        decoder.add(settings.request([8], length=16))
        ours = [commit.tokens.tolist() for _ in range(40) for commit in decoder.step()]
    with open_model(fitted, guidance=settings.guidance) as provider:
        corrector = fitted.corrector(settings.method, settings.corrections)
        decoder = Decoder(provider, **settings.decoder, corrections=corrector)
        decoder.add(settings.request([8], length=16))
        assert ours == [commit.tokens.tolist() for _ in range(40) for commit in decoder.step()]
        uncorrected = Decoder(provider, **settings.decoder)
        uncorrected.add(settings.request([8], length=16))
        assert ours != [commit.tokens.tolist() for _ in range(40) for commit in uncorrected.step()]


def test_a_table_made_for_another_model_stops_the_opening_and_not_the_model(fitted):
    record = dataclasses.replace(fitted.manifest.corrections, fingerprint="0" * 64)
    other = dataclasses.replace(fitted, manifest=dataclasses.replace(fitted.manifest, corrections=record))
    for ask in (open_model, check_model):
        for kind in ("auto", "fitted", "plain"):
            with pytest.raises(
                BundleError, match=r"made for another model.*fit-corrections again, or decode with corrections 'none'"
            ):
                ask(other, method="sjd", corrections=kind)
    assert corrects(other, "sjd", corrections="none") == ("graph", "")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", ["host", "graph"])
def test_match_gives_the_tokens_of_ar_whatever_the_table(plain, step, seed):
    """Tables fitted to nothing, of all sizes: the number of passes depends on them, and no token."""
    with open_model(plain, rows=2, method="ar") as model:
        expected = tokens_of(model)
    table = random_low_rank(seed, WORDS, [(1,), (1, 3), (2,), (1, 2, 5)][seed], scale=[0.1, 1.0, 5.0, 50.0][seed])
    with open_model(plain, rows=2, method="scd-match", step=step, corrections=table) as model:
        assert (model.runs.step, model.runs.corrections) == (step, "LowRank")
        assert tokens_of(model) == expected
