"""Moonshine, a real speech model, from a wheel on PyPI: its eight-bit graphs, widened so that drafts can be checked.

    python examples/speech/moonshine.py --out build/moonshine

The wheel `moonshine-voice` 0.0.73 (MIT) carries Moonshine Tiny for English, 27 million parameters, as an encoder and a merged
decoder in ONNX Runtime's own file format, with products of eight-bit numbers. Those round their activations by a scale that is
taken from the whole window, so that a draft at the right changes the law of the tokens before it: `EncoderDecoderProvider` refuses
them, rightly. Here the graphs are written as ONNX, and each such product becomes a plain MatMul over widened weights, as
``widen=True`` has it, which does not take ONNX Runtime's format.
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

import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto, helper
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

from coupled_sampling.backends.foreign.widening import widen

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
    """Writes a graph of ONNX Runtime's format as ONNX."""

    def __init__(self, graph: Any) -> None:
        self.own = {}
        for i in range(graph.InitializersLength()):
            tensor = graph.Initializers(i)
            values = tensor.RawDataAsNumpy().tobytes() if tensor.RawDataLength() else b""
            name = tensor.Name().decode()
            self.own[name] = helper.make_tensor(name, tensor.DataType(), _sizes(tensor), values, raw=True)
        sources = [node for node in map(graph.Nodes, range(graph.NodesLength())) if node is not None]
        self.nodes = [self.node(node) for node in sources]
        self.outputs = [graph.Outputs(i).decode() for i in range(graph.OutputsLength())]

    def node(self, node: Any) -> onnx.NodeProto:
        inputs = [node.Inputs(i).decode() for i in range(node.InputsLength())]
        outputs = [node.Outputs(i).decode() for i in range(node.OutputsLength())]
        domain = node.Domain().decode()
        made = helper.make_node(node.OpType().decode(), inputs, outputs, node.Name().decode(), domain=domain)
        made.attribute.extend(self.attribute(node.Attributes(i)) for i in range(node.AttributesLength()))
        return made

    def attribute(self, attribute: Any) -> AttributeProto:
        name, kind = attribute.Name().decode(), attribute.Type()
        if kind == AttributeProto.GRAPH:
            inner = Writer(attribute.G())
            values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in inner.outputs]
            return helper.make_attribute(name, inner.graph(name, [], values))
        if kind == AttributeProto.TENSOR:
            tensor = attribute.T()
            made = helper.make_tensor(
                "", tensor.DataType(), _sizes(tensor), tensor.RawDataAsNumpy().tobytes(), raw=True
            )
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


def _sizes(tensor: Any) -> list[int]:
    return [int(size) for size in tensor.DimsAsNumpy()] if tensor.DimsLength() else []


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
    graph = Writer(model.Graph()).graph("moonshine", inputs, outputs)
    made = helper.make_model(graph, opset_imports=imports, ir_version=10)
    widen(made)
    return made


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
