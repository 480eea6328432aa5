"""Where ONNX Runtime's CUDA execution provider would place the nodes of the shipped graphs, found without a GPU.

So of small graphs of every way of storing weights, and of every type to compute in: `write_narrow_graphs`.

``python tests/standins/cuda_placement.py FOLDER...`` reads unpacked wheels of ``onnxruntime-gpu`` (each holds ``onnxruntime/``)
and writes ``cuda_placement.json`` beside this file. CUDA's libraries are replaced by ones whose functions do nothing, so that
a session gets as far as placing nodes: which kernels there are, which nodes ONNX Runtime prefers on the CPU, and which
copies between host and GPU it adds, is its own answer. Nothing is computed. Needs gcc, readelf and ``onnx``, on Linux.
"""

import collections
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
GRAPHS = ROOT / "coupled_sampling" / "bundles" / "models" / "fashion"
RECORD = Path(__file__).with_suffix(".json")
PROVIDER = "CUDAExecutionProvider"
INLINED = ("Swish",)
"""Operators that ONNX Runtime has no kernel for and writes as others, whose nodes have no names."""
FIXED = {"B": 2, "2B": 4, "W": 8, "R": 40, "N": 5, "draft_slots": 8}
"""A length for every axis that the graphs leave free."""

# What must answer for a session to be made: one GPU of compute capability 9.0 with memory, taken from the host's; copies are done.
# Offsets are those of cudaDeviceProp in CUDA 13. `counted` is what was asked: how often for device memory, and how many bytes to
# copy by CUDA's kind: 1 to the device, 2 to the host, 3 within the device.
ANSWERS = """
#include <stdlib.h>
#include <string.h>
long long counted[5];
static int copy(void *to, const void *from, size_t size, int kind) { counted[kind] += size; memcpy(to, from, size); return 0; }
static int take(void **at, size_t size) { *at = aligned_alloc(256, (size + 511) / 256 * 256); return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaMemGetInfo(size_t *unused, size_t *all) { *unused = *all = (size_t)64 << 30; return 0; }
int cudaMalloc(void **at, size_t size) { ++*counted; return take(at, size); }
int cudaMallocAsync(void **at, size_t size, void *stream) { ++*counted; return take(at, size); }
int cudaMallocHost(void **at, size_t size) { return take(at, size); }
int cudaHostAlloc(void **at, size_t size, unsigned flags) { return take(at, size); }
int cudaStreamCreate(void **at) { return take(at, 8); }
int cudaStreamCreateWithFlags(void **at, unsigned flags) { return take(at, 8); }
int cudaStreamEndCapture(void *stream, void **at) { return take(at, 8); }
int cudaGraphInstantiate(void **at, void *graph, unsigned long long flags) { return take(at, 8); }
int cudaEventCreate(void **at) { return take(at, 8); }
int cudaEventCreateWithFlags(void **at, unsigned flags) { return take(at, 8); }
int cublasCreate_v2(void **at) { return take(at, 64); }
int cublasLtCreate(void **at) { return take(at, 64); }
int cudnnCreate(void **at) { return take(at, 64); }
int cudnnCreateTensorDescriptor(void **at) { return take(at, 64); }
int cudnnCreateReduceTensorDescriptor(void **at) { return take(at, 64); }
size_t cudnnGetVersion() { return 91000; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : attribute != 76; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return copy(to, from, size, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return copy(to, from, size, kind); }
int cudaMemset(void *at, int value, size_t size) { memset(at, value, size); return 0; }
int cudaMemsetAsync(void *at, int value, size_t size, void *stream) { memset(at, value, size); return 0; }
int cudaGetDeviceProperties(char *all, int device) {
    memset(all, 0, 1000);
    *(size_t *)(all + 288) = (size_t)64 << 30; /* totalGlobalMem */
    *(size_t *)(all + 296) = 49152;            /* sharedMemPerBlock */
    *(int *)(all + 308) = 32;                  /* warpSize */
    *(int *)(all + 320) = 1024;                /* maxThreadsPerBlock */
    *(int *)(all + 360) = 9;                   /* major */
    *(int *)(all + 384) = 100;                 /* multiProcessorCount */
    return 0;
}
const char *cudaGetErrorString(int code) { return "nothing was done"; }
const char *cudaGetErrorName(int code) { return "nothing"; }
void **__cudaRegisterFatBinary(void *image) { static void *handle[4]; return handle; }
"""


