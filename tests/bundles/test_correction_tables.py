"""Correction tables are read as they were stored, for the model they were made for, and from no file that is damaged."""

import io
import tracemalloc
import zipfile
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from coupled_sampling.bundles import CorrectionsRecord, CorrectionTables, neighbour_lags, open_bundle
from coupled_sampling.bundles.correction_tables import fingerprint, read_corrections, stored_arrays
from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.manifest import FileRecord, GeneratedTokens, Grid
from coupled_sampling.corrections import Changes, LowRank
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages
from standins.corrected_bundles import LAGS, WORDS, a_manifest, random_tables, with_arrays, write_plain_bundle
from standins.correctors import random_low_rank

MARK = "0123456789abcdef" * 4
PARTS = ("unigram", "basis", "neighbours", "stale_scale", "unigram_scale")


@pytest.fixture
def bundle(tmp_path):
    return write_plain_bundle(tmp_path / "toy")


@pytest.fixture
def arrays(bundle):
    return stored_arrays(random_tables(), fingerprint(bundle.folder, bundle.manifest, LAGS))


def test_tables_are_read_as_they_were_stored(bundle, arrays):
    expected, found = random_tables().fitted, with_arrays(bundle, arrays).correction_tables()
    assert set(found.fitted) == {"match", "rejection"}
    assert found.lags == LAGS
    assert not found.plain
    for use, table in expected.items():
        for part in PARTS:
            values = getattr(found.fitted[use], part)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, getattr(table, part), atol=1e-3, rtol=1e-3)
    assert arrays["match/basis"].dtype == np.float16, "they are most of the bytes"
    assert arrays["match/stale_scale"].dtype == np.float32


def test_numbers_too_large_for_half_precision_keep_their_size(bundle):
    table = random_low_rank(0, WORDS, LAGS)
    huge = replace(table, basis=table.basis * 1e6)
    arrays = stored_arrays(CorrectionTables({"match": huge}), fingerprint(bundle.folder, bundle.manifest, LAGS))
    found = with_arrays(bundle, arrays, uses=("match",)).correction_tables().fitted["match"]
    np.testing.assert_allclose(found.basis, huge.basis, rtol=1e-6)


def test_each_method_has_the_table_for_how_it_accepts(bundle, arrays):
    bundle = with_arrays(bundle, arrays)
    fitted = random_tables().fitted
    for method, use in (("scd-match", "match"), ("sjd", "rejection"), ("scd-maximal", "rejection")):
        for kind in ("auto", "fitted"):
            np.testing.assert_allclose(bundle.corrector(method, kind).unigram, fitted[use].unigram, rtol=1e-6)
    for method in ("ar", "speculative", "speculative-match"):
        assert [bundle.corrector(method, kind) for kind in ("auto", "fitted", "plain", "none")] == [None] * 4
    assert bundle.corrector("sjd", "none") is None


def test_a_table_that_there_is_not_is_refused_by_name_and_not_missed_by_default(bundle, arrays):
    for method in ("sjd", "ar"):
        with pytest.raises(
            InvalidArgument, match=rf"the bundle toy has no table for {method}; run `coupled-sampling fit-corr"
        ):
            bundle.corrector(method, "fitted")
        assert bundle.corrector(method) is None
    own = {name: values for name, values in arrays.items() if not name.startswith("rejection/")}
    only_match = with_arrays(bundle, own, uses=("match",))
    assert only_match.corrector("scd-match", "fitted") is not None
    assert only_match.corrector("ar", "fitted") is None
    assert only_match.corrector("sjd") is None
    with pytest.raises(InvalidArgument, match="has no table for sjd"):
        only_match.corrector("sjd", "fitted")
    with pytest.raises(InvalidArgument, match="corrections is 'fited', expected one of auto, none, plain, fitted"):
        bundle.corrector("sjd", "fited")


