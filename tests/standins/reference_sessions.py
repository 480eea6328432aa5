"""Graphs run by ``onnx``'s own reference implementation, which knows bfloat16: ONNX Runtime has few kernels for it on the CPU.

Each operator is a few lines of numpy that compute in the type of their inputs, rounding after every one.
"""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

NAMES = {1: "float", 7: "int64", 9: "bool", 10: "float16", 11: "double", 16: "bfloat16"}
"""As ONNX Runtime has them."""


class ReferenceSession:
    """What this library asks of an ``onnxruntime.InferenceSession``; bfloat16 goes in and comes out as uint16 of the same bits."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.evaluator = ReferenceEvaluator(self.model)

    @staticmethod
    def values(found):
        for value in found:
            tensor = value.type.tensor_type
            shape = [size.dim_param or size.dim_value for size in tensor.shape.dim]
            yield SimpleNamespace(name=value.name, type=f"tensor({NAMES[tensor.elem_type]})", shape=shape)

    def get_inputs(self):
        return list(self.values(self.model.graph.input))

    def get_outputs(self):
        return list(self.values(self.model.graph.output))

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={entry.key: entry.value for entry in self.model.metadata_props})

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name="", get_nodes=lambda: list(self.model.graph.node))]

    def run(self, names, inputs):
        half = {value.name for value in self.get_inputs() if value.type == "tensor(bfloat16)"}
        fed = {name: value.view(ml_dtypes.bfloat16) if name in half else value for name, value in inputs.items()}
        made = self.evaluator.run(names, fed)
        return [
            value.view(np.uint16) if value.dtype == ml_dtypes.bfloat16 else value for value in map(np.asarray, made)
        ]


def uses_bfloat16(path):
    """Whether a graph has caches of bfloat16."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    return any(value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16 for value in inputs)