def placed_graphs():
    """The shipped graphs that the back end ``cuda`` takes: all but corrected ones, those for trees, and networks that correct."""
    left_out = {"corrected", "tree", "network"}
    return [path for path in sorted(GRAPHS.glob("*.onnx")) if not left_out & set(path.stem.split("-"))]


HALVES = ("float16", "bfloat16")
STORED = (*zip(HALVES, HALVES, strict=True), ("int4", "float32"))
STORED += tuple((weights, half) for weights in ("int4", "int8") for half in HALVES)
"""Types of weights and arithmetic that narrow graphs have."""


def write_narrow_graphs(folder, stored=STORED):
    """Small graphs in ``folder`` by how they are stored and what they compute in: windows of two kinds of decoder, and steps."""
    import numpy as np

    from coupled_sampling.export import DecoderDescription, Norm, QueryKeyNorm, Rotary, Storage, save_graph, step_graph
    from coupled_sampling.export.graphs.causal_window import causal_window
    from coupled_sampling.export.graphs.decoder import decoder_graph

    sizes = {"vocab_size": 32, "positions": 64, "width": 32, "layers": 1, "heads": 2, "mlp_width": 32}
    rotary = DecoderDescription(**sizes, kv_heads=1, rotary=Rotary(), query_key_norm=QueryKeyNorm())
    plain = {"norm": Norm("layer"), "mlp": "plain", "activation": "gelu_tanh", "mlp_bias": True, "tied_head": True}
    learned = DecoderDescription(**sizes, **plain, learned_positions=True, query_key_value_bias=True, generated=20)
    made = []
    for weights, compute in stored:
        for kind, description in (("rotary", rotary), ("learned", learned)):
            values = {name: np.ones(shape, np.float32) for name, shape in description.weight_shapes().items()}
            model = decoder_graph(description, values, Storage(weights, compute))
            made.append(save_graph(model, folder / f"{kind}-{weights}-{compute}.onnx"))
            if kind == "rotary" and weights == compute:
                made.append(save_graph(causal_window(model), folder / f"causal-{compute}.onnx"))
                step = step_graph(model, "scd-gumbel", warped=True, guided=True)
                made.append(save_graph(step, folder / f"step-{compute}.onnx"))
    return made


