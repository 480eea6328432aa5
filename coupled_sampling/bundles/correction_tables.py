"""Correction tables in a bundle: fitted once to the model's own samples, and used whenever it is decoded.

A bundle may have a file of arrays, ``corrections.npz``, with a fitted `coupled_sampling.corrections.LowRank` for each of two uses:
"match", and "rejection", whose tables are fitted for another loss. Beside them it may keep the running averages of plain
corrections. ``docs/bundle-format.md`` names the arrays. A *network*, an ONNX file beside them, predicts better and costs more.

A table is worth something for the one model it was fitted to. A wrong one would change no law, and cost speed without a word. So
the file and the manifest both hold a *fingerprint* of what a table depends on: the graph and its weights, the vocabulary, and where
the tokens stand. A table whose fingerprint is not the bundle's is refused.

The file is a stranger's: it is read up to a limit, with nothing compressed and nothing pickled in it, so that it takes hardly more
memory than it has bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.graph_files import external_files
from coupled_sampling.bundles.json_files import CORRECTION_NETWORK, CORRECTIONS_FILE, read_small
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.records import USES, CorrectionsRecord
from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_is
from coupled_sampling.plain_corrections import KeptAverages

__all__ = ["FILE", "USES", "CorrectionTables", "fingerprint", "neighbour_lags", "read_corrections", "stored_arrays"]

FILE = "corrections.npz"

_PARTS = ("unigram", "basis", "neighbours", "stale_scale", "unigram_scale")

_MOST_ARRAYS = 64
_DIRECTORY_ENTRY = 512
"""Bytes of an array's entry in the archive's directory, at most."""


@dataclass(frozen=True, eq=False)
class CorrectionTables:
    """What a bundle's file of corrections holds.

    Parameters
    ----------
    fitted
        By use, "match" or "rejection", the table for it. All of them look at the same neighbours.
    plain
        The ``state`` of a `coupled_sampling.plain_corrections.KeptAverages`; empty if none are kept.
    network
        Content of the ONNX file of a network, see `coupled_sampling.backends.NetworkCorrection`; None if there is none.

    Raises
    ------
    InvalidArgument
        There is no fitted table, one has a use that there is not, or they differ in lags or vocabulary.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.bundles import CorrectionTables
    >>> from coupled_sampling.corrections import LowRank
    >>> table = LowRank((1,), np.zeros(4), np.zeros((4, 2)), np.zeros((1, 5, 2)), np.ones(2), np.zeros(2))
    >>> CorrectionTables({"match": table}).lags
    (1,)
    """

    fitted: Mapping[str, LowRank]
    plain: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    network: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fitted, Mapping) or not self.fitted:
            raise InvalidArgument(
                f"fitted is {self.fitted!r}, expected tables by use, such as {{'match': LowRank(...)}}"
            )
        for use, table in self.fitted.items():
            if use not in USES or not isinstance(table, LowRank):
                raise InvalidArgument(
                    f"fitted has {use!r}: {table!r}, expected a LowRank for some of {', '.join(USES)}"
                )
        check_is("plain", self.plain, Mapping[str, Any])
        check_is("network", self.network, bytes | None)
        kinds = {(table.lags, table.vocab_size) for table in self.fitted.values()}
        if len(kinds) != 1:
            raise InvalidArgument(
                f"fitted has tables of different lags or vocabularies, {sorted(kinds)}; expected one kind"
            )

    @property
    def lags(self) -> tuple[int, ...]:
        """Where the neighbours stand that all of its tables look at."""
        return next(iter(self.fitted.values())).lags


def neighbour_lags(manifest: Manifest) -> tuple[int, ...]:
    """How far before a position its neighbours stand, as the order of a model's tokens has it.

    In a picture they are the token to the left and the one above, which is a row before: its columns, and a row's end where the
    layout has one, and in a clip also the one in the same place of the frame before. In a text it is the token to the left alone.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.bundles import neighbour_lags
    >>> neighbour_lags(open_bundle("fashion").manifest)
    (1, 14)
    """
    grid = check_is("manifest", manifest, Manifest).grid
    if grid is None:
        return (1,)
    row = manifest.free_position(grid.columns) - manifest.free_position(0) if grid.rows > 1 else 1
    return tuple(dict.fromkeys((1, row, manifest.frame_tokens or 1)))


def fingerprint(folder: Path, manifest: Manifest, lags: tuple[int, ...]) -> str:
    """64 hex digits of what tables with ``lags`` depend on: the graph and its weights, the tokens, and where they stand.

    Raises
    ------
    BundleError
        The window graph cannot be read.
    """
    graph, grid = manifest.window_graph.file, manifest.grid
    facts = {
        "files": [manifest.files[name].sha256 for name in (graph, *external_files(folder / graph))],
        "vocab_size": manifest.vocab_size,
        "generated_tokens": [manifest.generated_tokens.first, manifest.generated_tokens.count],
        "grid": None if grid is None else [grid.rows, grid.columns, *((grid.frames,) if grid.frames else ())],
        "layout": [[span.first, span.count, span.times] for span in manifest.layout],
        "lags": list(lags),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def stored_arrays(tables: CorrectionTables, mark: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file, by name; ``mark`` is the fingerprint."""
    arrays: dict[str, NDArray[Any]] = {
        "fingerprint": np.frombuffer(bytes.fromhex(mark), np.uint8),
        "lags": np.array(tables.lags, np.int64),
    }
    if tables.network is not None:
        arrays["network"] = _digest(tables.network)
    for use, table in tables.fitted.items():
        arrays |= {f"{use}/{part}": _narrowed(getattr(table, part)) for part in _PARTS}
    return arrays | {f"plain/{name}": _narrowed(np.asarray(values)) for name, values in tables.plain.items()}


