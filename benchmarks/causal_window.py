"""The window graph with masks, without, and without over the beginning of the caches, on the CPU: time of a pass, and difference.

``python benchmarks/causal_window.py [--repeats N]`` prints, for the embedded model and for a decoder with long caches and grouped
heads, the processor time of a pass by rows, slots and start: the median for the graph with masks, and the others as a ratio to it.
One thread, the three in turn. Needs ``onnx`` and ``onnxruntime``.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import onnx
import onnxruntime

from coupled_sampling import open_bundle
from coupled_sampling.export import DecoderDescription, Rotary, causal_window
from coupled_sampling.export.graphs.decoder import decoder_graph

LONG = DecoderDescription(
    vocab_size=256,
    positions=4096,
    width=256,
    layers=4,
    heads=8,
    kv_heads=2,
    head_size=32,
    mlp_width=512,
    rotary=Rotary(),
)
WINDOWS = {
    "fashion": ((1, 1, 10), (1, 1, 150), (1, 16, 10), (1, 16, 150), (4, 16, 100)),
    "caches of 4,096 columns": ((1, 1, 100), (1, 1, 4000), (1, 16, 100), (1, 16, 2000), (1, 16, 4000), (4, 16, 1000)),
}
STEP = 32
"""``kv_length`` is rounded up to a multiple of it, as the back ends do."""


def over_the_beginning(causal: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without masks, given the first ``kv_length`` columns instead of the whole cache."""
    model = onnx.ModelProto()
    model.CopyFrom(causal)
    graph, helper = model.graph, onnx.helper
    graph.input.append(helper.make_tensor_value_info("kv_length", onnx.TensorProto.INT64, [1]))
    for name, value in (("beginning.zero", 0), ("beginning.axis", 2)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    nodes = []
    for node in graph.node:
        if node.op_type == "Attention":
            for i in (1, 2):
                cache, node.input[i] = node.input[i], f"{node.input[i]}.beginning"
                inputs = [cache, "beginning.zero", "kv_length", "beginning.axis"]
                nodes.append(helper.make_node("Slice", inputs, [node.input[i]]))
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return model


class Pass:
    """A writing of the graph with caches bound in place."""

    def __init__(self, model: onnx.ModelProto, rows: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads, options.enable_mem_pattern = 4, 1, False
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        random = np.random.default_rng(0)
        self.caches = {
            name: random.normal(size=(rows, *value.shape[1:])).astype(np.float32)
            for name, value in self.inputs.items()
            if name.startswith("past_key_values.")
        }
        self.vocab_size = self.session.get_outputs()[0].shape[-1]

    def bind(self, rows: int, width: int, start: int) -> None:
        binding, kept = self.session.io_binding(), []
        columns = next(iter(self.caches.values())).shape[2]
        filled = min(-(-(start + width) // STEP) * STEP, columns)
        tokens = np.random.default_rng(1).integers(0, self.vocab_size, (rows, width))
        values = {"input_ids": tokens, "start": np.full(rows, start), "kv_length": np.array([filled])}
        for name, value in values.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, value)
                kept.append(value)
        for name, cache in self.caches.items():
            shape, present = (rows, *cache.shape[1:]), name.replace("past_key_values", "present")
            binding.bind_input(name, "cpu", 0, np.float32, shape, cache.ctypes.data)
            binding.bind_output(present, "cpu", 0, np.float32, shape, cache.ctypes.data)
        self.logits = np.zeros((rows, width, self.vocab_size), np.float32)
        shape = self.logits.shape
        binding.bind_output("logits", "cpu", 0, np.float32, shape, self.logits.ctypes.data)
        self.binding, self.kept = binding, kept

    def seconds(self) -> float:
        begun = time.process_time()
        self.session.run_with_iobinding(self.binding)
        return time.process_time() - begun


def window_graphs() -> dict[str, onnx.ModelProto]:
    random = np.random.default_rng(0)
    shapes = LONG.weight_shapes()
    weights = {name: random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    return {
        "fashion": onnx.load(open_bundle("fashion").window_graph),
        "caches of 4,096 columns": decoder_graph(LONG, weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    print(f"onnxruntime {onnxruntime.__version__}, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'':25}{'rows':>5}{'slots':>6}{'start':>6}{'masked, ms':>12}{'without':>9}{'beginning':>11}{'difference':>12}"
    )
    for name, masked in window_graphs().items():
        causal = causal_window(masked)
        passes = [Pass(model, 4) for model in (masked, causal, over_the_beginning(causal))]
        for rows, width, start in WINDOWS[name]:
            for one in passes:
                one.bind(rows, width, start)
                one.seconds()
            times = np.array([[one.seconds() for one in passes] for _ in range(repeats)])
            first, others = np.median(times[:, 0]), np.median(times[:, 1:] / times[:, :1], axis=0)
            finite = np.isfinite(passes[0].logits)
            apart = max(float(np.abs(one.logits - passes[0].logits)[finite].max()) for one in passes[1:])
            print(
                f"{name:25}{rows:5}{width:6}{start:6}{first * 1e3:12.2f}{others[0]:9.2f}{others[1]:11.2f}{apart:12.1e}"
            )


if __name__ == "__main__":
    main()
