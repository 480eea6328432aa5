"""The fit of a table: its gradients are those of its losses, and what it takes is what did best on samples kept apart."""

import numpy as np
import pytest

from coupled_sampling.corrections import Changes
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fitting import Optimiser, Pairs, fit_low_rank, pair_data
from coupled_sampling.fitting import low_rank as module
from coupled_sampling.fitting.low_rank import divergence
from coupled_sampling.fitting.pair_data import Batch, PairData

SIZE = 6


def pairs_of(seed, count=60, size=SIZE, neighbours=2):
    """Laws that both neighbours shape, and something else."""
    generator = np.random.default_rng(seed)
    left, above = np.random.default_rng(99).normal(size=(2, size, size))
    old = generator.integers(0, size, (count, neighbours))
    new = np.where(generator.random((count, neighbours)) < 0.6, generator.integers(0, size, old.shape), old)
    new[:, 0] = np.where((new == old).all(axis=1), (old[:, 0] + 1) % size, new[:, 0])
    rest = generator.normal(size=(count, size))

    def law(at):
        return module.log_laws(left[at[:, 0]] + 0.5 * above[at[:, 1]] + 0.3 * rest).astype(np.float32)

    return Pairs(old, new, law(old), law(new), np.arange(len(old)))


@pytest.mark.parametrize("loss", ["kl", "tv"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_are_those_of_the_loss(loss, temperature):
    data = PairData([pairs_of(0, 7)], 0, temperature)
    fit = module._Fit(data, Optimiser(rank=3), loss, temperature, 2)
    batch = data.take(np.arange(7))
    wide = module._Parameters(*(value.astype(np.float64) for value in fit.parameters))
    wide = wide._replace(stale_scale=wide.stale_scale * 0.8, unigram_scale=wide.unigram_scale + 0.1)
    batch = Batch(*batch[:3], batch.before.astype(np.float64), batch.after.astype(np.float64))

    def value(parameters):
        logits = module._predicted(parameters, fit.unigram, batch)[1].astype(np.float64) / temperature
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        if loss == "kl":
            return float((batch.after * (np.log(batch.after) - logs)).sum() / len(logs))
        return float(0.5 * np.abs(np.exp(logs) - batch.after).sum() / len(logs))

    found = module._gradient(wide, fit.unigram, batch, loss, temperature, 7)
    for name, slope in zip(module._Parameters._fields, found, strict=True):
        for index in list(np.ndindex(slope.shape))[:: max(1, slope.size // 12)]:
            moved = {}
            for sign in (1, -1):
                changed = getattr(wide, name).copy()
                changed[index] += sign * 1e-2
                moved[sign] = value(wide._replace(**{name: changed}))
            assert slope[index] == pytest.approx((moved[1] - moved[-1]) / 2e-2, abs=2e-3), (name, index)


@pytest.mark.parametrize("loss", ["kl", "tv"])
def test_a_fit_predicts_unseen_changes(loss):
    parts = [pairs_of(seed) for seed in range(16)]
    table, off = fit_low_rank(
        parts, (1, 4), vocab_size=SIZE, loss=loss, optimiser=Optimiser(rank=8, steps=300, batch=128)
    )
    unseen = pairs_of(1000, 400)
    before, after = divergence(None, [unseen], 0), divergence(table, [unseen], 0)
    assert after.kl < 0.5 * before.kl
    assert after.tv < 0.7 * before.tv
    assert abs(getattr(off, loss) - getattr(after, loss)) < 0.1


def test_the_table_is_the_one_that_did_best_on_samples_kept_apart(monkeypatch):
    parts, found = [pairs_of(seed, 10) for seed in range(8)], []
    measure = module._Fit.divergence

    def noted(self, parameters, data):
        found.append(measure(self, parameters, data))
        return found[-1]

    monkeypatch.setattr(module._Fit, "divergence", noted)
    table, off = fit_low_rank(parts, (1, 4), vocab_size=SIZE, optimiser=Optimiser(rank=4, steps=600))
    assert off.tv == min(one.tv for one in found) < found[-1].tv  # it has learnt the few it saw by heart
    assert divergence(table, parts[-1:], 0).tv == pytest.approx(off.tv, abs=1e-5)


def test_samples_kept_apart_are_not_fitted_to():
    """The last eighth of the samples may hold anything: parameters after a number of steps do not change."""
    parts = [pairs_of(seed) for seed in range(8)]
    seen = {}
    for name, last in (("own", parts[-1]), ("other", pairs_of(77))):
        fit = []
        original = module._Fit.step

        def step(self, count, fit=fit, original=original):
            original(self, count)
            fit.append(self.parameters.basis.copy())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module._Fit, "step", step)
            fit_low_rank([*parts[:-1], last], (1, 4), vocab_size=SIZE, optimiser=Optimiser(rank=2, steps=5))
        seen[name] = fit[-1]
    np.testing.assert_array_equal(seen["own"], seen["other"])


def test_tokens_outside_the_generated_ones_move_nothing():
    parts = [pairs_of(seed) for seed in range(8)]
    moved = [part._replace(old=part.old + 2, new=part.new + 2) for part in parts]
    table, _ = fit_low_rank(moved, (1, 4), vocab_size=SIZE + 5, first=2, optimiser=Optimiser(rank=2, steps=20))
    logits = np.random.default_rng(0).normal(size=(1, SIZE + 5))
    changes = Changes(np.array([[0, 3]]), np.array([[9, 3]]), np.array([20]))
    scaled = table.stale_scale[1] * logits + table.unigram_scale[1] * table.unigram
    np.testing.assert_allclose(table.correct(logits, changes), scaled, rtol=1e-5)
    assert not table.basis[:2].any()
    assert not table.basis[SIZE + 2 :].any()
    assert table.basis[2 : SIZE + 2].any()


def test_the_same_seed_gives_the_same_table():
    parts = [pairs_of(seed) for seed in range(4)]
    one, other = (
        fit_low_rank(parts, (1, 4), vocab_size=SIZE, optimiser=Optimiser(rank=2, steps=10))[0] for _ in range(2)
    )
    np.testing.assert_array_equal(one.basis, other.basis)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "l2"}, "loss is 'l2', expected 'kl' or 'tv'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"parts": [pairs_of(0)]}, "parts are 1 samples, without pairs"),
        ({"optimiser": {"rank": 0}}, "optimiser: rank"),
        ({"optimiser": {"rate": 2.0}}, "rate is 2.0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings, said):
    parts = settings.pop("parts", [pairs_of(0), pairs_of(1)])
    optimiser = settings.pop("optimiser", {})
    with pytest.raises(InvalidArgument, match=said):
        fit_low_rank(parts, (1, 4), vocab_size=SIZE, optimiser=Optimiser(**optimiser), **settings)


def test_a_large_vocabulary_is_taken_a_few_pairs_at_a_time(monkeypatch):
    """The gradient is that of the whole minibatch, and no array has more numbers than a block."""
    parts = [pairs_of(seed) for seed in range(3)]
    found = []
    for block in (2**20, 5 * SIZE):
        monkeypatch.setattr(pair_data, "_BLOCK", block)
        data = PairData(parts, 0, 1.0)
        assert max(len(batch.before) for batch in data.blocks()) <= block // SIZE
        fit = module._Fit(data, Optimiser(rank=3), "kl", 1.0, 2)
        index = np.arange(0, len(data), 7)
        found.append(fit._gradient(index))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_array_equal(data.take(index).before[3], np.concatenate([part.before for part in parts])[21])
