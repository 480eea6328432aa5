"""Storage of weights: what a type costs in the logits, files beside the graph, and writing that is cut short.

A graph of narrowed weights must be *exactly* the model with weights narrowed the same way, which says that the storage is
right, whatever the drift from the original; that drift is measured apart.
"""

import dataclasses
import importlib
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument, MissingDependency, OutputError
from coupled_sampling.export.graphs.decoder import decoder_graph, write_decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rotary import Rotary
from coupled_sampling.export.graphs.rounded import rounded_model
from coupled_sampling.export.graphs.storage import Storage, quantised, stored_type
from standins.reference_sessions import ReferenceSession

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTH, VOCABULARY = 24, 101
DECODER = DecoderDescription(
    vocab_size=VOCABULARY, positions=LENGTH, width=64, layers=3, heads=4, kv_heads=2, mlp_width=96, rotary=Rotary()
)
TIED = dataclasses.replace(
    DECODER, norm=Norm("layer"), mlp="plain", rotary=None, learned_positions=True, mlp_bias=True, tied_head=True
)
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
ACCURATE = "session.qdq_matmulnbits_accuracy_level"


def random_weights(description):
    random = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith("norm.weight"):
            return random.normal(1.0, 0.3, shape)
        return random.normal(0, 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3, shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in description.weight_shapes().items()}


WEIGHTS = {DECODER: random_weights(DECODER), TIED: random_weights(TIED)}


def graph_logits(model, exact=True):
    """Logits (2, T, V): a prefill of 10 and single tokens after it. ``exact``: activations are not rounded to int8."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry(ACCURATE, "1")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    pasts = [value for value in session.get_inputs() if value.name.startswith("past")]
    caches = {value.name: np.zeros((2, *value.shape[1:]), types[value.type]) for value in pasts}
    parts = []
    for first, last in ((0, 10), *((i, i + 1) for i in range(10, LENGTH))):
        inputs = {"input_ids": TOKENS[:, first:last], "start": np.full(2, first), "kv_length": np.array([last])}
        logits, *present = session.run(None, inputs | caches)
        caches = dict(zip(caches, present, strict=True))
        parts.append(logits)
    assert all(part.dtype == np.float32 for part in parts)
    return np.concatenate(parts, axis=1)


def reference(description, weights):
    return np.stack([reference_logits(description, weights, row) for row in TOKENS])


def dequantised(codes, scales):
    """The matrix (outputs, inputs) that codes and scales stand for."""
    return (codes.astype(np.float32) * np.repeat(scales, len(codes) // len(scales), axis=0)).T


def narrowed(description, storage):
    """The weights that a graph of this storage stands for."""
    tables = (*description.embedding_names(), "position.weight")

    def narrow(name, weight):
        if weight.ndim == 1:
            return weight
        if storage.bits and name not in tables:
            return dequantised(*quantised(weight, storage.bits, storage.block, storage.compute))
        return weight.astype(stored_type(storage.embeddings))

    return {name: narrow(name, weight) for name, weight in WEIGHTS[description].items()}


FLOATS = [Storage(), Storage("float16"), Storage("bfloat16")]
STANDARD = [Storage(weights, block=block, form="standard") for block in (32, 16) for weights in ("int8", "int4")]
NBITS = [Storage(weights, block=block) for block in (32, 16) for weights in ("int8", "int4")]
QUANTISED = STANDARD + NBITS
HALF = [Storage("float16", "float16"), *(Storage(weights, "float16") for weights in ("int8", "int4"))]
HALF += [Storage(weights, "float16", form="standard") for weights in ("int8", "int4")]


@pytest.mark.parametrize("storage", FLOATS + QUANTISED, ids=str)
def test_a_graph_computes_exactly_the_model_of_its_stored_weights(storage):
    found = graph_logits(decoder_graph(DECODER, WEIGHTS[DECODER], storage))
    assert np.abs(found - reference(DECODER, narrowed(DECODER, storage))).max() <= 2e-5


@pytest.mark.parametrize("storage", HALF, ids=str)
def test_half_precision_arithmetic_stays_near_the_model_of_its_stored_weights(storage):
    found = graph_logits(decoder_graph(DECODER, WEIGHTS[DECODER], storage))
    assert np.abs(found - reference(DECODER, narrowed(DECODER, storage))).max() <= 0.015


@pytest.mark.parametrize("description", [DECODER, TIED], ids=["plain", "tied"])
def test_bfloat16_arithmetic_stays_near_the_model_of_its_stored_weights(description, tmp_path):
    """With onnx's own reference implementation; 0.087 and 0.041 were measured, of a spread of 1.1."""
    storage = Storage("bfloat16", "bfloat16")
    (path,) = write_decoder_graph(description, WEIGHTS[description], tmp_path / "w.onnx", storage)
    session = ReferenceSession(path)
    pasts = [value for value in session.get_inputs() if value.name.startswith("past")]
    assert {value.type for value in pasts} == {"tensor(bfloat16)"}
    caches = {value.name: np.zeros((2, *value.shape[1:]), np.uint16) for value in pasts}
    inputs = {"input_ids": TOKENS[:, :10], "start": np.zeros(2, np.int64), "kv_length": np.array([10])}
    (logits,) = session.run(["logits"], inputs | caches)
    assert logits.dtype == np.float32
    difference = np.abs(logits - reference(description, narrowed(description, storage))[:, :10]).max()
    assert 1e-3 < difference < 0.2


