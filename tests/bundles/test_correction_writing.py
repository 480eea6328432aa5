"""Tables get into a bundle whole or not at all, whoever reads it meanwhile and whatever kills the writer."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest

from coupled_sampling.bundles import correction_writing, open_bundle, opening, write_corrections
from coupled_sampling.bundles.correction_writing import check_corrections_place
from coupled_sampling.bundles.hidden import hidden_path
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.records import GrowingGraph
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from standins.corrected_bundles import LAGS, PROVENANCE, WORDS, random_tables, write_plain_bundle
from standins.correctors import random_low_rank

posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals")


@pytest.fixture
def bundle(tmp_path):
    return write_plain_bundle(tmp_path / "toy")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def unigram(bundle):
    return bundle.corrector("scd-match", "fitted").unigram.tolist()


def expected(seed):
    return random_tables(seed).fitted["match"].unigram.astype(np.float32).tolist()


def test_tables_are_written_into_a_bundle_and_take_the_place_of_those_before(bundle):
    first = write_corrections(bundle, random_tables(1), PROVENANCE)
    record = first.manifest.corrections
    assert (record.lags, record.uses, record.provenance) == (LAGS, ("match", "rejection"), PROVENANCE)
    assert first.manifest.description == bundle.manifest.description
    assert unigram(first) == expected(1)
    second = write_corrections(str(bundle.folder), random_tables(2), {"match": {}})
    assert unigram(second) == unigram(open_bundle(bundle.folder)) == expected(2)
    assert set(second.manifest.files) == {"window.onnx", second.manifest.corrections.file}
    assert set(names(bundle.folder)) == {"manifest.json", *second.manifest.files}
    assert json.loads((bundle.folder / "manifest.json").read_text())["format_version"] == 8


def test_the_same_tables_make_the_same_file(bundle):
    first = write_corrections(bundle, random_tables(1), {}).manifest
    again = write_corrections(bundle, random_tables(1), {}).manifest
    assert first == again
    assert (bundle.folder / again.corrections.file).exists()


def test_a_copy_is_made_where_it_is_asked_for(bundle, tmp_path):
    before = (bundle.folder / "manifest.json").read_bytes()
    made = write_corrections(bundle, random_tables(1), PROVENANCE, out=tmp_path / "copy")
    assert made.folder == tmp_path / "copy"
    assert unigram(made) == expected(1)
    assert (bundle.folder / "manifest.json").read_bytes() == before
    assert names(bundle.folder) == ["manifest.json", "window.onnx"]
    with pytest.raises(OutputError, match="it exists"):
        write_corrections(bundle, random_tables(2), {}, out=tmp_path / "copy")
    assert unigram(write_corrections(bundle, random_tables(2), {}, out=tmp_path / "copy", force=True)) == expected(2)
    itself = write_corrections(made.folder, random_tables(3), {}, out=made.folder, force=True)
    assert unigram(itself) == expected(3)
    assert len(names(made.folder)) == 3


@pytest.mark.parametrize(
    ("tables", "provenance", "words"),
    [
        (random_tables(vocab_size=WORDS + 1), {}, "tables are over 8 tokens, and the bundle toy has 7"),
        (random_tables(), {"match": {"loss": float("nan")}}, "provenance is .*, expected JSON with finite numbers"),
        (random_tables(), {"match": object()}, "provenance is .*, expected JSON"),
        (random_tables(), {"match": "x" * 70_000}, "provenance has 700.. characters of JSON"),
        (random_tables(), [], "provenance is"),
        (random_tables().fitted, {}, "tables is"),
        (None, {}, "tables is None"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_changed(bundle, tables, provenance, words):
    before = (bundle.folder / "manifest.json").read_bytes()
    with pytest.raises(InvalidArgument, match=words):
        write_corrections(bundle, tables, provenance)
    assert (bundle.folder / "manifest.json").read_bytes() == before
    assert names(bundle.folder) == ["manifest.json", "window.onnx"]


def test_a_bundle_that_may_not_be_written_to_is_refused_beforehand(bundle, monkeypatch):
    monkeypatch.setattr(correction_writing.os, "access", lambda *_: False)  # root may do anything
    with pytest.raises(OutputError, match=r"cannot write tables into .*no permission; name another folder with out"):
        check_corrections_place(bundle)
    with pytest.raises(OutputError, match="no permission"):
        write_corrections(bundle, random_tables(), {})
    assert names(bundle.folder) == ["manifest.json", "window.onnx"]


def test_an_onnx_file_of_somebody_elses_has_no_place_for_tables(bundle):
    graph = GrowingGraph(**dataclasses.asdict(bundle.manifest.window_graph))
    foreign = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, window_graph=graph))
    with pytest.raises(OutputError, match="is an ONNX file of somebody else's"):
        check_corrections_place(foreign)


def test_a_model_that_was_changed_since_gets_no_tables(bundle):
    (bundle.folder / "window.onnx").write_bytes(b"another one")
    files = {"window.onnx": file_record(bundle.folder / "window.onnx")}
    write_manifest(bundle.folder, dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(OutputError, match="its model was changed since they were fitted"):
        write_corrections(bundle, random_tables(), {})
    assert names(bundle.folder) == ["manifest.json", "window.onnx"]


def test_what_else_was_changed_since_stays_changed(bundle):
    write_manifest(bundle.folder, dataclasses.replace(bundle.manifest, description="Another one."))
    assert write_corrections(bundle, random_tables(), {}).manifest.description == "Another one."


def test_a_manifest_that_cannot_be_written_leaves_the_bundle_as_it_was(bundle, monkeypatch):
    first = write_corrections(bundle, random_tables(1), {})
    before = names(bundle.folder)

    def full(*_):
        raise OutputError("no space left")

    monkeypatch.setattr(correction_writing, "write_manifest", full)
    with pytest.raises(OutputError, match="no space left"):
        write_corrections(first, random_tables(2), {})
    assert names(bundle.folder) == before
    assert unigram(open_bundle(bundle.folder)) == expected(1)


def killed_at(name, bundle, seed, *, after):
    """Write tables in a process that is killed at a call of ``name``, before or after it."""
    child = os.fork()
    if child == 0:  # pragma: no cover - it dies
        plain = getattr(correction_writing, name)

        def dies(*arguments):
            if after:
                plain(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(correction_writing, name, dies)
        try:
            write_corrections(bundle, random_tables(seed), {})
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


@posix
@pytest.mark.parametrize(
    ("name", "after", "found"),
    [
        ("write_whole", False, 1),
        ("write_whole", True, 1),
        ("write_manifest", False, 1),
        ("write_manifest", True, 2),
        ("_remove_unnamed", False, 2),
        ("_remove_unnamed", True, 2),
    ],
)
def test_a_kill_leaves_the_old_bundle_or_the_new_one_and_the_next_writing_cleans_up(bundle, name, after, found):
    write_corrections(bundle, random_tables(1), {})
    killed_at(name, bundle, 2, after=after)
    assert unigram(open_bundle(bundle.folder)) == expected(found)
    write_corrections(bundle, random_tables(3), {})
    assert unigram(open_bundle(bundle.folder)) == expected(3)
    assert len(names(bundle.folder)) == 3


def test_half_a_file_that_a_kill_left_is_removed_by_the_next_writing_and_nothing_else_is(bundle):
    left = hidden_path(bundle.folder / "corrections-0123456789ab.npz", suffix=".npz")
    left.write_bytes(b"half")
    (bundle.folder / "corrections-of-mine.npz").write_bytes(b"mine")
    (bundle.folder / ".corrections-of-mine.npz-x").write_bytes(b"mine")
    write_corrections(bundle, random_tables(1), {})
    assert not left.exists()
    assert {".corrections-of-mine.npz-x", "corrections-of-mine.npz"} < set(names(bundle.folder))


def test_whoever_opens_a_bundle_while_tables_are_written_gets_the_new_ones(bundle, monkeypatch):
    first = write_corrections(bundle, random_tables(1), {})
    check, others = opening._check_file, iter([2, 3])

    def checked(path, record):
        seed = next(others, None) if path.name.startswith("corrections") else None
        if seed is not None:  # the manifest was read, and now another process puts other tables there
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(opening, "_check_file", check)
                write_corrections(first.folder, random_tables(seed), {})
        check(path, record)

    monkeypatch.setattr(opening, "_check_file", checked)
    assert unigram(open_bundle(bundle.folder)) == expected(3)
    assert next(others, None) is None


def test_a_bundle_that_is_damaged_and_not_just_replaced_is_refused(bundle):
    made = write_corrections(bundle, random_tables(1), {})
    (bundle.folder / made.manifest.corrections.file).unlink()
    with pytest.raises(BundleError, match="is missing, the manifest lists it"):
        open_bundle(bundle.folder)


def test_a_table_for_one_use_replaces_both(bundle):
    write_corrections(bundle, random_tables(1), {})
    made = write_corrections(bundle, random_tables(2, uses=("rejection",)), {})
    assert made.manifest.corrections.uses == ("rejection",)
    assert made.corrector("scd-match") is None
    assert made.corrector("sjd").vocab_size == WORDS


def test_tables_stay_with_a_model_whose_weights_move_to_a_file_of_their_own(tmp_path):
    pytest.importorskip("onnx")
    from coupled_sampling.export import add_step_graphs
    from standins.trt_bundles import write_bundle

    source = open_bundle(write_bundle(tmp_path / "toy"))
    table = random_low_rank(5, source.manifest.vocab_size, (1,))
    source = write_corrections(source, dataclasses.replace(random_tables(), fitted={"match": table}), PROVENANCE)
    made = add_step_graphs(source, tmp_path / "steps", ["ar"])
    assert "weights.bin" in made.manifest.files
    before, after = source.manifest.corrections, made.manifest.corrections
    assert before.fingerprint != after.fingerprint, "the graph is another file"
    assert after.provenance == PROVENANCE
    np.testing.assert_array_equal(
        made.corrector("scd-match", "fitted").neighbours, source.corrector("scd-match", "fitted").neighbours
    )
    assert [name for name in names(made.folder) if name.endswith(".npz")] == [after.file]
    stale = shutil.copytree(made.folder, tmp_path / "stale")
    write_manifest(
        stale, dataclasses.replace(made.manifest, corrections=dataclasses.replace(after, fingerprint="0" * 64))
    )
    with pytest.raises(BundleError, match="made for another model"):
        add_step_graphs(stale, tmp_path / "more", ["ar"])
