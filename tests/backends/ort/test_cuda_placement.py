"""Which nodes of the shipped graphs ONNX Runtime would place on CUDA: the graphs against the recorded placement, and the guide
against both. `cuda_placement` says where the record comes from. Nothing ran on a GPU.

The last tests take an unpacked wheel of ``onnxruntime-gpu`` (``pip download --no-deps``, then unzip), whose folder ONNXRUNTIME_GPU
names, and put libraries that do nothing in place of CUDA's: the record again, whether ONNX Runtime takes the bindings, and what it
copies and allocates in a step.
"""

import collections
import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from coupled_sampling.backends.ort.causal_choice import skips_empty_columns
from coupled_sampling.backends.ort.cuda_session import SHAPE_OPERATORS
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.export.graphs.storage import Storage
from standins import ROOT
from standins.cuda_attention import DTYPES, SIZES
from standins.cuda_placement import (
    GRAPHS,
    HALVES,
    RECORD,
    environment_of,
    placed_graphs,
    placement,
    signatures,
    write_narrow_graphs,
)

onnx = pytest.importorskip("onnx")

VERSIONS = json.loads(RECORD.read_text())
NAMES = [path.name for path in placed_graphs()]
GUIDE = ROOT / "docs" / "step-graph.md"
AGAIN = "place the graphs again: python tests/standins/cuda_placement.py FOLDER..."


def unknown(record, name, found):
    """Nodes of a graph that the record knows neither as placed on CUDA nor on the CPU."""
    allowed = collections.Counter(record["on_cpu"][name])
    return [one for one, count in found.items() if one not in record["kernels"] and count > allowed[one]]


def operators(placed):
    """By operator, how many nodes, as the guide writes them."""
    counts = collections.Counter()
    for one, count in placed.items():
        counts[one.partition("(")[0]] += count
    return dict(counts)


class Graph(NamedTuple):
    """Signatures of a graph's nodes, and of those that ONNX Runtime computes on the CPU: what follows from sizes alone."""

    nodes: collections.Counter
    of_sizes: dict


def read(path):
    known, on_host, of_sizes = signatures(path), set(), collections.Counter()
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type in ("Shape", "Size"):
            on_host.update(node.output)
        elif node.op_type in SHAPE_OPERATORS and node.input[0] in on_host:
            on_host.update(node.output)
            of_sizes[known[node.name]] += 1
    return Graph(collections.Counter(known.values()), dict(of_sizes))


