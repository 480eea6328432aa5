"""Exporters: models written as ONNX graphs, without PyTorch.

- a checkpoint becomes a bundle by `export_checkpoint`, which knows the families in `coupled_sampling.export.families`;
- a decoder of your own becomes a graph by `write_decoder_graph`, from a `DecoderDescription` and weights, and
  `reference_logits` computes the same in numpy;
- `window_graph` and `pixel_graph` are the writers of the embedded model; `save_graph` checks a graph and writes it;
- `step_graph` appends acceptance and redrafting to a window graph, so that a step is one call, and `add_step_graphs` does so
  for a bundle;
- a PyTorch module of your own: `coupled_sampling.export.torch_module`, with the extra ``[torch]``.

Importing this package loads nothing heavy: ``onnx`` is loaded when a graph is written, and its absence is a
`MissingDependency` then.
"""

from coupled_sampling.export.bundles import Exported, ExportSettings, export_checkpoint
from coupled_sampling.export.checkpoints import Checkpoint, open_checkpoint
from coupled_sampling.export.decoder_graph import decoder_graph, write_decoder_graph
from coupled_sampling.export.description import DecoderDescription, Norm, QueryKeyNorm
from coupled_sampling.export.graph import GraphBuilder, save_graph
from coupled_sampling.export.pixel_graph import pixel_graph
from coupled_sampling.export.reference import reference_logits
from coupled_sampling.export.rotary import GridRotary, Rotary, RotaryScaling
from coupled_sampling.export.step_bundle import add_step_graphs
from coupled_sampling.export.step_graph import step_graph
from coupled_sampling.export.storage import Storage
from coupled_sampling.export.window_graph import GptDescription, window_graph

__all__ = [
    "Checkpoint",
    "DecoderDescription",
    "ExportSettings",
    "Exported",
    "GptDescription",
    "GraphBuilder",
    "GridRotary",
    "Norm",
    "QueryKeyNorm",
    "Rotary",
    "RotaryScaling",
    "Storage",
    "add_step_graphs",
    "decoder_graph",
    "export_checkpoint",
    "open_checkpoint",
    "pixel_graph",
    "reference_logits",
    "save_graph",
    "step_graph",
    "window_graph",
    "write_decoder_graph",
]
