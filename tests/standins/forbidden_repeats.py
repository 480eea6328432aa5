"""A small random model that forbids what follows itself, as a bundle with step graphs."""

import json

import numpy as np
import pytest

from coupled_sampling.export.graphs.decision import STEP_METHODS
from standins.toy_bundles import toy_gpt, write_toy_bundle


def forbidding_repeats(model):
    """No token follows itself, and where a draft does, the model can compute nothing."""
    import onnx

    def number(name, value):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def op(kind, *inputs, name, **attributes):
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "logits.before"
    tokens = op("Unsqueeze", "input_ids", number("axis.2", [2]), name="tokens.wide")
    own = op("Equal", tokens, number("every.token", np.arange(11)), name="own.token")
    allowed = op("Where", own, number("forbidden", np.float32(-np.inf)), "logits.before", name="logits.allowed")
    before = op("Pad", "input_ids", number("one.before", [0, 1, 0, -1]), number("no.token", -1), name="tokens.before")
    repeats = op("Unsqueeze", op("Equal", before, "input_ids", name="is.repeat"), "axis.2", name="repeats")
    op("Where", repeats, number("nothing", np.float32(np.nan)), allowed, name="logits")


def toy_bundle(folder, prompt, methods=STEP_METHODS):
    pytest.importorskip("onnx")
    from coupled_sampling.export.step_bundle import write_step_graphs

    write_toy_bundle(folder / "toy", toy_gpt(40), max_window=40, change=forbidding_repeats)
    write_step_graphs(folder / "toy", methods)
    path = folder / "toy" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"length": 30}
    manifest["prompts"] = {"own": {"tokens": prompt, "aliases": [], "title": "Own"}}
    path.write_text(json.dumps(manifest))
    return folder / "toy"
