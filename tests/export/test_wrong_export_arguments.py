"""Wrong arguments to what is public in the exporter are refused by name, before anything is read or written."""

from dataclasses import fields

import numpy as np
import pytest

from coupled_sampling.export import (
    DecoderDescription,
    ExportSettings,
    GridRotary,
    LayerKind,
    Norm,
    PicturePositions,
    QueryKeyNorm,
    Rotary,
    RotaryScaling,
    Storage,
    add_step_graphs,
    export_checkpoint,
    open_checkpoint,
    pixel_graph,
    reference_logits,
    save_graph,
    step_graph,
    write_decoder_graph,
)
from standins.wrong_values import each_argument, refusals

onnx = pytest.importorskip("onnx")

SMALL = DecoderDescription(vocab_size=8, positions=16, width=4, layers=1, heads=2, mlp_width=8)
ZEROS = {name: np.zeros(shape, np.float32) for name, shape in SMALL.weight_shapes().items()}


def weights(name):
    return ZEROS[name]


def all_of(record):
    return type(record), {field.name: getattr(record, field.name) for field in fields(record)}


NOWHERE = "no folder/out"
CALLS = each_argument(
    DecoderDescription=all_of(SMALL),
    ExportSettings=all_of(ExportSettings()),
    GridRotary=(GridRotary, {"rows": 1, "columns": 1, "prefix": 1}),
    LayerKind=all_of(LayerKind()),
    Norm=all_of(Norm()),
    PicturePositions=all_of(PicturePositions(1, ((1, 1),), (1, 1, 1))),
    QueryKeyNorm=all_of(QueryKeyNorm()),
    Rotary=all_of(Rotary()),
    RotaryScaling=all_of(RotaryScaling("linear", 2.0)),
    Storage=all_of(Storage()),
    add_step_graphs=(add_step_graphs, {"source": NOWHERE, "out": NOWHERE, "methods": ("ar",)}),
    export_checkpoint=(export_checkpoint, {"source": NOWHERE, "out": NOWHERE, "settings": None, "check": None}),
    open_checkpoint=(open_checkpoint, {"source": NOWHERE}),
    pixel_graph=(pixel_graph, {"codebook": np.zeros((4, 2, 2, 1), np.uint8), "rows": 1, "columns": 1}),
    reference_logits=(reference_logits, {"description": SMALL, "tokens": np.array([0, 1])}),
    save_graph=(save_graph, {"model": onnx.ModelProto(), "path": NOWHERE}),
    step_graph=(step_graph, {"window_model": onnx.ModelProto(), "method": "ar", "warped": False, "noise": "ring"}),
    write_decoder_graph=(write_decoder_graph, {"description": SMALL, "path": NOWHERE, "storage": None}),
)


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_value_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right = {"reference_logits": {"weights": weights}, "write_decoder_graph": {"weights": weights}}
    call, given = CALLS[name], right.get(name.split()[0], {})
    assert refusals(lambda value: call(value, **given))