def test_scales_are_numbers_of_the_type_that_keeps_them():
    """Else codes would be the nearest for scales that nobody has: in bfloat16, off by up to a quarter for codes near 127."""
    matrix = np.random.default_rng(5).normal(size=(40, 64)).astype(np.float32)
    codes, scales = quantised(matrix, 8, 32, "bfloat16")
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    inner = np.abs(codes.T) < 127
    step = np.repeat(scales, 32, axis=0).T
    assert (np.abs(dequantised(codes, scales) - matrix) <= step * np.where(inner, 0.5001, 0.76)).all()
    tiny, few = quantised(np.full((1, 16), 8.9e-8 * 127, np.float32), 8, 16, "float16")
    assert (tiny.max(), few.dtype) == (127, np.float32)  # the scale is rounded to a third less


def test_of_8_bits_in_half_precision_there_is_one_product(tmp_path):
    """As two of 4 bits their parts would be rounded before they are added."""
    model = decoder_graph(DECODER, WEIGHTS[DECODER], Storage("int8", "float16"))
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * DECODER.layers + 1
    assert {attribute.i for node in products for attribute in node.attribute if attribute.name == "bits"} == {8}


@pytest.mark.parametrize("storage", FLOATS, ids=str)
def test_a_tied_head_shares_the_narrowed_embedding(storage):
    found = graph_logits(decoder_graph(TIED, WEIGHTS[TIED], storage))
    assert np.abs(found - reference(TIED, narrowed(TIED, storage))).max() <= 2e-5


@pytest.mark.parametrize("storage", [STANDARD[0], NBITS[0]], ids=str)
def test_a_tied_head_is_quantised_while_its_embedding_is_not(storage):
    """The head's matrix and the embedding are then two things, so the oracle unties them."""
    untied = dataclasses.replace(TIED, tied_head=False)
    weights = narrowed(TIED, storage)
    weights["head.weight"] = dequantised(*quantised(WEIGHTS[TIED]["embedding.weight"], 8, 32))
    found = graph_logits(decoder_graph(TIED, WEIGHTS[TIED], storage))
    assert np.abs(found - reference(untied, weights)).max() <= 2e-5


@pytest.mark.parametrize("storage", [Storage("bfloat16"), Storage("int8", block=16), Storage("int4")], ids=str)
def test_norms_with_weights_for_each_head_are_no_matrices(storage):
    """They have two axes, and are kept as they are: in the graph, and in what `export --check` compares it with."""
    heads = dataclasses.replace(DECODER, query_key_norm=QueryKeyNorm(Norm("layer"), per_head=True))
    weights = random_weights(heads)
    found = graph_logits(decoder_graph(heads, weights, storage))
    assert np.abs(found - reference(*rounded_model(heads, weights, storage))).max() <= 2e-5


