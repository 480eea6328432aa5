"""Small decoder graphs with caches that grow, in the styles of Optimum and of ONNX Runtime GenAI, written with onnx alone."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

VOCABULARY, HEADS, SIZE, LAYERS, LENGTH = 13, 2, 16, 2, 48
WIDTH = HEADS * SIZE


class Writer:
    """An ONNX graph under construction, without the library's own exporter."""

    def __init__(self, opset, dtype=np.float32):
        self.nodes, self.constants, self.opset, self.dtype = [], [], opset, dtype
        self.random = np.random.default_rng(5)

    def constant(self, value, dtype=np.int64):
        name = f"constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, *shape):
        return self.constant(self.random.normal(0, 0.4, shape), self.dtype)

    def op(self, kind, *inputs, outputs=None, **attributes):
        outputs = outputs or [f"value{len(self.nodes)}"]
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def size(self, value, axis):
        return self.op("Gather", self.op("Shape", value), self.constant(axis))

    def count(self, first, last):
        return self.op("Range", first, last, self.constant(1))

    def save(self, path, inputs, outputs, opsets=()):
        values = [[onnx.helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
        graph = onnx.helper.make_graph(self.nodes, "decoder", *values, self.constants)
        imports = [onnx.helper.make_opsetid("", self.opset), *opsets]
        onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), path)
        return path


def cache_values(dtype, past="past_key_values.{}.{}", present="present.{}.{}"):
    names = [(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
    sides = ((past, "past"), (present, "total"))
    return [[(name.format(*n), dtype, ["batch", HEADS, axis, SIZE]) for n in names] for name, axis in sides]


def optimum(
    path, *, positions="input", mask="right", logits="all", dtype=np.float32, names=(), extra=(), activations=""
):
    """A decoder in Optimum's style.

    positions: "input" (position_ids), "mask" (counted from attention_mask), "columns" (index of the cache column), "unused" (the
    same beside position_ids).
    mask: "right", "unpadded" (attention_mask is ignored), "open" (a window with a past is not causal), "none" (never causal); of 4
    axes: "slots" (booleans), "added" (floats), "last slot's" (of these the last slot's row alone, and causal).
    """
    g = Writer(18, dtype)
    float_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ints = onnx.TensorProto.INT64
    pasts, presents = cache_values(float_type, *names)
    inputs = [("input_ids", ints, ["batch", "window"]), ("attention_mask", ints, ["batch", "total"]), *pasts, *extra]
    by_slot = {"slots": onnx.TensorProto.BOOL, "last slot's": onnx.TensorProto.BOOL, "added": float_type}
    if mask in by_slot:
        inputs[1] = ("attention_mask", by_slot[mask], ["batch", 1, "window", "total"])
    if positions in ("input", "unused"):
        inputs.insert(2, ("position_ids", ints, ["batch", "window"]))
    window, past = g.size("input_ids", 1), g.size(pasts[0][0], 2)
    total = g.op("Add", past, window)
    rows, columns = g.count(past, total), g.count(g.constant(0), total)
    visible = g.op("LessOrEqual", columns, g.op("Unsqueeze", rows, g.constant([1])))
    if mask in ("open", "none"):
        free = g.op("Greater", past, g.constant(0 if mask == "open" else -1))
        visible = g.op("Or", visible, free)
    if mask == "last slot's":
        valid = g.op("Slice", "attention_mask", g.constant([-1]), g.constant([2**31]), g.constant([2]))
    elif mask in by_slot:
        valid = visible = "attention_mask"
    else:
        valid = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.constant([1, 2])), to=onnx.TensorProto.BOOL)
    if mask == "unpadded":
        valid = g.op("Or", valid, g.constant(True, np.bool_))
    if mask == "added":
        bias = "attention_mask"
    else:
        visible = g.op("And", valid, visible)
        bias = g.op("Where", visible, g.constant(0, dtype), g.constant(-1e4, dtype))
    if positions == "mask":
        counted = g.op("Sub", g.op("CumSum", "attention_mask", g.constant(1)), g.constant(1))
        ends = [g.op("Unsqueeze", value, g.constant([0])) for value in (past, total)]
        places = g.op("Slice", counted, *ends, g.constant([1]))
    else:
        places = "position_ids" if positions == "input" else rows
    x = g.op(
        "Add", g.op("Gather", g.weight(VOCABULARY, WIDTH), "input_ids"), g.op("Gather", g.weight(64, WIDTH), places)
    )
    for layer in range(LAYERS):
        heads = []
        for _ in range(3):
            split = g.op("Reshape", g.op("MatMul", x, g.weight(WIDTH, WIDTH)), g.constant([0, 0, HEADS, SIZE]))
            heads.append(g.op("Transpose", split, perm=[0, 2, 1, 3]))
        query, *new = heads
        both = range(2 * layer, 2 * layer + 2)
        keys, values = (g.op("Concat", pasts[n][0], new[n % 2], axis=2, outputs=[presents[n][0]]) for n in both)
        scores = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        weights = g.op("Softmax", g.op("Add", g.op("Mul", scores, g.constant(SIZE**-0.5, dtype)), bias), axis=-1)
        merged = g.op("Transpose", g.op("MatMul", weights, values), perm=[0, 2, 1, 3])
        x = g.op("Add", x, g.op("MatMul", g.op("Reshape", merged, g.constant([0, 0, WIDTH])), g.weight(WIDTH, WIDTH)))
        if activations == "quantised per call" and layer == LAYERS - 1:
            parts = [f"quantised{layer}.{n}" for n in range(3)]
            g.op("DynamicQuantizeLinear", x, outputs=parts)
            x = g.op("DequantizeLinear", *parts)
        x = g.op("Tanh", x)
    if logits == "last":
        x = g.op("Slice", x, g.constant([-1]), g.constant([1000]), g.constant([1]))
    g.op("MatMul", x, g.weight(WIDTH, VOCABULARY), outputs=["logits"])
    shape = ["batch", "window" if logits == "all" else "some", VOCABULARY]
    return g.save(path, inputs, [("logits", float_type, shape), *presents])


