"""Guidance of some generated tokens only: the same tokens as one at a time, wherever steps are decided, and however it is asked."""

from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import Decoder, Guidance, Request, open_bundle
from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.bundles import Bundle
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import load_graph, save_graph

FASHION = open_bundle("fashion")
SHOE = FASHION.manifest.find_prompt("shoe")
FIRST, END, SCALE = 9, 30, 4.0
LENGTH = 44


def tokens(bundle, method, scale, *, length=LENGTH, window=16, guidance=None, requests=3, **opened):
    """Generated tokens of some requests beside each other, whose prompts begin at different times."""
    with open_model(bundle, method=method, rows=2, guidance=scale, warped=True, **opened) as model:
        decoder = Decoder(model, window=window, drafting="copy:14")
        handles = [
            decoder.add(Request([258 + i], length, seed=5, sequence=i, guidance=guidance)) for i in range(requests)
        ]
        found = {handle: [] for handle in handles}
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                assert commit.error is None
                found[commit.handle] += commit.tokens.tolist()
    return [found[handle] for handle in handles]


WITHIN = Guidance.within(FIRST, END, SCALE)


@pytest.fixture(scope="module")
def one_at_a_time():
    return tokens(FASHION, "ar", WITHIN.scale, step="host", window=1)


@pytest.mark.parametrize(("step", "window"), [("host", 16), ("graph", 16), ("graph", 7), ("graph", LENGTH)])
def test_tokens_are_those_of_one_at_a_time(step, window, one_at_a_time):
    assert tokens(FASHION, "scd-match", WITHIN.scale, step=step, window=window) == one_at_a_time


def test_a_request_may_bring_the_interval(one_at_a_time):
    for step in ("host", "graph"):
        assert tokens(FASHION, "scd-match", 2.0, step=step, guidance=WITHIN) == one_at_a_time


def test_the_interval_begins_and_ends_where_it_says(one_at_a_time):
    """Tokens before it are those without guidance; all tokens, or none, are what guidance throughout and no guidance give."""
    plain = tokens(FASHION, "ar", 1.0, step="host", window=1)
    assert [row[:FIRST] for row in one_at_a_time] == [row[:FIRST] for row in plain]
    assert one_at_a_time != plain
    everywhere, nowhere = Guidance.within(0, 10**6, SCALE), Guidance.within(0, 0, SCALE)
    assert tokens(FASHION, "scd-match", everywhere.scale) == tokens(FASHION, "scd-match", SCALE)
    assert tokens(FASHION, "scd-match", nowhere.scale) == plain


@pytest.mark.parametrize(
    ("method", "step"), [(method, step) for method in ("sjd", "scd-gumbel") for step in ("host", "graph")]
)
def test_methods_by_rejection_agree_on_where_steps_are_decided(method, step):
    if step == "graph":
        assert tokens(FASHION, method, WITHIN.scale, step=step) == tokens(FASHION, method, WITHIN.scale, step="host")
    else:
        assert tokens(FASHION, method, WITHIN.scale, step=step) != tokens(FASHION, method, SCALE, step=step)


def with_one_scale_for_a_row(folder):
    """The bundle, with a guided step graph as they were written before: ``guidance`` is (B,), and the format's version 1."""
    onnx = pytest.importorskip("onnx")
    record = next(graph for graph in FASHION.manifest.step_graphs if graph.guided and graph.method == "scd-match")
    model = load_graph(FASHION.folder / record.file)
    for name in ("weights.bin", "window.onnx"):
        (folder / name).write_bytes((FASHION.folder / name).read_bytes())
    (scale,) = [value for value in model.graph.input if value.name == "guidance"]
    del scale.type.tensor_type.shape.dim[1]
    for node in model.graph.node:
        node.input[:] = ["guidance_of_slots" if name == "guidance" else name for name in node.input]
    axes = onnx.numpy_helper.from_array(np.array([1]), "axis_of_slots")
    model.graph.initializer.append(axes)
    model.graph.node.insert(0, onnx.helper.make_node("Unsqueeze", ["guidance", "axis_of_slots"], ["guidance_of_slots"]))
    for entry in model.metadata_props:
        entry.value = "1" if entry.key == "format_version" else entry.value
    save_graph(model, folder / record.file, check=False)
    old = replace(record, scales="row")
    return Bundle(folder, replace(FASHION.manifest, step_graphs=(old,)))


def test_step_graphs_with_one_scale_for_a_row_do_what_they_did(tmp_path, one_at_a_time):
    before = with_one_scale_for_a_row(tmp_path)
    plain = {"corrections": "none"}
    assert tokens(before, "scd-match", SCALE, step="graph", **plain) == tokens(FASHION, "scd-match", SCALE, **plain)
    assert check_model(before, method="scd-match", guidance=SCALE, warped=True, **plain) == "graph"
    assert check_model(before, method="scd-match", guidance=WITHIN.scale, warped=True, **plain) == "host"
    with pytest.raises(InvalidArgument, match="one scale for a row; write it anew with `coupled-sampling step-graphs"):
        check_model(before, method="scd-match", guidance=WITHIN.scale, step="graph", warped=True, **plain)
    assert tokens(before, "scd-match", WITHIN.scale, **plain) == one_at_a_time
    with (
        open_model(before, method="scd-match", guidance=SCALE, step="graph", warped=True, **plain) as model,
        pytest.raises(InvalidArgument, match="this step graph has one scale for a row"),
    ):
        Decoder(model, window=4).check(Request(SHOE, END, guidance=WITHIN))


def test_what_a_step_graph_is_said_to_be_is_held_against_it():
    record = next(graph for graph in FASHION.manifest.step_graphs if graph.guided and graph.method == "ar")
    wrong = Bundle(FASHION.folder, replace(FASHION.manifest, step_graphs=(replace(record, scales="row"),)))
    with pytest.raises(Exception, match="has scales 'slot', the manifest promises 'row'"):
        open_model(wrong, method="ar", guidance=2.0, step="graph", warped=True)


def test_kernels_refuse_a_scale_that_changes():
    with pytest.raises(InvalidArgument, match="kernels', which have one guidance scale for a row"):
        check_model(FASHION, Place("cuda"), method="scd-match", guidance=WITHIN.scale, step="kernels")
    assert check_model(FASHION, Place("cuda"), method="scd-match", guidance=WITHIN.scale) == "host"