@pytest.mark.parametrize(
    ("storage", "least", "most"),
    [
        (Storage("float16"), 1e-4, 2e-3),
        (Storage("bfloat16"), 2e-3, 2e-2),
        (Storage("float16", "float16"), 2e-4, 4e-3),
        (Storage("int8"), 4e-3, 0.05),
        (Storage("int4"), 0.08, 0.6),
    ],
    ids=str,
)
def test_drift_from_the_original(storage, least, most):
    """Root mean square of the logits' change, as a share of their spread; with the runtime's own settings."""
    original = reference(DECODER, WEIGHTS[DECODER])
    drift = graph_logits(decoder_graph(DECODER, WEIGHTS[DECODER], storage), exact=False) - original
    assert least <= math.sqrt((drift**2).mean()) / original.std() <= most


@pytest.mark.parametrize("storage", [*STANDARD[:2], Storage("int4", "float16", form="standard")], ids=str)
def test_products_read_the_codes_themselves(storage, tmp_path):
    """Standard operators in the file; the runtime fuses them, so that no widened matrix is ever in memory."""
    model = decoder_graph(DECODER, WEIGHTS[DECODER], storage)
    assert {entry.domain for entry in model.opset_import} == {""}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("MatMulNBits") == 4 * DECODER.layers + 1
    assert not {"DequantizeLinear", "Gemm", "MatMul"} & set(kinds)


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
def test_codes_are_within_half_a_scale_of_the_weights(bits, most):
    matrix = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32)
    matrix[2, 32:] = 0
    codes, scales = quantised(matrix, bits, 32)
    assert (codes.shape, scales.shape, codes.dtype) == ((64, 5), (2, 5), stored_type(f"int{bits}"))
    assert np.abs(codes.astype(int)).max() == most
    error = np.abs(dequantised(codes, scales) - matrix)
    assert (error <= np.repeat(scales, 32, axis=0).T / 2 * (1 + 1e-5)).all()
    assert not dequantised(codes, scales)[2, 32:].any()


def test_weights_of_any_float_type_and_from_a_function_are_the_same():
    rounded = {name: weight.astype(ml_dtypes.bfloat16) for name, weight in WEIGHTS[DECODER].items()}
    widened = {name: weight.astype(np.float64) for name, weight in rounded.items()}
    models = [decoder_graph(DECODER, source, Storage("bfloat16")) for source in (rounded, widened, rounded.__getitem__)]
    assert models[0] == models[1] == models[2]


def test_entries_beyond_float16_are_refused():
    weights = WEIGHTS[DECODER] | {"layers.1.mlp.down.weight": np.full((64, 96), 7e4, np.float32)}
    with pytest.raises(InvalidArgument, match=r"'layers\.1\.mlp\.down\.weight' has entries beyond .* bfloat16"):
        decoder_graph(DECODER, weights, Storage("float16"))
    decoder_graph(DECODER, weights, Storage("bfloat16"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("float64",), "weights is 'float64', expected one of 'float32'"),
        (("float32", "float8"), "compute is 'float8', expected one of 'float32', 'float16', 'bfloat16'"),
        (
            ("float32", "bfloat16"),
            "compute is 'bfloat16' and weights 'float32', expected weights 'bfloat16', 'int8' or 'int4'",
        ),
        (("bfloat16", "float16"), "expected weights 'float16', 'int8' or 'int4'"),
        (("float16", "bfloat16"), "expected weights 'bfloat16', 'int8' or 'int4'"),
        (("int4", "float32", 24), "block is 24"),
        (("int4", "float32", 32, "packed"), "form is 'packed', expected 'auto', 'nbits' or 'standard'"),
        (
            ("float16", "float32", 32, "nbits"),
            "form is 'nbits' and weights 'float16', expected weights 'int8' or 'int4'",
        ),
    ],
)
def test_storage_that_cannot_be_is_refused(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        Storage(*settings)


def test_a_block_that_does_not_divide_is_refused():
    with pytest.raises(InvalidArgument, match="block is 64, expected a divisor of a matrix's 96 inputs"):
        decoder_graph(DECODER, WEIGHTS[DECODER], Storage("int8", block=64))


def test_without_ml_dtypes_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingDependency, match=r"coupled-sampling\[export\]"):
        stored_type("bfloat16")


