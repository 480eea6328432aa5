"""Bundles to put correction tables into: what counts is the manifest, and the graph is only bytes."""

from dataclasses import replace

import numpy as np

from coupled_sampling.bundles import CorrectionTables, open_bundle
from coupled_sampling.bundles.correction_tables import fingerprint
from coupled_sampling.bundles.manifest import Defaults, FileRecord, GeneratedTokens, Grid, Manifest, Prompt, WindowGraph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.records import CorrectionsRecord
from standins.correctors import random_low_rank

WORDS = 7
LAGS = (1, 3)
PROVENANCE = {
    "match": {"temperature": 1.0, "samples": 160, "loss": "kl", "held_out": {"tokens_per_pass": 7.3}},
    "rejection": {"temperature": 0.7, "samples": 40, "loss": "tv"},
}


def a_manifest(**changes):
    """Six tokens of five words in two rows of three."""
    settings = {
        "name": "toy",
        "description": "A toy.",
        "files": {"window.onnx": FileRecord("0" * 64, 3)},
        "window_graph": WindowGraph("window.onnx", 24, "float32", 2, 2, 4, 64, 60, 8, True),
        "vocab_size": WORDS,
        "generated_tokens": GeneratedTokens(0, 5),
        "length": 6,
        "prompts": {"sneaker": Prompt((5,), (), "Sneaker")},
        "defaults": Defaults("scd-gumbel", 4, "copy:3"),
        "licence": "Apache-2.0",
        "provenance": {},
        "grid": Grid(2, 3),
    }
    return Manifest(**settings | changes)


def write_plain_bundle(folder, **changes):
    """A bundle without tables at ``folder``."""
    folder.mkdir()
    (folder / "window.onnx").write_bytes(b"not a graph, but bytes to count")
    write_manifest(folder, a_manifest(files={"window.onnx": file_record(folder / "window.onnx")}, **changes))
    return open_bundle(folder)


def random_tables(seed=0, vocab_size=WORDS, lags=LAGS, uses=("match", "rejection"), **settings):
    """A table for each use, fitted to nothing."""
    return CorrectionTables(
        {use: random_low_rank(seed + i, vocab_size, lags, scale=0.3) for i, use in enumerate(uses)}, **settings
    )


def with_arrays(bundle, arrays=None, *, content=None, uses=("match", "rejection"), lags=LAGS):
    """The bundle with a file of corrections made of ``arrays``, or of ``content``, and a manifest that says what it holds."""
    path = bundle.folder / "corrections.npz"
    if content is None:
        np.savez(path, **arrays)
    else:
        path.write_bytes(content)
    files = {**bundle.manifest.files, path.name: file_record(path)}
    mark = fingerprint(bundle.folder, bundle.manifest, lags)
    record = CorrectionsRecord(path.name, lags, mark, uses, PROVENANCE)
    write_manifest(bundle.folder, replace(bundle.manifest, files=files, corrections=record))
    return open_bundle(bundle.folder)
