"""The network of a bundle, run by ONNX Runtime: what it predicts, what it is refused for, and when it is chosen."""

import dataclasses
import json

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.bundles import CorrectionTables, write_corrections
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.corrections import Changes, LowRank, Shifts
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from standins.correctors import random_low_rank

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
backends = pytest.importorskip("coupled_sampling.backends")
opening = pytest.importorskip("coupled_sampling.backends.opening")
choice = pytest.importorskip("coupled_sampling.backends.network_choice")
session = pytest.importorskip("coupled_sampling.backends.ort.session")
networks = pytest.importorskip("standins.correction_networks")
trt_bundles = pytest.importorskip("standins.trt_bundles")

NetworkCorrection, Place, open_model = backends.NetworkCorrection, backends.Place, backends.open_model
WORDS, LAGS = 11, (1, 3)
TABLES = {use: random_low_rank(seed, WORDS, LAGS, scale=0.5) for seed, use in enumerate(("match", "rejection"))}
SETTINGS = {"length": 16, "window": 6, "drafting": "repeat", "seed": 5}


def told(network=8.0, fitted=7.0):
    apart = {"tokens_per_pass": {"network": network, "fitted": fitted}}
    apart["corrections_per_pass"] = dict.fromkeys(apart["tokens_per_pass"], 20.0)
    return {use: {"window": 6, "apart": apart} for use in TABLES}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("plain") / "toy", steps=["scd-match"]))


@pytest.fixture(scope="module")
def bundle(plain, tmp_path_factory):
    """A bundle with tables and a network, which is said to gain a seventh."""
    tables = CorrectionTables(TABLES, network=networks.random_network(0, TABLES["match"], count=8))
    return write_corrections(plain, tables, told(), out=tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def changes():
    generator = np.random.default_rng(1)
    old, new = generator.integers(0, WORDS + 1, (2, 9, 2))
    new[1, 0], new[2, 1] = old[1, 0], old[2, 1]
    assert (old != new).any(axis=1).all()
    return Changes(old, new, np.arange(9))


def corrects(bundle, method, **settings):
    with open_model(bundle, Place(threads=1), 2, method=method, **settings) as model:
        return model.runs.step, model.runs.corrections


@pytest.mark.parametrize(("first", "count"), [(0, 11), (2, 6)])
def test_a_network_predicts_what_its_formula_says(changes, first, count):
    table = TABLES["match"]
    logits = np.random.default_rng(2).normal(0, 4, (9, WORDS)).astype(np.float32)
    logits[3, 4] = logits[4, :5] = -np.inf
    weights = networks.random_weights(0, table, count)
    content = networks.network_graph(table, weights, first).SerializeToString()
    network = NetworkCorrection(session.open_session(content, 1), table)
    halves = dataclasses.replace(
        table, **{name: getattr(table, name).astype(np.float16).astype(float) for name in ("basis", "neighbours")}
    )
    for given in (logits, logits.astype(np.float64)):
        found = network.correct(given, changes)
        np.testing.assert_allclose(
            found, networks.predicted(halves, weights, first, logits, changes), atol=2e-5, rtol=2e-5
        )
    logits[5] = -np.inf
    found = network.correct(logits, changes)
    assert np.isneginf(found[5]).all(), "what is forbidden stays so"
    assert np.isfinite(np.delete(found, (3, 4, 5), axis=0)).all()


def test_rows_are_corrected_together_as_they_are_alone(bundle, changes):
    network = NetworkCorrection.open(bundle, "scd-match")
    logits = np.random.default_rng(3).normal(size=(9, WORDS)).astype(np.float32)
    alone = [network.correct(logits[i : i + 1], Changes(*(part[i : i + 1] for part in changes)))[0] for i in range(9)]
    np.testing.assert_allclose(network.correct(logits, changes), alone, atol=1e-5)


def test_it_says_what_single_neighbours_change_by_its_table(bundle):
    network = NetworkCorrection.open(bundle, "sjd")
    assert isinstance(network, Shifts)
    assert (network.lags, network.vocab_size) == (LAGS, WORDS)
    asked = {"old": np.array([3]), "new": np.array([[3, 5]]), "tokens": np.array([[1, 2, 4]])}
    np.testing.assert_allclose(network.shifts(1, **asked), bundle.corrector("sjd").shifts(1, **asked))


def test_match_gives_the_tokens_of_ar_with_it(bundle):
    made = {}
    for method in ("ar", "scd-match"):
        with open_model(bundle, Place(threads=1), 2, method=method, corrections="network") as model:
            assert (model.runs.step, model.runs.corrections) == ("host", "" if method == "ar" else "NetworkCorrection")
            made[method] = [tokens.tolist() for tokens in generate(model, [[8], [3, 1]], **SETTINGS).tokens]
    assert made["ar"] == made["scd-match"]


def test_branches_go_with_it(bundle):
    model, settings = TableProvider(random_table(0, WORDS), WORDS), {**SETTINGS, "length": 40}
    plain = generate(model, [[1]], method="scd-match", **settings)
    network = NetworkCorrection.open(bundle, "scd-match")
    trees = generate(model, [[1]], method="scd-match", branches=3, corrections=network, **settings)
    assert trees.tokens[0].tolist() == plain.tokens[0].tolist()


def test_a_step_graph_has_none(bundle):
    with pytest.raises(
        InvalidArgument, match="corrections is a NetworkCorrection, of which a step graph knows nothing"
    ):
        open_model(bundle, method="scd-match", step="graph", corrections="network")
    assert corrects(bundle, "sjd", corrections="network") == ("host", "NetworkCorrection")


def test_a_bundle_without_one_is_refused_by_name(plain, bundle):
    tables = write_corrections(bundle, CorrectionTables(TABLES), {}, out=plain.folder.parent / "tables", force=True)
    for model in (plain, tables):
        for method in ("scd-match", "ar"):
            with pytest.raises(InvalidArgument, match=r"the bundle \w+ has none for .*fit-corrections --network"):
                open_model(model, method=method, corrections="network")
    with pytest.raises(InvalidArgument, match="'network', which a back end runs"):
        bundle.corrector("scd-match", "network")
    assert NetworkCorrection.open(bundle, "ar") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "cannot load a graph"),
        (lambda: networks.random_network(0, TABLES["match"])[:-40], "cannot load a graph"),
        (lambda: networks.random_network(0, random_low_rank(0, WORDS + 1, LAGS)), r"logits tensor.float. \(n, 12\)"),
        (lambda: networks.random_network(0, random_low_rank(0, WORDS, (1,))), r"old tensor.int64. \(n, 1\)"),
    ],
)
def test_a_graph_that_is_no_network_of_this_model_is_refused(plain, tmp_path, content, said):
    made = write_corrections(plain, CorrectionTables(TABLES, network=content()), {}, out=tmp_path / "made")
    with pytest.raises(BundleError, match=said):
        NetworkCorrection.open(made, "scd-match")


