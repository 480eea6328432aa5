"""Graphs quantised by ONNX Runtime's own tools, and the float graphs that they come down to."""

import logging

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")


def quantised(source, path, **settings):
    """``source`` as `quantize_dynamic` writes it, which is what Optimum and transformers.js call."""
    settings = {"weight_type": quantization.QuantType.QInt8, **settings}
    root = logging.getLogger()
    level, root.level = root.level, logging.ERROR  # it advises, for every model, to prepare it first
    try:
        quantization.quantize_dynamic(source, path, **settings)
    finally:
        root.level = level
    return path


def with_dequantised_weights(source, path):
    """The content of the graph in ``source`` with the weights that its quantised form in ``path`` has, as floats."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        name = tensor.name
        if f"{name}_quantized" not in stored:
            continue
        whole, scale, zero = (stored[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        shape = [-1, *[1] * (whole.ndim - 1)] if whole.ndim > 2 else [-1]  # by filter, or by column
        floats = (whole.astype(np.float64) - zero.astype(np.float64).reshape(shape)) * scale.reshape(shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(floats.astype(np.float32), name))
    return model.SerializeToString()


def fused_by_onnxruntime(source, path, operator):
    """``source`` as ONNX Runtime saves it after optimising: with ``operator`` in the place of MatMulInteger."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    # A DynamicQuantizeMatMul is a MatMulIntegerToFloat that took what quantises its input into itself.
    disabled = ["DynamicQuantizeMatMulFusion"] if operator == "MatMulIntegerToFloat" else []
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    return path
