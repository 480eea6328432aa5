"""Products by MatMulNBits: what is packed, that it stays packed, and that whole steps and the exporter's check know it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.openvino import opening as openvino
from coupled_sampling.backends.place import Wanted
from coupled_sampling.backends.trt import opening as tensorrt
from coupled_sampling.errors import CheckpointError
from coupled_sampling.export import ExportSettings, export_checkpoint
from coupled_sampling.export.graphs import nbits
from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.decoder import decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.rotary import Rotary
from coupled_sampling.export.graphs.storage import Storage, quantised
from coupled_sampling.testing import check_provider

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors.numpy")

DECODER = DecoderDescription(
    vocab_size=97, positions=48, width=64, layers=2, heads=4, kv_heads=2, mlp_width=96, rotary=Rotary()
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama of random weights whose head shares the embedding's matrix."""
    folder, random = tmp_path_factory.mktemp("checkpoint"), np.random.default_rng(0)
    config = {
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
    }
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    shapes = {"model.embed_tokens": (97, 64), "model.norm": (64,)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{k}_proj": (32 if k in "kv" else 64, 64) for k in "qkvo"}
        shapes |= {f"{at}mlp.gate_proj": (96, 64), f"{at}mlp.up_proj": (96, 64), f"{at}mlp.down_proj": (64, 96)}
        shapes |= {f"{at}{k}_layernorm": (64,) for k in ("input", "post_attention")}
    weights = {f"{k}.weight": random.normal(0, 0.2, shape).astype(np.float32) for k, shape in shapes.items()}
    safetensors.save_file(weights, folder / "model.safetensors")
    return folder


def exported(checkpoint, out, weights, **settings):
    settings = ExportSettings(storage=Storage(weights), windows=(1, 32), length=24, **settings)
    export_checkpoint(checkpoint, out, settings, check=open_model)
    return open_bundle(out)


def unpacked(codes, block):
    """MatMulNBits' bytes as codes (inputs, outputs), by the operator's description, one at a time."""
    outputs, blocks, _ = codes.shape
    found = np.zeros((blocks * block, outputs), int)
    for (output, part, byte), value in np.ndenumerate(codes):
        found[part * block + 2 * byte, output] = value % 16
        found[part * block + 2 * byte + 1, output] = value // 16
    return found


@pytest.mark.parametrize("block", [16, 32])
def test_codes_are_packed_as_the_operator_takes_them(block):
    codes = np.random.default_rng(0).integers(0, 16, (64, 3))
    packed = nbits.packed_nibbles(codes, block)
    assert (packed.shape, packed.dtype) == ((3, 64 // block, block // 2), np.uint8)
    np.testing.assert_array_equal(unpacked(packed, block), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_constants_of_a_product_are_the_codes(bits):
    """All codes that there are; and of 8 bits, that they are put together of two of 4 bits."""
    most = 2 ** (bits - 1) - 1
    matrix = np.stack([np.linspace(-most, most, 256), np.linspace(most, -most, 256)]).astype(np.float32)
    codes, scales = quantised(matrix, bits, 256)
    graph = GraphBuilder()
    graph.input("x", "float32", ["N", 256])
    graph.output("y", "float32", ["N", 2])
    graph.op("Identity", nbits.nbits_product(graph, "m", codes, scales, None, "x"), name="y")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.build("g", "", {}).graph.initializer}
    if bits == 4:
        found = unpacked(held["m.weight"], 256) - 8
    else:
        assert not held["m.zero_point"].any()
        found = 16 * (unpacked(held["m.weight.high"], 256) - 8) + unpacked(held["m.weight.low"], 256)
    np.testing.assert_array_equal(found, codes.astype(int))
    np.testing.assert_array_equal(held["m.scale"], scales[0])


@pytest.mark.parametrize(("weights", "nodes"), [("int4", 1), ("int8", 2)])
def test_no_matrix_is_ever_widened(weights, nodes, tmp_path):
    """What the runtime makes of the graph when it opens it, with the library's own settings."""
    random = np.random.default_rng(0)
    source = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in DECODER.weight_shapes().items()}
    onnx.save(decoder_graph(DECODER, source, Storage(weights)), tmp_path / "window.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(tmp_path / "window.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == nodes * (4 * DECODER.layers + 1)
    levels = {attribute.i for node in products for attribute in node.attribute if attribute.name == "accuracy_level"}
    assert levels == {1}
    assert not {"DequantizeLinear", "Gemm", "MatMul"} & {node.op_type for node in graph.node}
    widest = max(np.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert widest < DECODER.width * DECODER.width


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_logits_do_not_depend_on_the_width_of_the_window(checkpoint, tmp_path, weights):
    bundle = exported(checkpoint, tmp_path / "b", weights)
    with OrtProvider.open(bundle, 2, threads=1) as model:
        check_provider(model, length=40)
    tokens = np.random.default_rng(3).integers(0, 97, (1, 32))
    found = []
    for width in range(1, 33):
        with OrtProvider.open(bundle, threads=1) as model:
            cuts = range(0, 32, width)
            parts = [model.forward(tokens[:, i : i + width], np.array([i])).copy() for i in cuts]
            found.append(np.concatenate(parts, axis=1))
    assert np.abs(np.array(found) - found[0]).max() < 1e-4


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_step_graph_keeps_the_products_and_gives_the_same_tokens(checkpoint, tmp_path, weights):
    bundle = exported(checkpoint, tmp_path / "b", weights, step_graphs=("scd-match",))
    prompts, tokens = [[1, 2, 3], [4, 5]], {}
    for step in ("host", "graph"):
        with open_model(bundle, rows=2, method="scd-match", step=step) as model:
            tokens[step] = generate(model, prompts, length=24, window=8).tokens
    with open_model(bundle, rows=2, method="ar") as model:
        tokens["ar"] = generate(model, prompts, length=24).tokens
    assert [list(row) for row in tokens["graph"]] == [list(row) for row in tokens["host"]]
    assert [list(row) for row in tokens["ar"]] == [list(row) for row in tokens["host"]]
    graph = onnx.load(bundle.step_graph("scd-match"), load_external_data=False)
    assert {entry.domain for entry in graph.opset_import} == {"", "com.microsoft"}


def test_the_exporters_check_finds_codes_that_are_packed_wrongly(checkpoint, tmp_path, monkeypatch):
    """Though the logits of int4 weights are far from the checkpoint's in any case."""
    packed = nbits.packed_nibbles
    monkeypatch.setattr(
        nbits, "packed_nibbles", lambda codes, block: packed(codes, block) >> 4 | packed(codes, block) << 4
    )
    with pytest.raises(CheckpointError, match="differ from the reference"):
        exported(checkpoint, tmp_path / "b", "int4")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("name", "opening"), [("tensorrt", tensorrt), ("openvino", openvino)])
def test_who_lacks_the_operator_refuses_by_the_option_to_take(checkpoint, tmp_path, name, opening):
    bundle = exported(checkpoint, tmp_path / "b", "int4")
    refusal = opening.takes(Wanted(bundle, Place(name), 1))
    assert "operators of com.microsoft" in refusal
    assert "--form standard" in refusal
    graph = replace(bundle.manifest.window_graph, domains=())
    standard = replace(bundle, manifest=replace(bundle.manifest, window_graph=graph))
    assert opening.takes(Wanted(standard, Place(name), 1)) is None
