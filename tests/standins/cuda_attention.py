"""Which of its attention kernels ONNX Runtime's CUDA execution provider takes for window graphs with masks and without.

Found without a GPU: it says so in its log before it calls one, and `cuda_placement` lets it run with CUDA's libraries replaced.

Graphs are named by what decides: the type of the caches, the size of a head, heads of queries and of keys, and the writing.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

PROVIDER = "CUDAExecutionProvider"
SIZES = {"heads of 8": (8, 4, 4), "grouped heads of 8": (8, 4, 2), "heads of 4": (4, 4, 4), "heads of 264": (264, 4, 4)}
"""Size, heads of queries, heads of keys."""
DTYPES = ("float32", "float16", "bfloat16")
TYPES = {
    "tensor(float)": (np.float32, 1),
    "tensor(float16)": (np.float16, 10),
    "tensor(bfloat16)": (np.uint16, 16),
    "tensor(int64)": (np.int64, 7),
}
"""numpy's types, with one of as many bits for bfloat16, and ONNX's numbers of types."""
KERNELS = {
    "Flash Attention": "Flash",
    "Memory Efficient Attention": "memory-efficient",
    "unified unfused path": "unfused",
    "cuDNN SDPA": "cuDNN",
}
"""By what the log calls them."""


def write_graphs(folder):
    """Both writings of each graph; their names and files."""
    import onnx

    from coupled_sampling.export import Norm, Rotary, Storage, causal_window
    from coupled_sampling.export.graphs.decoder import decoder_graph
    from standins.toy_bundles import toy_gpt
    from standins.tree_windows import random_weights

    made = {}
    for name, (size, heads, kv_heads) in SIZES.items():
        description = toy_gpt(
            32, learned_positions=False, rotary=Rotary(), norm=Norm(), heads=heads, kv_heads=kv_heads, head_size=size
        )
        for dtype in DTYPES:
            masked = decoder_graph(description, random_weights(description), Storage(weights=dtype, compute=dtype))
            for writing, model in (("masked", masked), ("causal", causal_window(masked))):
                path = folder / f"{len(made)}.onnx"
                onnx.save(model, path)
                made[f"{dtype}, {name}, {writing}"] = str(path)
    return made


def print_kernels(graphs):
    """In a process of its own: run each of ``graphs`` on ragged rows of several slots and of one, between marks in the log."""
    import onnxruntime

    make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    onnxruntime.set_default_logger_severity(0)
    for name, path in graphs.items():
        session = onnxruntime.InferenceSession(path, providers=[PROVIDER], enable_fallback=0)
        for width, start in ((5, [0, 3]), (1, [4, 6])):
            sizes = {"B": 2, "W": width}
            given = {"start": np.array(start), "kv_length": np.array([12])}
            inputs = {}
            for value in session.get_inputs():
                dtype, number = TYPES[value.type]
                zeros = np.zeros([sizes.get(size, size) for size in value.shape], dtype)
                inputs[value.name] = make(given.get(value.name, zeros), number)
            print(f"running {name}", file=sys.stderr, flush=True)
            session.run_with_ort_values(None, inputs)
    sys.stderr.flush()
    os._exit(0)


def attention_kernels(environment, folder):
    """By graph, the kernels that were taken, in an environment of `cuda_placement`."""
    graphs = write_graphs(folder)
    environment = {
        **environment,
        "PYTHONPATH": os.pathsep.join((environment["PYTHONPATH"], str(Path(__file__).parents[1]))),
    }
    command = [sys.executable, __file__, json.dumps(graphs)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    found, current = {}, ""
    for graph, kernel in re.findall(r"running (.*)|Attention: using ([\w ]+?)(?: \(|$)", result.stderr, re.MULTILINE):
        current = graph or current
        if kernel:
            found.setdefault(current, set()).add(KERNELS[kernel])
    assert found.keys() == graphs.keys()
    return {name: " and ".join(sorted(kernels)) for name, kernels in found.items()}


if __name__ == "__main__":
    print_kernels(json.loads(sys.argv[1]))