def _digest(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _narrowed(values: NDArray[Any]) -> NDArray[Any]:
    """Matrices in half precision: they have nearly all the bytes, and a fit to some hundred samples has not three digits."""
    if values.dtype.kind != "f":
        return values
    half = values.ndim > 1 and float(np.abs(values).max(initial=0)) < float(np.finfo(np.float16).max)
    return values.astype(np.float16 if half else np.float32)


def read_corrections(folder: Path, manifest: Manifest) -> CorrectionTables:
    """The tables of the bundle at ``folder``, whose manifest says that it has some.

    Raises
    ------
    BundleError
        The file is damaged, too large, or no file of corrections; or it was made for another model, vocabulary or layout.
    """
    record = manifest.corrections
    assert record is not None, "the caller looked"
    path = folder / record.file
    if record.fingerprint != fingerprint(folder, manifest, record.lags):
        raise BundleError(
            f"{path} was made for another model, vocabulary or layout than the bundle {manifest.name} has now; run "
            "coupled-sampling fit-corrections again, or decode with corrections 'none'"
        )
    content = read_small(path, CORRECTIONS_FILE)
    network = None if record.network is None else read_small(folder / record.network, CORRECTION_NETWORK)
    try:
        arrays = _arrays(content)
        return _tables(arrays, manifest, record, network)
    except Exception as error:  # a stranger's bytes: anything may come of them
        said = str(error) or type(error).__name__
        raise BundleError(f"{path} is no whole file of corrections: {said}; copy it again, or fit it again") from error


def _tables(
    arrays: dict[str, NDArray[Any]], manifest: Manifest, record: CorrectionsRecord, network: bytes | None
) -> CorrectionTables:
    mark, lags = arrays.pop("fingerprint"), arrays.pop("lags")
    if mark.dtype != np.uint8 or mark.tobytes().hex() != record.fingerprint:
        raise ValueError("its fingerprint is not the manifest's")
    if lags.dtype != np.int64 or tuple(lags.tolist()) != record.lags:
        raise ValueError(f"its lags are {lags.tolist()}, expected the manifest's, {list(record.lags)}")
    if network is not None and not np.array_equal(arrays.pop("network"), _digest(network)):
        raise ValueError(f"{record.network} is not the network that it was stored with")
    fitted = {}
    for use in record.uses:
        parts = {part: arrays.pop(f"{use}/{part}") for part in _PARTS}
        fitted[use] = table = LowRank(record.lags, **parts)
        if table.vocab_size != manifest.vocab_size:
            raise ValueError(f"its table for {use} is over {table.vocab_size} tokens, expected {manifest.vocab_size}")
    plain = {name.removeprefix("plain/"): values for name, values in arrays.items() if name.startswith("plain/")}
    if len(plain) != len(arrays):
        raise ValueError(f"it has {len(arrays) - len(plain)} arrays that nothing asks for")
    if plain:
        kept = KeptAverages.from_state(plain)
        if (kept.lags, kept.vocab_size) != (record.lags, manifest.vocab_size):
            raise ValueError(f"its averages are over {kept.vocab_size} tokens with lags {kept.lags}, unlike its tables")
    return CorrectionTables(fitted, plain, network)


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed archive of numpy's, by name: views of ``content``'s parts, so that none is larger than it."""
    _check_directory(content)
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name in found:
                raise ValueError(f"its entry {entry.filename!r:.80} is no array, or there twice")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its array {name!r:.80} is compressed, expected numpy.savez without compression")
            found[name] = _array(archive.read(entry), name)
    return found


def _check_directory(content: bytes) -> None:
    """Refuse an archive of more entries than it can need: Python makes an object of each before anybody can look."""
    end = content[-22:]
    if end[:4] != b"PK\x05\x06" or content[-42:-38] == b"PK\x06\x07":
        raise ValueError("its end is not that of an archive as numpy.savez writes it")
    if int.from_bytes(end[12:16], "little") > _MOST_ARRAYS * _DIRECTORY_ENTRY:
        raise ValueError(f"it has more than {_MOST_ARRAYS} arrays")


def _array(data: bytes, name: str) -> NDArray[Any]:
    """An array of numbers in numpy's format, exactly as long as its header says."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"its array {name!r:.80} is not of version 1.0 of numpy's format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"its array {name!r:.80} is of {dtype!s:.80}, expected numbers of at most 8 bytes")
    start = stream.tell()
    if len(shape) > 4 or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its array {name!r:.80} has {len(data) - start} bytes, which are not of shape {shape!s:.80}")
    values: NDArray[Any] = np.ndarray(shape, dtype, data, start, order="F" if by_columns else "C")
    return values.astype(np.float32) if dtype.kind == "f" else values
