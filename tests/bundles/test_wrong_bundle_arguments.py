"""Wrong arguments to what is public in bundles and at the door of the back ends are refused by name."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.backends import (
    ConcatenatedProvider,
    EncoderDecoderProvider,
    OrtProvider,
    PixelDecoder,
    Place,
    check_model,
    open_onnx,
)
from coupled_sampling.bundles import (
    ChatTemplate,
    CorrectionsRecord,
    Defaults,
    FileRecord,
    GeneratedTokens,
    Grid,
    Layout,
    PixelGraph,
    Prompt,
    Span,
    StepGraph,
    Tokenizer,
    WindowGraph,
    file_record,
    write_manifest,
)
from standins.wrong_values import each_argument, refusals

BUNDLE = open_bundle("fashion")
GRAPH = dict.fromkeys(("opset", "layers", "kv_heads", "head_size", "cache_length", "max_length", "max_window"), 8)
FREE = {"provenance": {}}
WARPS = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}


def all_of(record):
    return type(record), {field.name: getattr(record, field.name) for field in fields(record)}


CALLS = each_argument(
    ChatTemplate=(ChatTemplate, {"source": "x", "special_tokens": {}}),
    CorrectionsRecord=(CorrectionsRecord, {"file": "a", "lags": (1,), "fingerprint": "0" * 64, "uses": ("match",), **FREE}),
    corrector=(BUNDLE.corrector, {"method": "sjd", "kind": "auto"}),
    Defaults=(Defaults, {"method": "ar", "window": 1, "drafting": "repeat", "guidance": 1.0, **WARPS}),
    FileRecord=(FileRecord, {"sha256": "0" * 64, "bytes": 1}),
    GeneratedTokens=(GeneratedTokens, {"first": 0, "count": 1}),
    Grid=(Grid, {"rows": 1, "columns": 1}),
    Layout=(Layout, {"spans": (Span(0, 1),)}),
    Span=(Span, {"first": 0, "count": 1, "times": 1}),
    PixelGraph=(PixelGraph, {"file": "a", "height": 1, "width": 1, "channels": 1}),
    Prompt=(Prompt, {"tokens": (1,), "aliases": (), "title": "x"}),
    StepGraph=(StepGraph, {"file": "a", "method": "ar", "warped": False, "guided": False, "noise": "ring"}),
    WindowGraph=(WindowGraph, {"file": "a", "dtype": "float32", "has_kv_length": True, "prompt_chunk": 4, **GRAPH}),
    Manifest=all_of(BUNDLE.manifest),
    Tokenizer=(Tokenizer, {"path": "nothing"}),
    file_record=(file_record, {"path": Path(__file__)}),
    open_bundle=(open_bundle, {"path_or_name": "fashion"}),
    settings=(BUNDLE.settings, {"method": "ar", "window": 4, "drafting": "repeat", "length": 3, "prompt_chunk": 2, **WARPS}),
    corrections=(BUNDLE.settings, {"corrections": "none"}),
    step_graph=(BUNDLE.step_graph, {"method": "ar", "warped": False, "guided": False, "noise": "ring"}),
    Place=all_of(Place()),
    check_model=(check_model, {"bundle": BUNDLE, "place": Place(), "rows": 1, "method": "ar", "step": "auto", "guidance": 1.0}),
    ConcatenatedProvider=(ConcatenatedProvider.open, {"path": "nothing", "max_length": 8, "tolerance": 0.1}),
    EncoderDecoderProvider=(EncoderDecoderProvider.open, {"path": "nothing", "max_length": 8, "tolerance": 0.1}),
    open_onnx=(open_onnx, {"path": "nothing", "widen": False, "max_length": 8, "tolerance": 0.1}),
    OrtProvider=(OrtProvider.open, {"bundle": BUNDLE}),
    PixelDecoder=(PixelDecoder.open, {"bundle": BUNDLE, "threads": 1}),
)  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_value_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    try:
        # What a manifest is free to say is only kept.
        assert refusals(CALLS[name]) or name.endswith(" provenance")
    except FileNotFoundError:
        assert name == "file_record path"


@pytest.mark.parametrize("name", ["folder", "manifest"])
def test_a_manifest_is_written_into_a_folder_or_refused(name, tmp_path):
    calls = each_argument(write=(write_manifest, {"folder": tmp_path, "manifest": BUNDLE.manifest}))
    assert refusals(calls[f"write {name}"])


def test_what_means_the_same_becomes_the_same():
    prompt = Prompt([np.int64(3), 4], [], "x")
    assert prompt.tokens == (3, 4)
    assert type(prompt.tokens[0]) is int
    assert prompt.aliases == ()
    assert type(Defaults("ar", 1, "repeat", guidance=2).guidance) is float
