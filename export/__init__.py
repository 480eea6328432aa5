"""Exporters: models written as ONNX graphs, without PyTorch.

`window_graph` writes what a backend runs, tokens to logits; `pixel_graph` writes what shows the result. Both return an
ONNX model in memory; `save_graph` checks it and writes it. Importing this package loads nothing heavy: ``onnx`` is
loaded when a graph is written, and its absence is a `MissingDependency` then.
"""

from coupled_sampling.export.graph import GraphBuilder, save_graph
from coupled_sampling.export.pixel_graph import pixel_graph
from coupled_sampling.export.window_graph import GptDescription, window_graph

__all__ = ["GptDescription", "GraphBuilder", "pixel_graph", "save_graph", "window_graph"]