def test_plain_corrections_are_the_bundles_own_averages_or_are_learned(bundle):
    learned = bundle.corrector("sjd", "plain")
    assert isinstance(learned, RunningAverages)
    assert (learned.lags, learned.vocab_size, learned.positions) == (LAGS, WORDS, 0)
    averages = RunningAverages(LAGS, WORDS)
    averages.learn(
        np.random.default_rng(0).normal(size=(40, WORDS)), np.random.default_rng(1).integers(0, WORDS, (40, 2))
    )
    kept = averages.kept()
    tables = random_tables(plain=kept.state())
    made = with_arrays(bundle, stored_arrays(tables, fingerprint(bundle.folder, bundle.manifest, LAGS)))
    found = made.corrector("scd-match", "plain")
    assert isinstance(found, KeptAverages)
    changes = Changes(np.array([[0, 1]]), np.array([[2, 3]]), np.array([9]))
    logits = np.zeros((1, WORDS), np.float32)
    np.testing.assert_allclose(found.correct(logits, changes), kept.correct(logits, changes), atol=1e-2)
    assert made.corrector("scd-match").vocab_size == WORDS, "auto is the fitted table"


@pytest.mark.parametrize(
    ("changes", "lags"),
    [
        ({}, (1, 3)),
        ({"grid": Grid(1, 6)}, (1,)),
        ({"grid": Grid(6, 1)}, (1,)),
        ({"grid": None}, (1,)),
        ({"length": 8, "layout": Layout.grid(2, 3, (0, 4), row_end=4).spans}, (1, 4)),
        ({"length": 9, "layout": Layout.grid(2, 3, (0, 4), row_end=4, end=[4]).spans}, (1, 4)),
        ({"length": 8, "layout": (Span(4, 1, 2), Span(0, 4, 6))}, (1, 3)),
        (
            {
                "length": 11,
                "layout": (Span(4, 1, 1), Span(0, 2, 2), Span(0, 3, 1), Span(4, 1, 2), Span(0, 4, 3), Span(4, 1, 2)),
            },
            (1, 5),
        ),
        ({"length": 12, "grid": Grid(6, 1), "layout": Layout.grid(6, 1, (0, 4), row_end=4).spans}, (1, 2)),
    ],
)
def test_neighbours_are_left_and_above_in_the_order_of_the_tokens(changes, lags):
    assert neighbour_lags(a_manifest(**changes)) == lags


def test_a_layout_of_any_size_is_not_listed():
    huge = 2**50
    graph = replace(a_manifest().window_graph, cache_length=4 * huge, max_length=4 * huge)
    spans = (Span(0, 4, huge), Span(4, 1, 1), Span(0, 4, huge), Span(4, 1, 1))
    manifest = a_manifest(window_graph=graph, length=2 * huge + 2, grid=Grid(2, huge), layout=spans)
    assert neighbour_lags(manifest) == (1, huge + 1)


def other_graph(folder, manifest):
    return replace(manifest, files={**manifest.files, "window.onnx": FileRecord("1" * 64, 3)})


@pytest.mark.parametrize(
    "change",
    [
        other_graph,
        lambda folder, manifest: replace(manifest, generated_tokens=GeneratedTokens(1, 5)),
        lambda folder, manifest: replace(manifest, vocab_size=WORDS + 1),
        lambda folder, manifest: replace(manifest, grid=Grid(3, 2)),
        lambda folder, manifest: replace(manifest, grid=None),
        lambda folder, manifest: replace(manifest, layout=(Span(0, 4, 6),)),
        lambda folder, manifest: replace(manifest, corrections=replace(manifest.corrections, lags=(1, 2))),
        lambda folder, manifest: replace(manifest, corrections=replace(manifest.corrections, fingerprint="0" * 64)),
    ],
)
def test_tables_of_another_model_vocabulary_or_layout_are_refused_by_name(bundle, arrays, change):
    bundle = with_arrays(bundle, arrays)
    other = replace(bundle, manifest=change(bundle.folder, bundle.manifest))
    for ask in (other.correction_tables, lambda: other.corrector("sjd"), lambda: other.corrector("sjd", "plain")):
        with pytest.raises(
            BundleError, match=r"made for another model, vocabulary or layout than the bundle toy.*fit-corr"
        ):
            ask()
    assert other.corrector("sjd", "none") is None, "it can still be decoded with"


