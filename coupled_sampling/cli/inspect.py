"""``coupled-sampling inspect``: what a bundle is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.cli.arguments import add_model
from coupled_sampling.cli.models import open_asked
from coupled_sampling.cli.output import one_line, say, say_json
from coupled_sampling.errors import BundleError

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "say what a bundle is"
DESCRIPTION = """\
Say what a model is: its vocabulary, its prompts, its default settings, and where
its weights come from. Every file of the bundle is checked on the way."""
EXAMPLES = """\
  # fashion, the embedded model of pictures
  coupled-sampling inspect
  # a bundle that `coupled-sampling export` made
  coupled-sampling inspect FOLDER
  # a decoder that somebody else exported
  coupled-sampling inspect model.onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``inspect``."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Open the bundle and print what its manifest says."""
    bundle = open_asked(arguments)
    if arguments.json:
        say_json(asdict(bundle.manifest), default=dict)
        return 0
    for name, value in _lines(bundle).items():
        shown = one_line(value)
        say(f"{name + ':':<15}{shown}")
    return 0


def _text(manifest: Manifest) -> str:
    if manifest.tokenizer is None:
        return "no tokenizer: prompts are names or tokens"
    return f"{manifest.tokenizer}, chat template: {manifest.chat_template or 'none'}"


def _corrections(bundle: Bundle) -> str:
    """Which tables there are, how they were fitted, and what they did on samples kept apart."""
    record = bundle.manifest.corrections
    if record is None:
        return "no tables"
    try:
        bundle.correction_tables()
    except BundleError as error:
        return f"not usable: {error}"
    tables = [f"{use} ({_listed(record.provenance.get(use, 'nothing is said of it'))})" for use in record.uses]
    network = "" if record.network is None else "; a network on top of them"
    return f"neighbours {', '.join(map(str, record.lags))} before; tables for {', '.join(tables)}{network}"


def _listed(value: Any) -> str:
    """Free JSON for people: names and values, those of an object within it in brackets."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{name} ({_listed(v)})" if isinstance(v, Mapping) else f"{name} {v}" for name, v in value.items())


def _prompts(manifest: Manifest) -> str:
    named, begun = ", ".join(manifest.prompts) or "none by name", manifest.prompt_begin
    parts = [f"begins with {', '.join(map(str, begun))}"] if begun else []
    if manifest.prompt_frames and manifest.grid is not None:
        grid = manifest.grid
        parts.append(
            f"ends with {_frames(manifest.prompt_frames)}{grid.rows} x {grid.columns} tokens, which the clip goes on from"
        )
    return f"{named}; each {' and '.join(parts)}" if parts else named


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count > 1)} of " if count else ""


def _lines(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    graph, grid, pixels = manifest.window_graph, manifest.grid, manifest.pixel_graph
    columns = "growing" if graph.caches == "growing" else graph.cache_length
    tree, told, causal = manifest.tree_graph, manifest.condition_graph, manifest.causal_graph
    steps = [str(graph) for graph in manifest.step_graphs]
    unconditional = manifest.unconditional_prompt
    return {
        "name": manifest.name,
        "description": manifest.description,
        "vocabulary": f"{manifest.vocab_size} tokens, of which {manifest.generated_tokens.count} from "
        f"{manifest.generated_tokens.first} on are generated",
        "positions": f"{graph.max_length} per row; a sequence is {manifest.length} generated tokens",
        "window": f"up to {graph.max_window} tokens per forward pass",
        "graph": f"{graph.file}, opset {graph.opset}, {graph.dtype}, {graph.layers} layers",
        "tree graph": f"{tree.file}, {tree.cache_length} columns" if tree else "none",
        "without masks": causal.file if causal else "none",
        "step graphs": ", ".join(steps) or "none",
        "corrections": _corrections(bundle),
        "cache": f"{graph.layers} x 2 x (rows, {graph.kv_heads}, {columns}, {graph.head_size})",
        "condition": f"up to {told.length} vectors of {told.size}, {told.file}" if told else "none",
        "grid": f"{_frames(grid.frames)}{grid.rows} x {grid.columns} tokens" if grid else "none",
        "pixels": f"{_frames(pixels.frames)}{pixels.height} x {pixels.width} x {pixels.channels}" if pixels else "none",
        "prompts": _prompts(manifest),
        "text": _text(manifest),
        "unconditional": str(unconditional) if unconditional else "none (no guidance)",
        "defaults": ", ".join(f"{k} {v}" for k, v in asdict(manifest.defaults).items()),
        "licence": manifest.licence,
        "provenance": json.dumps(dict(manifest.provenance), default=dict),
    }