@pytest.fixture(scope="module")
def graphs():
    return {name: read(GRAPHS / name) for name in NAMES}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The small graphs by how they are stored and what they compute in."""
    return {path.name: read(path) for path in write_narrow_graphs(tmp_path_factory.mktemp("narrow"))}


def placed_narrow(version):
    """The record of these: shipped graphs have kernels in common with them."""
    record = VERSIONS[version]
    return record["narrow"] | {"kernels": record["kernels"] + record["narrow"]["kernels"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_graphs_of_every_type_are_on_cuda_but_for_shapes_and_copy_nothing(narrow, version):
    record = placed_narrow(version)
    assert set(record["on_cpu"]) == set(narrow), AGAIN
    for name, found in narrow.items():
        assert unknown(record, name, found.nodes) == [], AGAIN
        assert set(operators(record["on_cpu"][name])) <= SHAPE_OPERATORS
        assert found.of_sizes == record["on_cpu"][name], AGAIN
        assert record["copies, axes free and fixed"][name] == [0, 0]
    types = {part for one in record["kernels"] for part in re.findall(r"\w+", one.partition("(")[2])}
    assert {"float", "float16", "bfloat16", "uint8"} <= types


def test_what_is_compared_in_bfloat16_would_be_noticed(tmp_path, monkeypatch):
    """ONNX Runtime has no CUDA kernel for it, up to 1.31 at least, which is why graphs compare in float32."""
    monkeypatch.setattr(Storage, "compared", property(lambda storage: storage.compute))
    path = write_narrow_graphs(tmp_path, [("bfloat16", "bfloat16")])[0]
    nodes = read(path).nodes
    for version in VERSIONS:
        assert "LessOrEqual(bfloat16, bfloat16)" in unknown(placed_narrow(version), path.name, nodes)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_node_was_placed(graphs, version, name):
    record = VERSIONS[version]
    assert unknown(record, name, graphs[name].nodes) == [], AGAIN
    # Else it would be computed on the CPU and copied, by kernels that the record has.
    assert graphs[name].of_sizes == record["on_cpu"][name], AGAIN


@pytest.mark.parametrize("version", VERSIONS)
def test_the_window_graph_leaves_only_arithmetic_on_shapes_to_the_cpu(version):
    """Else the back end ``cuda`` would refuse the shipped model."""
    placed = operators(VERSIONS[version]["on_cpu"]["window.onnx"])
    assert placed
    assert set(placed) <= SHAPE_OPERATORS


@pytest.mark.parametrize("change", ["another operator", "another type"])
def test_a_node_that_was_never_placed_is_noticed(graphs, change):
    found = copy.copy(graphs["window.onnx"].nodes)
    added = "Tanh(float)" if change == "another operator" else "Gemm(double, double, double)"
    found[added] += 1
    assert unknown(next(iter(VERSIONS.values())), "window.onnx", found) == [added]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_step_graphs_leave_no_more_to_the_cpu_than_the_window_graph_and_copy_nothing(version, name):
    record = VERSIONS[version]
    assert collections.Counter(record["on_cpu"][name]) <= collections.Counter(record["on_cpu"]["window.onnx"])
    assert record["copies, axes free and fixed"][name] == [0, 0]


def test_the_guide_says_what_was_found():
    section = GUIDE.read_text().partition("## On CUDA")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    said = {}
    for names, placed, fixed, copies in rows[1:]:
        assert (fixed, copies) == ("nothing", "0")  # else `placement` fails, and see the test above
        counts = {operator: int(count) for count, operator in re.findall(r"(\d+) ([A-Z]\w+)", placed)}
        for name in re.findall(r"`([\w-]+)`", names):
            said[name] = counts
    assert all(version in section for version in VERSIONS)
    for record in VERSIONS.values():
        found = {}
        for name, placed in record["on_cpu"].items():
            kind = re.sub(r"^step-|(-warped)?(-guided)?\.onnx$", "", name)
            assert found.setdefault(kind, operators(placed)) == operators(placed)
        assert said == found


ROWS_OF_KERNELS = {
    ("float16, bfloat16", "of 8, 16, ..., 256"): [
        f"{dtype}, {heads}" for dtype in HALVES for heads in ("heads of 8", "grouped heads of 8")
    ],
    ("float16, bfloat16", "of 264, 272, ..."): [f"{dtype}, heads of 264" for dtype in HALVES],
    ("float32", "of 8, 16, ..., as many of keys as of queries"): ["float32, heads of 8", "float32, heads of 264"],
    ("float32", "of 8, 16, ..., fewer of keys"): ["float32, grouped heads of 8"],
    ("any", "of other sizes"): [f"{dtype}, heads of 4" for dtype in DTYPES],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_guide_to_gpus_says_which_kernels_of_attention_are_taken(version):
    section = (ROOT / "docs" / "on-a-gpu.md").read_text().partition("## Without masks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+(?:, \w+)*) \| (of .+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert {row[:2] for row in rows} == ROWS_OF_KERNELS.keys()
    assert version in section
    said = {
        f"{name}, {writing}": kernel
        for *key, masked, causal in rows
        for name in ROWS_OF_KERNELS[tuple(key)]
        for writing, kernel in (("masked", masked), ("causal", causal))
    }
    assert said == VERSIONS[version]["attention"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_graph_without_masks_is_tried_where_a_kernel_skips_empty_columns(version):
    """And nowhere else: the rule of the back end against what the packages take."""
    manifest = open_bundle("fashion").manifest
    for name, (size, heads, kv_heads) in SIZES.items():
        for dtype in DTYPES:
            window = dataclasses.replace(manifest.window_graph, dtype=dtype, head_size=size, kv_heads=kv_heads)
            causal = dataclasses.replace(manifest.causal_graph, heads=heads)
            found = dataclasses.replace(manifest, window_graph=window, causal_graph=causal)
            kernel = VERSIONS[version]["attention"][f"{dtype}, {name}, causal"]
            assert skips_empty_columns(found) == (kernel != "unfused"), (name, dtype)


@pytest.fixture(scope="module")
def package():
    if "ONNXRUNTIME_GPU" not in os.environ:
        pytest.skip("ONNXRUNTIME_GPU names no unpacked wheel of onnxruntime-gpu")
    return Path(os.environ["ONNXRUNTIME_GPU"])


@pytest.fixture(scope="module")
def environment(package, tmp_path_factory):
    found = environment_of(package, tmp_path_factory.mktemp("libraries"))
    return {**found, "PYTHONPATH": os.pathsep.join((found["PYTHONPATH"], str(ROOT / "tests")))}


def test_the_record_is_what_the_package_does(package):
    version, found = placement(package)
    assert found == next((record for name, record in VERSIONS.items() if name == version), None), AGAIN


BINDINGS = """
import os, sys
import numpy as np
from coupled_sampling.backends.ort import session
from coupled_sampling.errors import ProviderError
from standins.on_cuda import cuda_provider