def test_what_says_nothing_about_the_model_leaves_tables_as_they_are(bundle, arrays):
    bundle = with_arrays(bundle, arrays)
    renamed = replace(bundle, manifest=replace(bundle.manifest, name="other", length=6, stop_tokens=(6,)))
    assert renamed.corrector("sjd", "fitted") is not None


def test_weights_in_a_file_of_their_own_count():
    bundle = open_bundle("fashion")
    before = fingerprint(bundle.folder, bundle.manifest, (1, 14))
    others = {name: replace(record, sha256="1" * 64) for name, record in bundle.manifest.files.items()}
    for name in ("window.onnx", "weights.bin"):
        changed = replace(bundle.manifest, files={**bundle.manifest.files, name: others[name]})
        assert fingerprint(bundle.folder, changed, (1, 14)) != before, name
    changed = replace(bundle.manifest, files={**bundle.manifest.files, "pixels.onnx": others["pixels.onnx"]})
    assert fingerprint(bundle.folder, changed, (1, 14)) == before
    assert fingerprint(bundle.folder, bundle.manifest, (1, 13)) != before


def saved(arrays, save=np.savez):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def entries(content, changed=(), *, compression=zipfile.ZIP_STORED):
    """The archive ``content`` with the bytes of some entries changed, and others added."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        parts = {name: old.read(name) for name in old.namelist()}
        for name, data in {**parts, **dict(changed)}.items():
            new.writestr(name, data)
    return stream.getvalue()


def header(text, version=(1, 0)):
    """An entry in numpy's format with a header of one's own, and 64 bytes."""
    text = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + b"\0" * 64


def of_shape(shape, kind="<f4"):
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


def pickled(arrays):
    return saved({**arrays, "match/basis": np.array([{"a": 1}], object)})


def twice(arrays):
    stream = io.BytesIO(saved(arrays))
    with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("lags.npy", of_shape((16,)))
    return stream.getvalue()


def with_flag(content, flag):
    """The archive with a flag set in the directory's first entry."""
    at = content.index(b"PK\x01\x02")
    return content[: at + 8] + bytes([content[at + 8] | flag]) + content[at + 9 :]


def of_many_entries(content, count):
    """The archive with its directory's first entry repeated."""
    at = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    size = content.index(b"PK\x01\x02", at + 4) - at
    many = content[at : at + size] * count
    sizes = len(many).to_bytes(4, "little")
    return content[:at] + many + content[end : end + 12] + sizes + content[end + 16 :]


def nan(arrays, name):
    values = arrays[name].copy()
    values.flat[0] = np.nan
    return saved({**arrays, name: values})


