"""The whole fit: it goes on where it was stopped, gives the same tables again, and refuses what is another fit."""

import json
from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.bundles.hidden import held_alone
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.fitting import FitSettings, Optimiser, Recording, fit_corrections
from coupled_sampling.fitting.work import remove_work

PLAN = FitSettings(samples=2, apart=1, optimiser=Optimiser(rank=2, steps=3))


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


@pytest.fixture(scope="module")
def model(bundle):
    with open_model(bundle, Place(threads=1)) as opened:
        yield opened


def fit(bundle, model, work, plan=PLAN, **given):
    return fit_corrections(model, bundle, bundle.settings(window=32, **given), [(258,), (263,)], work, settings=plan)


@pytest.fixture(scope="module")
def done(bundle, model, tmp_path_factory):
    work = tmp_path_factory.mktemp("fit") / "work"
    return fit(bundle, model, work), work


def same(one, other):
    return all(
        np.array_equal(getattr(one.fitted[use], part), getattr(other.fitted[use], part))
        for use in one.fitted
        for part in ("basis", "neighbours", "unigram", "stale_scale", "unigram_scale")
    )


def test_there_is_a_table_for_each_use_with_neighbours_of_the_layout(done, bundle):
    fitted, _ = done
    assert set(fitted.tables.fitted) == {"match", "rejection"}
    assert fitted.tables.lags == (1, 14)
    assert {table.vocab_size for table in fitted.tables.fitted.values()} == {bundle.manifest.vocab_size}
    told = fitted.provenance["rejection"]
    assert (told["loss"], told["samples"], told["temperature"], told["window"]) == ("tv", 4, 1.0, 32)
    assert set(told["apart"]["tokens_per_pass"]) == {"none", "plain", "fitted"}
    json.dumps(fitted.provenance, allow_nan=False)


def test_plain_averages_are_those_of_the_committed_laws(done):
    fitted, _ = done
    assert fitted.tables.plain["rows"].shape[1] == 267
    assert np.isfinite(fitted.tables.plain["rows"]).all()


def test_a_fit_that_was_stopped_goes_on_and_ends_the_same(done, bundle, model, tmp_path, monkeypatch):
    decodes = []
    pairs = Recording.pairs

    def counted(self, tokens, generator):
        decodes.append(len(tokens))
        if len(decodes) == 4:
            raise KeyboardInterrupt
        return pairs(self, tokens, generator)

    monkeypatch.setattr(Recording, "pairs", counted)
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        fit(bundle, model, work)
    left = sorted(path.name for path in work.iterdir())
    assert left == ["fit.json", *(f"sample-{stage}-0000{i}.npz" for stage, i in ((0, 0), (0, 1), (1, 0)))]
    again = fit(bundle, model, work)
    assert len(decodes) == 4 + 1 + 6  # what was left, and the samples kept apart in three ways for two uses
    assert same(again.tables, done[0].tables)


def test_a_sample_file_that_is_damaged_is_made_again(done, bundle, model):
    fitted, work = done
    (work / "sample-0-00001.npz").write_bytes(b"PK\x03\x04 half of it")
    assert same(fit(bundle, model, work).tables, fitted.tables)


def test_a_folder_of_another_fit_is_refused_and_left_alone(done, bundle, model, tmp_path):
    _, work = done
    for other in ({"plan": replace(PLAN, seed=2)}, {"temperature": 0.5}):
        with pytest.raises(OutputError, match="holds another fit"):
            fit(bundle, model, work, **other)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.png").write_bytes(b"1")
    with pytest.raises(OutputError, match="holds no fit"):
        fit(bundle, model, mine)
    assert [path.name for path in mine.iterdir()] == ["photo.png"]
    (mine / "photo.png").rename(mine / "fit.json")
    with pytest.raises(OutputError, match="holds another fit"):
        fit(bundle, model, mine)
    with pytest.raises(OutputError, match="working folder"):
        fit(bundle, model, mine / "fit.json")


def test_two_runs_do_not_work_in_one_folder(done, bundle, model):
    fitted, work = done
    with held_alone(work / "fit.json") as alone:
        assert alone
        with pytest.raises(OutputError, match="another run is fitting"):
            fit(bundle, model, work)
    half = work / ".sample-0-00000.npz-0123456789abcdef.coupled-sampling.partial.npz"
    half.write_bytes(b"half")
    assert same(fit(bundle, model, work).tables, fitted.tables)
    assert not half.exists()  # a run that was killed left it


def test_pairs_stay_within_the_memory_for_them(bundle, model, tmp_path, monkeypatch):
    most, seen = 200 * 256 * 4, []
    pairs = Recording.pairs

    def noted(self, *given):
        seen.append(len(self._candidates))
        return pairs(self, *given)

    monkeypatch.setattr(Recording, "pairs", noted)
    fit(bundle, model, tmp_path / "work", plan=replace(PLAN, most_bytes=most))
    assert max(seen) <= 50  # a quarter, while a sample is decoded
    held = [np.load(path)["before"] for path in (tmp_path / "work").glob("sample-*.npz")]
    assert 0 < max(map(len, held)) <= 50


def test_removing_a_working_folder_leaves_what_is_not_its_own(tmp_path):
    for name in ("fit.json", "sample-0-00000.npz", "notes.txt"):
        (tmp_path / name).write_text("x")
    remove_work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    remove_work(tmp_path)  # of nobody: nothing happens
    assert (tmp_path / "notes.txt").exists()


def test_no_two_samples_share_noise_but_those_that_are_compared(bundle, model, tmp_path, monkeypatch):
    keys = []
    add = Decoder.add
    monkeypatch.setattr(
        Decoder, "add", lambda self, request: keys.append((request.seed, request.sequence)) or add(self, request)
    )
    fit(bundle, model, tmp_path / "work")
    assert len(keys) == 4 + 6  # the sample kept apart is decoded in three ways, for two uses
    assert len(set(keys)) == 4 + 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"plan": {"samples": 1}}, "samples is 1, expected at least 2"),
        ({"plan": {"samples": 10**9}}, "samples is 1000000000, expected at most"),
        ({"plan": {"apart": 0}}, "fit: apart"),
        ({"plan": {"loss": "l1"}}, "loss is 'l1'"),
        ({"plan": {"seed": -1}}, "seed is -1"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_decoded(bundle, model, tmp_path, given, said):
    asked = given.pop("plan", {})
    with pytest.raises(InvalidArgument, match=said):
        fit(bundle, model, tmp_path / "work", plan=FitSettings(**asked), **given)
    assert not (tmp_path / "work").exists()


def test_a_fit_needs_prompts(bundle, model, tmp_path):
    with pytest.raises(InvalidArgument, match=r"prompts is \[\]"):
        fit_corrections(model, bundle, bundle.settings(), [], tmp_path / "work", settings=PLAN)