session._is_installed = lambda name: name == "onnxruntime-gpu"  # the package of the CPU is in this environment, too
for on_device in (False, True):
    provider = cuda_provider("fashion", 3, on_device=on_device)
    print(provider.runs.execution_provider, sorted(provider.binding.on_cpu))
    for rows, width, start in ((3, 5, 0), (2, 1, 5), (3, 5, 5), (1, 8, 20)):
        logits = provider.forward(np.full((rows, width), 7), np.full(rows, start))
        print(type(logits).__name__, logits.shape == (rows, width, 267))
try:
    cuda_provider("fashion", cpu_nodes="none")
except ProviderError as error:
    print("cpu_nodes='none' forbids" in str(error))
sys.stdout.flush()
os._exit(0)
"""


GRAPHS_OF_CUDA = """
import os, sys
import numpy as np
from coupled_sampling.backends.ort import cuda_session, session
from standins.on_cuda import cuda_provider
import onnxruntime

session._is_installed = lambda name: name == "onnxruntime-gpu"
quiet = cuda_session.session_options

def telling(*arguments):
    options = quiet(*arguments)
    options.log_severity_level = 1
    return options

cuda_session.session_options = telling
for on_device in (False, True):
    provider = cuda_provider("fashion", 3, on_device=on_device, cuda_graphs=True, column_buckets=(64,))
    for rows, width, start in 4 * ((3, 5, 0),) + 3 * ((2, 1, 5),) + 3 * ((3, 5, 60),):
        print("call", rows, width, start, file=sys.stderr, flush=True)
        logits = provider.forward(np.full((rows, width), 7), np.full(rows, start))
        assert logits.shape == (rows, width, 267)
    print(type(logits).__name__, provider.binding.captured)
sys.stdout.flush()
os._exit(0)
"""


def test_the_package_captures_and_replays(environment):
    """What it says in its log. Nothing is computed, but whether a session may capture, and when it does, is its own answer."""
    command = [sys.executable, "-c", GRAPHS_OF_CUDA]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    captured = "[(3, 5, 64), (2, 1, 64), (3, 5, 196)]"
    assert result.stdout.splitlines() == [f"ndarray {captured}", f"DevicePointer {captured}"]
    said = re.findall(
        r"^call .*|Start another run|Capturing the cuda graph|Replaying the captured", result.stderr, re.MULTILINE
    )
    found, plain, capturing, replay = (
        [],
        [],
        ["Start another run"] * 2 + ["Capturing the cuda graph"],
        ["Replaying the captured"],
    )
    for line in said:
        if line.startswith("call"):
            found.append([])
        else:
            found[-1].append(line)
    assert found == 2 * [plain, capturing, replay, replay, plain, capturing, replay, plain, capturing, replay]


def test_the_package_takes_the_bindings(environment):
    """Kernels do nothing and logits are what was in memory, but shapes, types and places of all that is bound are checked."""
    command = [sys.executable, "-c", BINDINGS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    opened = "CUDAExecutionProvider ['Concat', 'Slice']"
    expected = [opened, *["ndarray True"] * 4, opened, *["DevicePointer True"] * 4, "True"]
    assert result.stdout.splitlines() == expected


HALF = """
import os, sys
from pathlib import Path
import numpy as np
from coupled_sampling.backends import Place, open_model
from coupled_sampling.backends.ort import session
from coupled_sampling.contracts import RowInfo, Sampling, Window
from standins.on_cuda import cuda_provider
from standins.trt_bundles import write_bundle
from coupled_sampling.export import Storage