DAMAGE = {
    "empty": lambda arrays: b"",
    "no archive": lambda arrays: b"PK\x05\x06" + b"\0" * 40,
    "cut": lambda arrays: saved(arrays)[:-30],
    "cut at the beginning": lambda arrays: saved(arrays)[30:],
    "followed by something": lambda arrays: saved(arrays) + b"more",
    "a flipped byte": lambda arrays: saved(arrays)[:200] + bytes([saved(arrays)[200] ^ 1]) + saved(arrays)[201:],
    "pickled": pickled,
    "compressed": lambda arrays: saved(arrays, np.savez_compressed),
    "a bomb": lambda arrays: entries(saved(arrays), {"match/basis.npy": b"\0" * 10**7}, compression=zipfile.ZIP_DEFLATED),
    "encrypted": lambda arrays: with_flag(saved(arrays), 1),
    "an array twice": twice,
    "no array": lambda arrays: entries(saved(arrays), {"readme.txt": b"hello"}),
    "an array nobody asks for": lambda arrays: saved({**arrays, "match/bias": np.zeros(3)}),
    "an array that is missing": lambda arrays: saved({k: v for k, v in arrays.items() if k != "match/basis"}),
    "no fingerprint": lambda arrays: saved({k: v for k, v in arrays.items() if k != "fingerprint"}),
    "another fingerprint": lambda arrays: saved({**arrays, "fingerprint": np.zeros(32, np.uint8)}),
    "a fingerprint of floats": lambda arrays: saved({**arrays, "fingerprint": arrays["fingerprint"].astype(float)}),
    "other lags": lambda arrays: saved({**arrays, "lags": np.array([1, 2])}),
    "lags in another order": lambda arrays: saved({**arrays, "lags": np.array([3, 1])}),
    "integers": lambda arrays: saved({**arrays, "match/basis": np.zeros((WORDS, 2), int)}),
    "complex": lambda arrays: saved({**arrays, "match/basis": np.zeros((WORDS, 2), complex)}),
    "long doubles": lambda arrays: saved({**arrays, "match/basis": np.zeros((WORDS, 2), np.longdouble)}),
    "texts": lambda arrays: saved({**arrays, "match/basis": np.full((WORDS, 2), "x")}),
    "NaN in a matrix": lambda arrays: nan(arrays, "match/neighbours"),
    "NaN in a scale": lambda arrays: nan(arrays, "rejection/unigram_scale"),
    "a scale of 0": lambda arrays: saved({**arrays, "match/stale_scale": np.zeros(4, np.float32)}),
    "a rank too many": lambda arrays: saved({**arrays, "match/basis": np.zeros((WORDS, 3), np.float32)}),
    "a neighbour too few": lambda arrays: saved({**arrays, "match/neighbours": np.zeros((1, WORDS + 1, 2))}),
    "another vocabulary": lambda arrays: saved(stored_arrays(random_tables(vocab_size=WORDS + 1), MARK) | {
        "fingerprint": arrays["fingerprint"]}),
    "no number": lambda arrays: saved({**arrays, "match/unigram": np.float32(1.0)}),
    "10 TB": lambda arrays: entries(saved(arrays), {"match/basis.npy": of_shape((10**12, 10))}),
    "a size below 0": lambda arrays: entries(saved(arrays), {"match/basis.npy": of_shape((-16, -1))}),
    "more dimensions than anything": lambda arrays: entries(saved(arrays), {"match/basis.npy": of_shape((1,) * 40 + (16,))}),
    "a header that is no header": lambda arrays: entries(saved(arrays), {"match/basis.npy": header("[" * 3000)}),
    "a header that is a program": lambda arrays: entries(saved(arrays), {"match/basis.npy": header("__import__('os')")}),
    "a type that is none": lambda arrays: entries(saved(arrays), {"match/basis.npy": of_shape((16,), "<f9999999999")}),
    "another version": lambda arrays: entries(saved(arrays), {"match/basis.npy": header("{}", (2, 0))}),
    "more behind an array": lambda arrays: entries(saved(arrays), {"match/unigram.npy": of_shape((WORDS,))}),
    "a hundred thousand arrays": lambda arrays: of_many_entries(saved(arrays), 100_000),
    "a thousand arrays": lambda arrays: saved({**arrays, **{f"plain/{i}": np.zeros(1) for i in range(1000)}}),
    "plain averages that are none": lambda arrays: saved({**arrays, "plain/rows": np.zeros((2, WORDS))}),
    "plain averages of another vocabulary": lambda arrays: saved({**arrays, "plain/lags": np.array(LAGS),
        "plain/rows": np.zeros((1, 4)), "plain/index": np.zeros((2, 5), int)}),
    "plain averages of other neighbours": lambda arrays: saved({**arrays, "plain/lags": np.array((1, 2)),
        "plain/rows": np.zeros((1, WORDS)), "plain/index": np.zeros((2, WORDS + 1), int)}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line_and_takes_no_memory(bundle, arrays, damage):
    damaged = with_arrays(bundle, content=DAMAGE[damage](arrays))
    tracemalloc.start()
    try:
        with pytest.raises(
            BundleError, match=r"corrections\.npz is no whole file of corrections: .+; copy it again"
        ) as caught:
            damaged.corrector("sjd", "fitted")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_larger_than_any_is_not_read(bundle, arrays):
    made = with_arrays(bundle, arrays)
    with (made.folder / made.manifest.corrections.file).open("r+b") as file:
        file.truncate(2**30 + 1)  # a hole: it takes no room
    with pytest.raises(BundleError, match="1073741824 are the most that is read of a file of corrections"):
        read_corrections(made.folder, made.manifest)


def test_a_file_that_went_away_since_is_said_to_be_missing(bundle, arrays):
    made = with_arrays(bundle, arrays)
    (made.folder / made.manifest.corrections.file).unlink()
    with pytest.raises(BundleError, match="is missing, expected a file of corrections"):
        made.corrector("sjd")


def test_random_damage_is_refused_or_harmless(bundle, arrays):
    whole = saved(arrays)
    base = with_arrays(bundle, arrays)
    path, kinds = base.folder / base.manifest.corrections.file, set()
    for number in range(300):
        random = Random(number)
        content = bytearray(whole)
        for _ in range(random.choice((1, 2, 8))):
            content[random.randrange(len(content))] = random.choice((0, 1, 127, 255, random.randrange(256)))
        path.write_bytes(bytes(content))
        try:
            found = read_corrections(base.folder, base.manifest)
        except BundleError:
            kinds.add("refused")
        else:
            kinds.add("read")
            for use, table in random_tables().fitted.items():
                np.testing.assert_allclose(found.fitted[use].basis, table.basis, atol=1e-2)
    assert kinds == {"refused", "read"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lags": ()}, "corrections: lags is"),
        ({"lags": (1, 1)}, "corrections: lags is"),
        ({"lags": (0,)}, "corrections: lags is"),
        ({"fingerprint": "A" * 64}, r"corrections\.fingerprint is"),
        ({"fingerprint": "0" * 63}, r"corrections\.fingerprint is"),
        ({"uses": ()}, r"corrections\.uses is"),
        ({"uses": ("match", "match")}, r"corrections\.uses is"),
        ({"uses": ("none",)}, r"corrections\.uses is"),
    ],
)
def test_a_record_that_cannot_be_is_refused(changes, words):
    record = {"file": "a.npz", "lags": (1,), "fingerprint": MARK, "uses": ("match",), "provenance": {}}
    with pytest.raises(BundleError, match=words):
        CorrectionsRecord(**record | changes)


def test_a_record_names_a_file_that_is_listed():
    record = CorrectionsRecord("a.npz", (1,), MARK, ("match",), {})
    with pytest.raises(BundleError, match=r"corrections\.file is 'a\.npz', expected a file that is listed in files"):
        a_manifest(corrections=record)


def test_tables_are_of_one_kind():
    tables = random_tables().fitted
    with pytest.raises(InvalidArgument, match="different lags or vocabularies"):
        CorrectionTables({**tables, "match": random_low_rank(0, WORDS, (1, 2))})
    with pytest.raises(InvalidArgument, match="different lags or vocabularies"):
        CorrectionTables({**tables, "match": random_low_rank(0, WORDS + 1, LAGS)})
    for wrong in ({}, None, {"none": tables["match"]}, {"match": 1}, {"match": LowRank}):
        with pytest.raises(InvalidArgument, match="fitted"):
            CorrectionTables(wrong)
