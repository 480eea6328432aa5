"""Small encoder-decoder models with Optimum's names: an encoder, and a decoder as a pair of files and merged by an If."""

import numpy as np
import pytest

from standins.grown_cache_graphs import HEADS, LAYERS, LENGTH, SIZE, VOCABULARY, WIDTH, Writer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

STATE_SIZE, MELS, PAD = 12, 5, 4
BOTH = ("decoder", "encoder")
STRIDE = 384
"""Entries of Moonshine's encoder_attention_mask for one state."""


def values_of(dtype):
    """Inputs and outputs of all caches, by kind: the names and shapes of Optimum."""
    parts = [(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
    axes = {"decoder": ("past", "past + window"), "encoder": ("states", "states")}
    return {
        kind: [
            [(name.format(layer, kind, part), dtype, ["batch", HEADS, axis, SIZE]) for layer, part in parts]
            for name, axis in zip(("past_key_values.{}.{}.{}", "present.{}.{}.{}"), axes[kind], strict=True)
        ]
        for kind in BOTH
    }


def split(g, x, weight):
    heads = g.op("Reshape", g.op("MatMul", x, weight), g.constant([0, 0, HEADS, SIZE]))
    return g.op("Transpose", heads, perm=[0, 2, 1, 3])


def attend(g, query, keys, values, visible):
    scores = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = g.op("Mul", scores, g.constant(SIZE**-0.5, g.dtype))
    if visible is not None:
        scores = g.op("Where", visible, scores, g.constant(-1e4, g.dtype))
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    merged = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([0, 0, WIDTH]))
    return g.op("MatMul", merged, g.weight(WIDTH, WIDTH))


def branch(dtype, reads, mask, causal="right", looks=True, position="past", seed=5):
    """The nodes of one branch, which ``reads`` the encoder's output or goes on; and its outputs' names by those of the caches."""
    g = Writer(18, dtype)
    g.random = np.random.default_rng(seed)
    caches = values_of(0)
    pasts = {kind: [name for name, *_ in caches[kind][0]] for kind in BOTH}
    presents = {kind: [name for name, *_ in caches[kind][1]] for kind in BOTH}
    window = g.size("input_ids", 1)
    past = g.constant(0) if reads else g.size(pasts["decoder"][0], 2)
    total = g.op("Add", past, window)
    rows, columns = g.count(past, total), g.count(g.constant(0), total)
    visible = g.op("LessOrEqual", columns, g.op("Unsqueeze", rows, g.constant([1])))
    if causal == "open" and not reads:
        visible = None
    hidden = None
    if mask is not None:
        entries = "encoder_attention_mask"
        if mask == "samples":
            entries = g.op(
                "Slice", entries, g.constant([0]), g.constant([2**30]), g.constant([1]), g.constant([STRIDE])
            )
        hidden = g.op("Cast", g.op("Unsqueeze", entries, g.constant([1, 2])), to=onnx.TensorProto.BOOL)
    places = "cache_position" if position == "input" and not reads else rows
    if position == "counted":  # as M2M100: tokens that fill up are left out, and are at position 0 themselves
        real = g.op("Cast", g.op("Not", g.op("Equal", "input_ids", g.constant(PAD))), to=onnx.TensorProto.INT64)
        counted = g.op("Sub", g.op("Add", g.op("CumSum", real, g.constant(1)), past), g.constant(1))
        places = g.op("Mul", counted, real)
    x = g.op("Gather", g.weight(VOCABULARY, WIDTH), "input_ids")
    x = g.op("Add", x, g.op("Gather", g.weight(LENGTH, WIDTH), places))
    found = {}
    for layer in range(LAYERS):
        query, *own = (split(g, x, g.weight(WIDTH, WIDTH)) for _ in range(3))
        for n, new in enumerate(own):
            at = 2 * layer + n
            old = [] if reads else [pasts["decoder"][at]]
            found[presents["decoder"][at]] = g.op("Concat", *old, new, axis=2)
        keys, values = (found[presents["decoder"][2 * layer + n]] for n in range(2))
        x = g.op("Add", x, attend(g, query, keys, values, visible))
        query = split(g, x, g.weight(WIDTH, WIDTH))
        for n in range(2):
            weight, at = (
                g.weight(STATE_SIZE, WIDTH),
                2 * layer + n,
            )  # drawn by both branches, so that the others are the same
            name = presents["encoder"][at]
            if reads:
                found[name] = split(g, "encoder_hidden_states", weight)
            else:  # what Optimum has a merged graph give there
                found[name] = g.constant(np.zeros((0, HEADS, 1, SIZE)), dtype)
        kind = presents if reads else pasts
        keys, values = (found.get(kind["encoder"][2 * layer + n], pasts["encoder"][2 * layer + n]) for n in range(2))
        crossed = attend(g, query, keys, values, hidden)
        x = g.op("Tanh", g.op("Add", x, crossed) if looks else x)
    found["logits"] = g.op("MatMul", x, g.weight(WIDTH, VOCABULARY))
    return g, found


def control_of(float_type, mask, states, position, merged):
    ints = onnx.TensorProto.INT64
    control = {"input_ids": (ints, ["batch", "window"])}
    if states:
        control["encoder_hidden_states"] = (float_type, ["batch", "states", STATE_SIZE])
    if mask is not None:
        control["encoder_attention_mask"] = (ints, ["batch", "entries"])
    if position == "input":
        control["cache_position"] = (ints, ["window"])
    if merged:
        control["use_cache_branch"] = (onnx.TensorProto.BOOL, [1])
    return [(name, *value) for name, value in control.items()]


def pair(folder, *, dtype=np.float32, mask=None, position="past", drop=(), **settings):
    """``decoder_model.onnx`` and ``decoder_with_past_model.onnx``; returns the first. ``drop``: outputs that are left out."""
    float_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    caches = values_of(float_type)
    logits = ("logits", float_type, ["batch", "window", VOCABULARY])
    for name, reads in (("decoder_model", True), ("decoder_with_past_model", False)):
        g, found = branch(dtype, reads, mask, position=position, **settings)
        given = [*caches["decoder"][1], *(caches["encoder"][1] if reads else ())]
        given = [value for value in given if value[0] not in drop]
        for value, *_ in (logits, *given):
            g.op("Identity", found[value], outputs=[value])
        inputs = control_of(float_type, mask, reads, "past" if reads else position, False)
        inputs += [] if reads else [*caches["decoder"][0], *caches["encoder"][0]]
        g.save(folder / f"{name}.onnx", inputs, [logits, *given])
    return folder / "decoder_model.onnx"


def merged(path, *, dtype=np.float32, mask=None, position="past", extra=(), **settings):
    """``decoder_model_merged.onnx``: both as branches of an If; a branch that goes on gives empty caches for the encoder's."""
    float_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    caches = values_of(float_type)
    outputs = [
        ("logits", float_type, ["batch", "window", VOCABULARY]),
        *caches["decoder"][1],
        *caches["encoder"][1],
    ]
    branches = {}
    for name, reads in (("else_branch", True), ("then_branch", False)):
        g, found = branch(dtype, reads, mask, position=position, **settings)
        inner = [g.op("Identity", found[value], outputs=[f"{name}.{value}"]) for value, *_ in outputs]
        values = [onnx.helper.make_tensor_value_info(value, float_type, None) for value in inner]
        branches[name] = onnx.helper.make_graph(g.nodes, name, [], values, g.constants)
    g = Writer(18, dtype)
    g.op("If", "use_cache_branch", outputs=[value for value, *_ in outputs], **branches)
    inputs = [*control_of(float_type, mask, True, position, True), *caches["decoder"][0], *caches["encoder"][0], *extra]
    return g.save(path, inputs, outputs)


def encoder(path):
    """``encoder_model.onnx``: (batch, mels, frames) to (batch, frames, STATE_SIZE)."""
    g = Writer(18)
    x = g.op("MatMul", g.op("Transpose", "input_features", perm=[0, 2, 1]), g.weight(MELS, STATE_SIZE))
    g.op("Tanh", x, outputs=["last_hidden_state"])
    floats = onnx.TensorProto.FLOAT
    inputs = [("input_features", floats, ["batch", MELS, "frames"])]
    return g.save(path, inputs, [("last_hidden_state", floats, ["batch", "frames", STATE_SIZE])])


def reference_of(path):
    """Logits (T, V) of a sequence (T,) with an encoder's output (S, D), by ``decoder_model.onnx`` in one call without caches."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}

    def logits(tokens, states):
        dtype = np.float16 if inputs["encoder_hidden_states"].type == "tensor(float16)" else np.float32
        feeds = {"input_ids": np.asarray(tokens)[None], "encoder_hidden_states": states.astype(dtype)[None]}
        if "encoder_attention_mask" in inputs:
            feeds["encoder_attention_mask"] = np.ones((1, STRIDE * len(states)), np.int64)[
                :, : len(states) * (STRIDE if "samples" in str(path) else 1)
            ]
        return session.run(["logits"], feeds)[0][0].astype(np.float32)

    return logits