session._is_installed = lambda name: name == "onnxruntime-gpu"
for kind in ("float16", "bfloat16"):
    bundle = write_bundle(Path(sys.argv[1], kind), steps=("scd-match",), storage=Storage(kind, kind))
    for captures in (False, True):
        provider = cuda_provider(bundle, 3, cuda_graphs=captures)
        for rows, width, start in 3 * ((3, 5, 0),) + ((2, 1, 5),):
            logits = provider.forward(np.full((rows, width), 7), np.full(rows, start))
            assert logits.shape == (rows, width, 11), logits.shape
        print(kind, sorted(provider.binding.on_cpu), len(provider.binding.captured) if captures else "")
    step = open_model(bundle, Place("cuda"), 2, method="scd-match", step="graph")
    each = lambda value: np.full(2, value)
    step.step(Window(
        np.full((2, 4), 7), each(0), each(1), each(0), each(3), np.ones(2, bool), each(0),
        [RowInfo(0, b, Sampling()) for b in range(2)], [np.zeros(0, int)] * 2, [None] * 2,
    ))
    print(kind, sorted(step.binding.on_cpu))
sys.stdout.flush()
os._exit(0)
"""


def test_the_package_takes_bindings_of_half_precision(environment, tmp_path):
    """bfloat16 by ONNX's number: that numpy has no such type stops nobody."""
    command = [sys.executable, "-c", HALF, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    opened = ["['Concat', 'Slice'] ", "['Concat', 'Slice'] 1", "['Concat', 'Slice']"]
    assert result.stdout.splitlines() == [f"{kind} {said}" for kind in ("float16", "bfloat16") for said in opened]


STEPS = """
import json, os, sys
import numpy as np
import onnxruntime
from standins.cuda_placement import counted
from standins.on_cuda import cuda_step
from coupled_sampling.backends.ort import session, step as ort_step
from coupled_sampling.contracts import RowInfo, Sampling, Window

session._is_installed = lambda name: name == "onnxruntime-gpu"
ort_step.refuse_unusable = lambda *_: None  # logits are what was in memory
method, guided = sys.argv[1], sys.argv[2] == "guided"
rows, width = 3, 1 if method == "ar" else 8
step = cuda_step("fashion", method, rows, guidance=1.5 if guided else 1.0)
if guided:
    step._choose(range(rows))
    step._warped = False  # a bool output that says "again" for ever
    step._tensors._buffers["nucleus_short"].shaped(rows, width)
    step.binding.bind_output("nucleus_short", step._tensors.out("nucleus_short", rows, width))
    for name, value in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        step._tensors.put(name, value, rows)
    step._tensors.put("candidates", 4, 1)
opened, found = counted(), []
for t in range(24):
    recycled = max(0, width - 2) if t else 0
    each = lambda value: np.full(rows, value)
    before = counted()
    step.step(Window(
        np.full((rows, width), 7), each(t), each(1), each(recycled), each(width - 1 - recycled), np.ones(rows, bool), each(t),
        [RowInfo(0, b, Sampling()) for b in range(rows)], [np.zeros(0, int)] * rows, [None] * rows,
    ))
    found.append([after - one for one, after in zip(before, counted())])
print(json.dumps([onnxruntime.__version__, opened, found]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_what_crosses_in_a_step(environment, method, guided):
    """ONNX Runtime's own requests to CUDA, counted to the byte: it copies what `OrtStep` says and allocates nothing."""
    command = [sys.executable, "-c", STEPS, method, "guided" if guided else "plain"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    version, opened, found = json.loads(result.stdout)
    assert opened[0] > 0
    own = (
        0 if tuple(map(int, version.split(".")[:2])) >= (1, 31) else 256
    )  # arguments of its kernels, whatever the sizes
    rows, width, model_rows = 3, 1 if method == "ar" else 8, 6 if guided else 3
    rejecting, racing = method in ("sjd", "scd-maximal", "scd-gumbel"), method in ("scd-gumbel", "scd-match")
    to_device = 8 * model_rows * (width + 1) + (3 * 8 + 1 + guided + 4) * rows
    to_device += (24 * width + 8) * rows * rejecting + 8 * rows * racing
    # A scale for each slot, the lag, and top-k, top-p and min-p: guided graphs of the bundle are warped, too.
    to_device += (8 * width + 8 + 20) * rows * guided
    to_device -= 16 * rows * (method == "ar")  # its graph looks at no count of drafts
    to_device += 4 * 267 * rows * (racing or method == "ar")  # the noise of one position that entered in each row
    to_host = rows * (8 * width + 8 + 4 * width + width * guided)
    for allocations, up, down, within in found[4:]:
        assert (allocations, down) == (0, to_host)
        assert to_device <= up <= to_device + own
        assert within < 6 * 196 * 32 * 4 * model_rows  # less than one cache: they are written in place
