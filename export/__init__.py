"""Exporters: models written as ONNX graphs, without PyTorch.

- a checkpoint becomes a bundle by `export_checkpoint`, which knows the families in `coupled_sampling.export.families`;
- a decoder of your own becomes a graph by `write_decoder_graph`, from a `DecoderDescription` and weights, and
  `reference_logits` computes the same in numpy;
- `pixel_graph` writes what makes a picture of tokens and a codebook; `save_graph` checks a graph and writes it;
- `step_graph` appends acceptance and redrafting to a window graph, so that a step is one call, and `add_step_graphs` does so
  for a bundle; `tree_window` rewrites a window graph into one whose windows may be trees, `causal_window` into one without masks;
- a PyTorch module of your own: `coupled_sampling.export.torch.module`, with the extra ``[torch]``.

Nothing here runs a model: an export that is to be checked takes the function that opens the bundle, an `Opener`. Importing this
package loads nothing heavy: ``onnx`` is loaded when a graph is written, and its absence is a `MissingDependency` then.
"""

from coupled_sampling.bundles.portable_graphs import portable_graph
from coupled_sampling.export.bundles import Exported, ExportSettings, export_checkpoint
from coupled_sampling.export.check_text import CheckedText
from coupled_sampling.export.checkpoints import Checkpoint, open_checkpoint
from coupled_sampling.export.fill_token import find_fill_token
from coupled_sampling.export.graphs.builder import save_graph
from coupled_sampling.export.graphs.causal_window import causal_window
from coupled_sampling.export.graphs.codebook_pixels import pixel_graph
from coupled_sampling.export.graphs.condition_graph import write_condition_graph
from coupled_sampling.export.graphs.conditions import CrossAttention, PrefixVectors
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription, LayerKind, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.layer_positions import LayerPositions
from coupled_sampling.export.graphs.picture_positions import PicturePositions
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.rotary import GridRotary, Rotary, RotaryScaling
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.export.graphs.tree_window import tree_window
from coupled_sampling.export.step_bundle import add_step_graphs

__all__ = [
    "CheckedText",
    "Checkpoint",
    "CrossAttention",
    "DecoderDescription",
    "ExportSettings",
    "Exported",
    "GridRotary",
    "LayerKind",
    "LayerPositions",
    "Norm",
    "PicturePositions",
    "PrefixVectors",
    "QueryKeyNorm",
    "Rotary",
    "RotaryScaling",
    "Storage",
    "add_step_graphs",
    "causal_window",
    "export_checkpoint",
    "find_fill_token",
    "open_checkpoint",
    "pixel_graph",
    "portable_graph",
    "reference_logits",
    "save_graph",
    "step_graph",
    "tree_window",
    "write_condition_graph",
    "write_decoder_graph",
]