def test_a_network_goes_with_its_tables_alone(bundle, tmp_path):
    made = write_corrections(bundle, bundle.correction_tables(), told(), out=tmp_path / "made")
    record = made.manifest.corrections
    assert made.correction_tables().network == bundle.correction_tables().network
    path = made.folder / record.network
    path.write_bytes(networks.random_network(1, TABLES["match"]))
    with pytest.raises(BundleError, match=f"{record.network} has .*(truncated|damaged) or replaced"):
        open_bundle(made.folder)
    files = {**made.manifest.files, record.network: file_record(path)}
    write_manifest(made.folder, dataclasses.replace(made.manifest, files=files))
    with pytest.raises(BundleError, match="is not the network that it was stored with"):
        NetworkCorrection.open(made.folder, "scd-match")
    other = dataclasses.replace(
        made.manifest, files=files, corrections=dataclasses.replace(record, fingerprint="0" * 64)
    )
    write_manifest(made.folder, other)
    with pytest.raises(BundleError, match="made for another model"):
        NetworkCorrection.open(made.folder, "scd-match")
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(made.folder)


def test_other_tables_take_the_place_of_a_network_too(bundle, tmp_path):
    made = write_corrections(bundle, CorrectionTables(TABLES, network=b"another"), {}, out=tmp_path / "made")
    again = write_corrections(made, CorrectionTables(TABLES), {})
    assert again.manifest.corrections.network is None
    assert not list(made.folder.glob("*network*"))
    assert json.loads((made.folder / "manifest.json").read_text())["corrections"]["network"] is None