def genai(path, *, four_bits=False):
    """A decoder in the style of ONNX Runtime GenAI: GroupQueryAttention with rotary positions, lengths from the mask's sums."""
    g = Writer(21)
    floats, ints = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    pasts, presents = cache_values(floats)
    inputs = [("input_ids", ints, ["batch", "window"]), ("attention_mask", ints, ["batch", "total"]), *pasts]
    summed = g.op("ReduceSum", "attention_mask", g.constant([1]), keepdims=1)
    lengths = g.op("Cast", g.op("Sub", summed, g.constant([1])), to=onnx.TensorProto.INT32)
    total = g.op("Cast", g.size("attention_mask", 1), to=onnx.TensorProto.INT32)
    angles = np.arange(LENGTH)[:, None] / 100.0 ** (np.arange(SIZE // 2) / (SIZE // 2))
    rotations = [g.constant(turn(angles), np.float32) for turn in (np.cos, np.sin)]

    def product(x, out, **named):
        if not four_bits:
            return g.op("MatMul", x, g.weight(WIDTH, out), **named)
        packed = g.constant(g.random.integers(0, 256, (out, 1, WIDTH // 2)), np.uint8)
        scales, settings = (
            g.constant(np.full(out, 0.08), np.float32),
            {"K": WIDTH, "N": out, "bits": 4, "block_size": WIDTH},
        )
        return g.op("MatMulNBits", x, packed, scales, domain="com.microsoft", **settings, **named)

    x = g.op("Gather", g.weight(VOCABULARY, WIDTH), "input_ids")
    for layer in range(LAYERS):
        mixed = [product(x, WIDTH) for _ in range(3)]
        both = slice(2 * layer, 2 * layer + 2)
        attended = g.op(
            "GroupQueryAttention",
            *mixed,
            *(name for name, *_ in pasts[both]),
            lengths,
            total,
            *rotations,
            outputs=[f"attended{layer}", *(name for name, *_ in presents[both])],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            do_rotary=1,
        )
        x = g.op("Tanh", g.op("Add", x, product(attended, WIDTH)))
    product(x, VOCABULARY, outputs=["logits"])
    contrib = onnx.helper.make_opsetid("com.microsoft", 1)
    return g.save(path, inputs, [("logits", floats, ["batch", "window", VOCABULARY]), *presents], [contrib])
