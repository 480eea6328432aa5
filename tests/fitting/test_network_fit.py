"""A network is fitted on top of a table, and its graph does what the network did in torch."""

import sys

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.corrections import Changes
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.fitting import (
    FitSettings,
    NetworkOptimiser,
    Optimiser,
    Pairs,
    fit_corrections,
    fit_low_rank,
    fit_network,
)
from coupled_sampling.fitting import network as module
from coupled_sampling.fitting.low_rank import divergence
from coupled_sampling.fitting.pair_data import PairData
from coupled_sampling.fitting.pairs import log_laws
from coupled_sampling.testing import TableProvider, random_table

SIZE, FIRST, WORDS, LAGS = 6, 2, 9, (1, 4)
SMALL = NetworkOptimiser(hidden=32, read=4, embedding=8, basis=6, steps=300, batch=128, rate=0.01)


def pairs_of(seed, count=100):
    """Laws that a table cannot have: what the left neighbour adds depends on the upper one."""
    generator = np.random.default_rng(seed)
    both = np.random.default_rng(0).normal(size=(SIZE + 1, SIZE + 1, SIZE))
    old, new = generator.integers(0, SIZE + 1, (2, count, 2))
    new[:, 0] = np.where((old == new).all(axis=1), (old[:, 0] + 1) % (SIZE + 1), new[:, 0])
    rest = 0.2 * generator.normal(size=(count, SIZE))

    def law(at):
        return log_laws(2 * both[at[:, 0], at[:, 1]] + rest).astype(np.float32)

    def tokens(at):
        return np.where(at < SIZE, at + FIRST, 0)  # a token that cannot be generated

    return Pairs(tokens(old), tokens(new), law(old), law(new), np.arange(count))


@pytest.fixture(scope="module")
def parts():
    return [pairs_of(seed) for seed in range(1, 25)]


@pytest.fixture(scope="module")
def table(parts):
    return fit_low_rank(parts, LAGS, vocab_size=WORDS, first=FIRST, optimiser=Optimiser(rank=4, steps=200, batch=128))[
        0
    ]


@pytest.mark.torch
@pytest.mark.parametrize("loss", ["kl", "tv"])
def test_a_network_predicts_unseen_changes_better_than_its_table(parts, table, loss, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "require_torch", lambda: torch.set_num_threads(1) or torch)
    from coupled_sampling.backends.ort.network_correction import NetworkCorrection
    from coupled_sampling.backends.ort.session import open_session

    steps = []
    content, off = fit_network(parts, table, first=FIRST, loss=loss, optimiser=SMALL, progress=steps.append)
    assert sum(steps) == SMALL.steps
    before = divergence(table, [*parts[-3:]], FIRST)
    assert getattr(off, loss) < 0.6 * getattr(before, loss)
    network = NetworkCorrection(open_session(content, 1), table)
    unseen = pairs_of(1000, 300)
    logits = np.full((300, WORDS), -np.inf, np.float32)
    logits[:, FIRST : FIRST + SIZE] = unseen.before
    changes = Changes(*(np.where(at < 0, WORDS, at) for at in (unseen.old, unseen.new)), unseen.position)
    predicted = network.correct(logits, changes)
    found = 0.5 * np.abs(np.exp(log_laws(predicted[:, FIRST : FIRST + SIZE])) - np.exp(unseen.after)).sum(axis=1).mean()
    assert found < 0.7 * divergence(table, [unseen], FIRST).tv
    assert np.isneginf(predicted[:, :FIRST]).all()
    assert fit_network(parts, table, first=FIRST, loss=loss, optimiser=SMALL)[0] == content, "a fit is the same again"


@pytest.mark.torch
def test_the_graph_gives_what_the_network_gave_in_torch(parts, table):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends.ort.session import open_session
    from coupled_sampling.export.graphs.correction_network import network_graph

    def halved(values):
        return values.astype(np.float16).astype(np.float32)

    exact = type(table)(
        LAGS, table.unigram, halved(table.basis), halved(table.neighbours), table.stale_scale, table.unigram_scale
    )
    torch.manual_seed(0)
    fit = module._Fit(torch, exact, FIRST, SIZE, SMALL, "kl", 1.0)
    for step in range(1, 20):
        fit.step(step, PairData(parts, FIRST, 1.0).take(np.arange(step, 400, 7)))
    for name, values in fit._matrices.items():  # as they are stored
        scale = module._LOGS if name == "read_logs" else 1.0
        values.data = torch.from_numpy(halved(values.detach().numpy() * np.float32(scale))) / scale
    batch = PairData(parts, FIRST, 1.0).take(np.arange(50))
    expected = fit._predicted(batch).detach().numpy()
    content = network_graph(exact, module._over_vocabulary(fit.weights(), WORDS, FIRST), FIRST).SerializeToString()
    logits = np.zeros((50, WORDS), np.float32)
    logits[:, FIRST : FIRST + SIZE] = batch.before
    part = parts[0]
    feeds = {"logits": logits, "old": part.old[:50], "new": part.new[:50], "position": part.position[:50]}
    (found,) = open_session(content, 1).run(["corrected"], feeds)
    np.testing.assert_allclose(found[:, FIRST : FIRST + SIZE], expected, atol=1e-5, rtol=1e-5)


def test_without_torch_it_is_said_before_anything_is_decoded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    model = TableProvider(lambda *_: pytest.fail("the model was asked"), 267)
    bundle = open_bundle("fashion")
    with pytest.raises(MissingDependency, match=r"needs the package torch.*pip install 'coupled-sampling\[torch\]'"):
        fit_corrections(
            model,
            bundle,
            bundle.settings(window=8),
            [(258,)],
            tmp_path / "work",
            settings=FitSettings(samples=2, network=NetworkOptimiser()),
        )
    assert not (tmp_path / "work").exists()
    with pytest.raises(MissingDependency, match="torch"):
        fit_network([], None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden": 0}, "network: hidden"),
        ({"steps": 1.5}, "steps"),
        ({"rate": 1.0}, "rate is 1.0 and decay"),
        ({"decay": -0.1}, "decay -0.1"),
        ({"seed": -1}, "network: seed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(InvalidArgument, match=said):
        NetworkOptimiser(**settings)


def test_a_fit_with_a_network_goes_on_from_samples_of_one_without(tmp_path):
    """A working folder is of the samples, which are decoded before any network."""
    from coupled_sampling.fitting import fit as whole

    bundle, told = open_bundle("fashion"), []
    for network in (None, NetworkOptimiser(steps=3)):
        settings = FitSettings(samples=2, network=network)
        model = TableProvider(random_table(0, 267), 267)
        made = whole._Fitting(model, bundle, bundle.settings(window=8), [(258,)], tmp_path, settings, lambda *_: None)
        told.append(made._identity())
    assert told[0] == told[1]