def timed(monkeypatch, *, of_a_pass, of_the_network, of_the_table=0.0):
    """Seconds as if they had been measured; gives how often a pass was."""
    seconds, passes = {NetworkCorrection: of_the_network, LowRank: of_the_table}, []
    monkeypatch.setattr(opening, "_NOT_WORTH_IT", set())
    monkeypatch.setattr(choice, "_pass_seconds", lambda *_: passes.append(1) or of_a_pass)
    monkeypatch.setattr(choice, "_correction_seconds", lambda corrector, *_: seconds[type(corrector)])
    return passes


@pytest.mark.parametrize(
    ("of_a_pass", "of_the_table", "step", "expected"),
    [
        (0.1, 0.0, "auto", ("graph", "LowRank")),  # 8 in 0.12 seconds, 7 in 0.1
        (0.2, 0.0, "auto", ("host", "NetworkCorrection")),
        (0.1, 0.0005, "host", ("host", "NetworkCorrection")),
        (0.1, 0.0, "host", ("host", "LowRank")),
    ],
)
def test_a_network_is_chosen_where_a_pass_is_dear(bundle, monkeypatch, of_a_pass, of_the_table, step, expected):
    timed(monkeypatch, of_a_pass=of_a_pass, of_the_network=0.001, of_the_table=of_the_table)
    assert corrects(bundle, "scd-match", step=step) == expected


def test_under_rejection_a_network_is_used_where_it_is_asked_for(bundle, monkeypatch):
    """Tokens depend on the corrector there, and a seed is to give the same ones on every machine."""
    passes = timed(monkeypatch, of_a_pass=10.0, of_the_network=0.0)
    assert corrects(bundle, "sjd") == ("host", "LowRank")
    assert corrects(bundle, "scd-match", corrections="fitted") == ("graph", "LowRank")
    assert not passes


def test_a_model_is_opened_twice_once(bundle, monkeypatch):
    passes = timed(monkeypatch, of_a_pass=0.001, of_the_network=0.001)
    settings = {"place": Place(threads=1), "rows": 3, "method": "scd-match"}
    for _ in range(3):
        with open_model(bundle, **settings) as model:
            assert (model.runs.step, model.runs.corrections) == ("graph", "LowRank")
    assert len(passes) == 1


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"match": 3},
        {"match": {"window": 6}},
        told(7.0, 7.0),
        told(True),
        told("8"),
        {"match": {**told()["match"], "window": "w"}},
    ],
)
def test_a_bundle_that_tells_nothing_good_of_its_network_is_decoded_with_the_table(
    bundle, tmp_path, monkeypatch, provenance
):
    passes = timed(monkeypatch, of_a_pass=10.0, of_the_network=0.0)
    made = write_corrections(bundle, bundle.correction_tables(), provenance, out=tmp_path / "made")
    assert corrects(made, "scd-match") == ("graph", "LowRank")
    assert not passes


def test_what_is_measured_leaves_no_trace(bundle, monkeypatch):
    """Passes that are timed write state, and what is decoded afterwards does not see it; with guidance neither."""
    passes, measured = [], choice._pass_seconds.__wrapped__  # see conftest
    monkeypatch.setattr(choice, "_pass_seconds", lambda *of: passes.append(measured(*of)) or 1.0)
    manifest = dataclasses.replace(bundle.manifest, unconditional_prompt=(2, 5))
    guided = dataclasses.replace(bundle, manifest=manifest)
    found = []
    for kind in ("auto", "fitted"):
        for guidance in (1.0, 2.0):
            with open_model(
                guided, Place(threads=1), method="scd-match", guidance=guidance, step="host", corrections=kind
            ) as model:
                found.append(generate(model, [[8]], **SETTINGS).tokens[0].tolist())
    assert found[:2] == found[2:]
    assert len(passes) == 2
    assert min(passes) > 0


def test_it_goes_beside_a_provider(bundle):
    correctors = (None, NetworkCorrection.open(bundle, "scd-match"))
    with open_model(bundle, Place(threads=1)) as model:
        made = [generate(model, [[8]], method="scd-match", corrections=own, **SETTINGS) for own in correctors]
    assert made[0].tokens[0].tolist() == made[1].tokens[0].tolist()
    steps = [own.traces[0].committed_per_step for own in made]
    assert steps[0] != steps[1], "it is asked"