@pytest.mark.parametrize("storage", FLOATS + STANDARD[:2] + NBITS[:2] + HALF[2:], ids=str)
@pytest.mark.parametrize("description", [DECODER, TIED], ids=["plain", "tied"])
def test_weights_in_a_second_file_are_the_same_weights(storage, description, tmp_path):
    weights = WEIGHTS[description]
    files = write_decoder_graph(description, weights, tmp_path / "w.onnx", storage, inline=False)
    assert [file.name for file in files] == ["w.onnx", "w.onnx.data"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert files[0].stat().st_size < 40_000
    found = graph_logits(files[0])
    np.testing.assert_array_equal(found, graph_logits(decoder_graph(description, weights, storage)))
    for tensor in onnx.load(files[0], load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert not entries or (entries["location"] == "w.onnx.data" and int(entries["offset"]) % 4096 == 0)


def test_small_models_are_one_file_and_large_ones_two(tmp_path, monkeypatch):
    assert len(write_decoder_graph(DECODER, WEIGHTS[DECODER], tmp_path / "w.onnx")) == 1
    monkeypatch.setattr(importlib.import_module("coupled_sampling.export.graphs.builder"), "INLINE_LIMIT", 100_000)
    assert len(write_decoder_graph(DECODER, WEIGHTS[DECODER], tmp_path / "w.onnx")) == 2
    assert len(write_decoder_graph(DECODER, WEIGHTS[DECODER], tmp_path / "w.onnx", Storage("int4"))) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["w.onnx"]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_writing_that_is_cut_short_leaves_what_was_there(tmp_path, inline, error):
    before = write_decoder_graph(DECODER, WEIGHTS[DECODER], tmp_path / "w.onnx", inline=False)
    contents = [file.read_bytes() for file in before]

    def read(name):
        if name == "layers.2.mlp.up.weight":
            raise error
        return -WEIGHTS[DECODER][name]

    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        write_decoder_graph(DECODER, read, tmp_path / "w.onnx", inline=inline)
    assert sorted(tmp_path.iterdir()) == sorted(before)
    assert [file.read_bytes() for file in before] == contents


@pytest.mark.parametrize("renamed", ["w.onnx.data", "w.onnx"])
def test_a_graph_never_stands_beside_the_weights_of_another(tmp_path, monkeypatch, renamed):
    """Interrupted between the last renames: no graph is left, or the whole new one."""
    path = tmp_path / "w.onnx"
    write_decoder_graph(DECODER, WEIGHTS[DECODER], path, inline=False)
    replace = Path.replace

    def interrupted(self, target):
        if target.parent == tmp_path and target.name == renamed:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_decoder_graph(DECODER, WEIGHTS[DECODER], path, inline=False)
    assert not path.exists()
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_a_folder_that_does_not_exist_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="choose a folder that exists"):
        write_decoder_graph(DECODER, WEIGHTS[DECODER], tmp_path / "none" / "w.onnx")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_weights_are_streamed(tmp_path):
    """A file of 290 MB is written in far less memory than that."""
    code = """
    import sys
    import numpy as np
    from coupled_sampling.export.graphs.decoder import write_decoder_graph
    from coupled_sampling.export.graphs.description import DecoderDescription

    def kilobytes(field):
        return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

    def write(layers):
        decoder = DecoderDescription(64, 8, 768, layers, 12, 3072)
        shapes = decoder.weight_shapes()
        return write_decoder_graph(decoder, lambda name: np.zeros(shapes[name], np.float32), sys.argv[1], inline=False)

    write(1)
    before = kilobytes("VmHWM")
    files = write(8)
    print(kilobytes("VmHWM") - before, files[1].stat().st_size // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "w.onnx")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    more, size = map(int, run.stdout.split())
    assert size > 250_000
    assert more < size / 10
