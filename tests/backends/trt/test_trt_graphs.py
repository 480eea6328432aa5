"""Every shipped window graph, and its step graph for TensorRT, parsed and built by the real ``tensorrt-rtx``, which needs no GPU.

Built is all: without a GPU an engine cannot be loaded, let alone run. What TensorRT does not accept is recorded here too, so that a
version that does is noticed.
"""

import os
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.backends.trt import BuildOptions, EngineError, EngineStore, find_flavour, load_or_build
from coupled_sampling.backends.trt.build import build_engine
from coupled_sampling.backends.trt.messages import message_log
from coupled_sampling.backends.trt.network import Network, parse_network, set_profiles
from coupled_sampling.backends.trt.precision import convert_graph, load_graph, save_converted
from coupled_sampling.backends.trt.step import STEP_METHOD, step_tensors
from coupled_sampling.backends.window_tensors import CACHE
from coupled_sampling.bundles.opening import embedded_names, open_bundle
from coupled_sampling.export import add_step_graphs
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription, LayerKind, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.picture_positions import PicturePositions
from coupled_sampling.export.graphs.rotary import Rotary, RotaryScaling
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.export.graphs.storage import Storage
from standins.trt_bundles import write_bundle

trt = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'coupled-sampling[tensorrt-rtx]'"
)
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def flavour():
    return find_flavour("tensorrt-rtx")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return open_bundle(write_bundle(tmp_path_factory.mktemp("rtx") / "toy"))


def write_decoder(folder, storage, **changes):
    decoder = DecoderDescription(
        64, 18, 32, 2, heads=4, kv_heads=2, mlp_width=64, **({"rotary": Rotary(), "cache_length": 20} | changes)
    )
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in decoder.weight_shapes().items()}
    write_decoder_graph(decoder, weights, folder / "window.onnx", storage)
    return folder / "window.onnx"


@pytest.mark.cases(2)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", embedded_names())
def test_every_shipped_window_graph_is_built_with_all_its_masks_and_caches(flavour, name, precision):
    bundle = open_bundle(name)
    graph = bundle.manifest.window_graph
    options = BuildOptions((4,), (16,), precision=precision).fitted(graph)
    model = load_graph(bundle.window_graph)
    convert_graph(model, precision)
    with tempfile.TemporaryDirectory() as folder:
        network = parse_network(flavour, save_converted(model, Path(folder)), options, message_log(flavour))
    assert (network.attentions, network.caches) == (graph.layers, 2 * graph.layers)
    seen = []
    engine, _ = build_engine(bundle.window_graph, flavour, options, lambda done, phase: seen.append(done))
    assert len(engine) > 1_000_000
    assert seen == sorted(seen)
    assert seen[-1] > 0.5


@pytest.mark.parametrize(
    ("storage", "precision"),
    [
        (Storage(), "float32"),
        (Storage(), "float16"),
        (Storage("float16", "float16"), "float16"),
        (Storage("bfloat16"), "bfloat16"),
        (Storage("int4", form="standard"), "float32"),
        (Storage("int8", "float16", form="standard"), "float16"),
        pytest.param(Storage("bfloat16", "bfloat16"), "bfloat16", marks=pytest.mark.long),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.weights}-{value.compute}",
)
def test_an_exported_decoder_is_built(flavour, tmp_path, storage, precision):
    """Rotary positions, grouped queries, RMS norms, quantised weights; a head of 8, for which there is no fused kernel."""
    path = write_decoder(tmp_path, storage)
    engine, _ = build_engine(path, flavour, BuildOptions((2,), (4,), (20,), precision))
    assert len(engine) > 100_000


YARN = RotaryScaling("yarn", 4.0, 1.0, 32.0, 16, attention_factor=1.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary": None, "layer_kinds": (LayerKind(4, Rotary()), LayerKind(0, Rotary(base=1e6)))},
        {"rotary": None, "layer_kinds": (LayerKind(0, Rotary(scaling=YARN)), LayerKind(5))},
        {"norm_placement": "output", "query_key_norm": QueryKeyNorm(Norm(), whole=True), "residual_scale": 0.2},
    ],
    ids=["near and far layers", "layers without positions", "norms over all heads"],
)
def test_layers_that_differ_are_parsed_with_all_their_masks_and_caches(flavour, tmp_path, changes):
    path = write_decoder(tmp_path, Storage(), **changes)
    network = parse_network(flavour, path, BuildOptions((2,), (4,), (20,)), message_log(flavour))
    assert (network.attentions, network.caches) == (2, 4)