def write_libraries(provider, folder):
    """Libraries in ``folder`` that define whatever ``provider`` wants of CUDA's."""
    dynamic = subprocess.run(["readelf", "-d", provider], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(
        ["readelf", "-W", "--dyn-syms", provider], capture_output=True, text=True, check=True
    ).stdout
    wanted = set(re.findall(r" UND ((?:__cuda|cuda|cu|cufft|cudnn)\w+)", symbols))
    # cuDNN is opened by name, function by function, when the first kernel needs it.
    wanted |= {name.decode() for name in re.findall(rb"\b(cudnn[A-Z]\w+)\0", provider.read_bytes())}
    answered = set(re.findall(r"(\w+)\([^)]*\) \{", ANSWERS))
    source = folder / "answers.c"
    source.write_text(ANSWERS + "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(wanted - answered)))
    for name in ("libcudnn.so", "libcudnn.so.9", *re.findall(r"\[(lib(?:cu|nv)[\w.]+)\]", dynamic)):
        subprocess.run(
            ["gcc", "-w", "-shared", "-fPIC", "-o", folder / name, source, f"-Wl,-soname,{name}"], check=True
        )


def environment_of(package, folder):
    """Environment of a process that imports an unpacked ``onnxruntime-gpu``, with CUDA's libraries written to ``folder``."""
    write_libraries(package / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so", folder)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(package)}


def counted():
    """In such a process, what was asked so far: [allocations, bytes to the device, bytes to the host, bytes within]."""
    totals = [0] * 4
    for library in Path(os.environ["LD_LIBRARY_PATH"]).glob("*.so*"):
        found = (ctypes.c_longlong * 5).in_dll(ctypes.CDLL(str(library)), "counted")
        totals = [total + count for total, count in zip(totals, found, strict=False)]
    return totals


def print_placement(graph, sizes):
    """In a process of its own: the version, the execution provider of every node by name, and how many copies were added.

    ``sizes`` are lengths of the graph's free axes by name; none leaves them free.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    if sizes:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # raises if a node goes to the CPU
    with tempfile.TemporaryDirectory() as folder:
        optimized = options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        session = onnxruntime.InferenceSession(graph, options, providers=[PROVIDER], enable_fallback=0)
        nodes = onnx.load(optimized, load_external_data=False).graph.node
    assert session.get_providers()[0] == PROVIDER
    parts = session.get_provider_graph_assignment_info()
    nodes_of = [(node, part.ep_name) for part in parts for node in part.get_nodes()]
    placed = {node.name or f"{node.op_type} without a name, {i}": where for i, (node, where) in enumerate(nodes_of)}
    copies = sum(node.op_type.startswith("Memcpy") for node in nodes)
    print(json.dumps([onnxruntime.__version__, placed, copies]), flush=True)
    os._exit(0)  # what was never initialised cannot be torn down


def signature(node, types):
    """A node's operator with its input types, as `Where(bool, float, float)`."""
    last = any(attribute.name == "select_last_index" and attribute.i for attribute in node.attribute)
    inputs = ", ".join(types[name] for name in node.input if name)
    return f"{node.op_type}{' of the last index' * last}({inputs})"


def signatures(graph):
    """By node name, the signatures of an ONNX file."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    constants = {value.name: value.data_type for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":  # which onnx does not know: what it makes is of the type of its scales
            made = onnx.helper.make_tensor_value_info(node.output[0], constants[node.input[2]], None)
            model.graph.value_info.append(made)
    model = onnx.shape_inference.infer_shapes(model)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= constants
    types = {name: onnx.TensorProto.DataType.Name(kind).lower() for name, kind in kinds.items()}
    return {node.name: signature(node, types) for node in model.graph.node}


def place(environment, graph, sizes):
    """In a process with this environment, what `print_placement` says of a graph."""
    command = [sys.executable, __file__, "--place", str(graph), json.dumps(sizes)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{graph.name}, {sizes}: {result.stderr[-2000:]}")
    return json.loads(result.stdout)


def placement(package):
    """What one version does: its name, and what it does with the shipped graphs and with ``narrow`` ones.

    Last, which of its kernels for attention it takes (`standins.cuda_attention`).
    """
    from standins.cuda_attention import attention_kernels

    with tempfile.TemporaryDirectory() as libraries, tempfile.TemporaryDirectory() as narrow:
        environment = environment_of(package, Path(libraries))
        version, shipped = placement_of(placed_graphs(), environment)
        _, others = placement_of(write_narrow_graphs(Path(narrow)), environment)
        attention = attention_kernels(environment, Path(libraries))
    others["kernels"] = sorted(set(others["kernels"]) - set(shipped["kernels"]))
    return version, shipped | {"attention": attention, "narrow": others}


def placement_of(graphs, environment):
    """The version, and by graph what it puts on the CPU and how many tensors it would copy.

    With free axes: the kernels it has for the graphs, and ``on_cpu``. With all axes fixed no node may be on the CPU, or this fails.
    """
    kernels, left, copied, version = set(), {}, {}, ""
    for graph in graphs:
        known, copied[graph.name] = signatures(graph), []
        for sizes in ({}, FIXED):
            version, placed, copies = place(environment, graph, sizes)
            copied[graph.name].append(copies)
            if not sizes:
                kernels |= {known[node] for node, where in placed.items() if where == PROVIDER and node in known}
                on_cpu = collections.Counter(
                    known.get(node, node) for node, where in placed.items() if where != PROVIDER
                )
                kernels |= {one for node, one in known.items() if node not in placed and one.startswith(INLINED)}
                left[graph.name] = dict(sorted(on_cpu.items()))
            elif set(placed.values()) != {PROVIDER}:
                raise SystemExit(f"{graph.name} has nodes on the CPU although all its axes are fixed: {placed}")
    return version, {"kernels": sorted(kernels), "on_cpu": left, "copies, axes free and fixed": copied}


if __name__ == "__main__":
    if sys.argv[1] == "--place":
        print_placement(sys.argv[2], json.loads(sys.argv[3]))
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    RECORD.write_text(json.dumps(dict(placement(Path(folder)) for folder in sys.argv[1:]), indent=1) + "\n")