def test_positions_of_pictures_are_parsed_with_their_cache_of_marks(flavour, tmp_path):
    pictures = PicturePositions(begin=3, grids=((2, 2), (2, 3)), sections=(1, 1, 2))
    path = write_decoder(tmp_path, Storage(), rotary=Rotary(pictures=pictures))
    network = parse_network(flavour, path, BuildOptions((2,), (4,), (20,)), message_log(flavour))
    assert (network.attentions, network.caches) == (2, 6)


def test_a_softcap_in_attention_is_not_accepted(flavour, tmp_path):
    path = write_decoder(tmp_path, Storage(), attention_softcap=1.5)
    with pytest.raises(EngineError, match=r"\(Attention\): softcap.*OrtProvider"):
        build_engine(path, flavour, BuildOptions((2,), (4,), (20,)))


def test_buckets_of_rows_windows_and_columns_make_one_engine(flavour, small, tmp_path):
    options = BuildOptions((1, 3), (1, 4, 16), (16,)).fitted(small.manifest.window_graph)
    store = EngineStore(small, tmp_path)
    engine, fingerprint, reason = load_or_build(small, flavour, None, options, store)
    assert reason.startswith("there is no engine")
    assert load_or_build(small, flavour, None, options, store) == (engine, fingerprint, "")


def test_float32_attention_must_be_split(flavour, small):
    options = BuildOptions(decomposable=False).fitted(small.manifest.window_graph)
    with pytest.raises(EngineError, match=r"not supported by a dedicated kernel.*pass decomposable=True"):
        build_engine(small.window_graph, flavour, options)


def lose_mask(model):
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def test_an_attention_without_its_mask_is_refused(flavour, tmp_path):
    bundle = open_bundle(write_bundle(tmp_path / "toy", change=lose_mask))
    with pytest.raises(EngineError, match="without its boolean mask"):
        build_engine(bundle.window_graph, flavour, BuildOptions().fitted(bundle.manifest.window_graph))


def test_an_operator_tensorrt_does_not_know_is_named(flavour, tmp_path):
    def spoil(model):
        model.graph.node[-1].op_type = "NotAnOperator"

    bundle = open_bundle(write_bundle(tmp_path / "toy", change=spoil))
    with pytest.raises(EngineError, match=r"at node .*NotAnOperator"):
        build_engine(bundle.window_graph, flavour, BuildOptions().fitted(bundle.manifest.window_graph))


@pytest.mark.cases(1)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", embedded_names())
def test_a_step_of_every_shipped_model_is_built_with_all_its_masks_and_caches(flavour, tmp_path, name, precision):
    """The decision is in float32, whatever the model is in: noise, temperature and largest logits are."""
    bundle = add_step_graphs(name, tmp_path / "steps", [STEP_METHOD])
    graph, path = bundle.manifest.window_graph, bundle.step_graph(STEP_METHOD, noise="window")
    options = BuildOptions((4,), (16,), precision=precision).fitted(graph)
    model = load_graph(path)
    convert_graph(model, precision)
    network = parse_network(flavour, save_converted(model, tmp_path), options, message_log(flavour))
    assert (network.attentions, network.caches) == (graph.layers, 2 * graph.layers)
    definition = network.definition
    inputs = [definition.get_input(i) for i in range(definition.num_inputs)]
    outputs = [definition.get_output(i) for i in range(definition.num_outputs)]
    own = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16}[precision]
    kinds = {"int64": trt.DataType.INT64, "float32": trt.DataType.FLOAT, "bool": trt.DataType.BOOL, CACHE: own}
    found = {t.name: (t in inputs, t.dtype, tuple(t.shape)) for t in (*inputs, *outputs)}
    tensors = step_tensors(bundle.manifest)
    assert found == {name: (t.is_input, kinds[t.dtype], t.shape(-1, -1)) for name, t in tensors.items()}
    engine, _ = build_engine(path, flavour, options)
    assert len(engine) > 1_000_000


def test_a_step_of_an_exported_decoder_is_built(flavour, tmp_path):
    window = load_graph(write_decoder(tmp_path, Storage("int8", "float16", form="standard")))
    path = save_converted(step_graph(window, STEP_METHOD, noise="window"), tmp_path)
    engine, _ = build_engine(path, flavour, BuildOptions((2,), (4,), (20,), "float16"))
    assert len(engine) > 100_000


@pytest.mark.long
def test_a_step_with_every_bucket_is_built_and_stored_beside_the_window_engine(flavour, tmp_path):
    """Engines of window and step side by side, by the real TensorRT."""
    bundle = open_bundle(write_bundle(tmp_path / "toy", steps=[STEP_METHOD]))
    options = BuildOptions((1, 3), (1, 4, 16), (16,)).fitted(bundle.manifest.window_graph)
    graphs = (None, bundle.step_graph(STEP_METHOD, noise="window").name)
    stores = [EngineStore(bundle, tmp_path / "engines", graph) for graph in graphs]
    built = [load_or_build(bundle, flavour, None, options, store) for store in stores]
    assert [reason.startswith("there is no engine") for _, _, reason in built] == [True, True]
    assert [load_or_build(bundle, flavour, None, options, store)[2] for store in stores] == ["", ""]
    assert stores[0].place(built[0][1]) != stores[1].place(built[1][1])


def test_a_step_whose_attention_lost_its_mask_is_refused(flavour, tmp_path):
    bundle = open_bundle(write_bundle(tmp_path / "toy", change=lose_mask, steps=[STEP_METHOD]))
    options = BuildOptions().fitted(bundle.manifest.window_graph)
    with pytest.raises(EngineError, match="without its boolean mask"):
        build_engine(bundle.step_graph(STEP_METHOD, noise="window"), flavour, options)


@pytest.mark.parametrize("method", ["scd-match"])
def test_a_step_graph_with_a_noise_ring_is_not_accepted(flavour, method):
    """TensorRT's caches have 4 axes, the ring has 3."""
    path = open_bundle("fashion").step_graph(method)
    if path is None:
        pytest.skip("fashion has no step graph for this method")
    with pytest.raises(EngineError, match=r"required to be 4D.*OrtStep"):
        parse_network(flavour, path, BuildOptions(), message_log(flavour))


@pytest.mark.parametrize("method", ["sjd", "scd-maximal"])
def test_tensorrt_would_narrow_the_float64_of_a_step_graph(flavour, method):
    """Why such graphs are refused before TensorRT sees them: their float64 uniforms become float32."""
    path = open_bundle("fashion").step_graph(method)
    if path is None:
        pytest.skip("fashion has no step graph for this method")
    log = message_log(flavour)
    log.clear()
    definition = trt.Builder(log.logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(definition, log.logger).parse_from_file(str(path))
    inputs = [definition.get_input(i) for i in range(definition.num_inputs)]
    assert {tensor.name: tensor.dtype for tensor in inputs}["uniforms"] == trt.DataType.FLOAT


def test_ctrl_c_stops_a_real_build(flavour):
    bundle = open_bundle("fashion")
    options = BuildOptions((1, 2, 4), (1, 8, 16, 32, 64)).fitted(bundle.manifest.window_graph)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle.window_graph, flavour, options)
    timer.join()


def attentions_of(definition):
    found = []
    for i in range(definition.num_layers):
        layer = definition.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            found.append(layer.attention)
    return found


def output_named(definition, name):
    layers = [definition.get_layer(i) for i in range(definition.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    return next(tensor for tensor in outputs if tensor is not None and tensor.name == name)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_graph_without_masks_is_read_as_if_every_window_began_with_the_first_column(flavour, tmp_path, precision):
    """Whoever sees this fail: the parser may have learned it, and docs/tensorrt.md says that it has not.

    What it should have made of the graph can be set on the network by hand, and is built.
    """
    bundle = open_bundle("fashion")
    graph, log = bundle.manifest.window_graph, message_log(flavour)
    with pytest.raises(EngineError, match="without its boolean mask"):
        parse_network(flavour, bundle.causal_graph, BuildOptions(), log)
    model = load_graph(bundle.causal_graph)
    convert_graph(model, precision)
    filled = next(node.input[6] for node in model.graph.node if node.op_type == "Attention")
    log.clear()
    builder = trt.Builder(log.logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log.logger)
    assert parser.parse_from_file(str(save_converted(model, tmp_path)))
    found = [(one.causal_kind, one.mask, one.key_value_lengths) for one in attentions_of(definition)]
    assert found == [(trt.CausalMaskKind.UPPER_LEFT, None, None)] * graph.layers
    lengths = definition.add_cast(output_named(definition, filled), trt.DataType.INT32).get_output(0)
    for attention in attentions_of(definition):
        attention.causal_kind, attention.key_value_lengths = trt.CausalMaskKind.LOWER_RIGHT, lengths
        attention.decomposable = True
    config = builder.create_builder_config()
    options = BuildOptions((4,), (16,), precision=precision).fitted(graph)
    set_profiles(Network(log, builder, definition, graph.layers, 2 * graph.layers), config, options)
    assert builder.build_serialized_network(definition, config).nbytes > 1_000_000
