"""What a step graph must be before it is run: its format, its inputs and outputs, and what its bundle says of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from coupled_sampling.backends.ort.binding import CACHE_TYPES, TYPES
from coupled_sampling.backends.ort.step_corrections import CORRECTION, refused_corrector
from coupled_sampling.backends.place import Wanted, step_graphs_command
from coupled_sampling.backends.window_tensors import tree_window_graph
from coupled_sampling.bundles.manifest import StepGraph
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.corrections import Corrector
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.guided_rows import Scale
from coupled_sampling.methods import Method, find_method
from coupled_sampling.refusals import Refusals

__all__ = [
    "StepGraphFacts",
    "check_against_bundle",
    "check_corrections",
    "check_guidance",
    "missing_step_graph",
    "refusals_of",
    "step_graph_facts",
    "step_graph_record",
]

_FORMAT = "coupled-sampling step graph"
_NEWEST = 2
_Kind = tuple[str, tuple[int | None, ...]]
"""Element type and sizes, None for one that is free."""
_PAST, _PRESENT = "past_key_values.", "present."


class StepGraphFacts(NamedTuple):
    """What a step graph says of itself, and what its inputs do."""

    method: Method
    vocab_size: int
    max_length: int
    warped: bool
    guided: bool
    corrected: bool = False
    tree: bool = False
    slot_scales: bool = False
    """Whether each slot has a guidance scale of its own; else each row has one."""


def refusals_of(facts: StepGraphFacts) -> Refusals:
    """What a step graph does not do, and what to do instead."""
    return Refusals(
        "this step graph",
        laws="use HostStep for them" if facts.method.acceptance == "rejection" else None,
        processors="use HostStep",
        warps=None if facts.warped else "use HostStep, or a step graph written with warped=True",
        logprobs="use HostStep",
        guidance=None if facts.guided else "use HostStep over a GuidedProvider, or a guided step graph",
    )


def check_guidance(facts: StepGraphFacts, guidance: Scale | None, unconditional: object) -> None:
    """Refuse guidance that does not go with the graph: `InvalidArgument`."""
    if facts.guided != (guidance is not None and unconditional is not None):
        raise InvalidArgument(
            f"guidance is {guidance} and unconditional {unconditional}, the step graph is "
            f"{'guided and needs both' if facts.guided else 'not guided and takes neither'}"
        )
    if guidance is not None and not callable(guidance) and not math.isfinite(guidance):
        raise InvalidArgument(f"guidance is {guidance}, expected a finite number")


def check_corrections(facts: StepGraphFacts, corrections: Corrector | None) -> None:
    """Refuse a corrector that does not go with the graph: `InvalidArgument`."""
    if facts.corrected != (corrections is not None):
        raise InvalidArgument(
            f"corrections is {corrections!r}, the step graph is "
            f"{'corrected and needs a LowRank' if facts.corrected else 'not corrected and takes None'}"
        )


def missing_step_graph(wanted: Wanted) -> str | None:
    """Why the bundle has no step graph for what is wanted, and the command that makes it; None if it has one."""
    bundle, method = wanted.bundle, _name(wanted)
    refusal = None if wanted.corrections is None else refused_corrector(wanted.corrections)
    if refusal is not None:
        return f"step is 'graph', but {refusal}; use step='host', or leave step at 'auto'"
    if wanted.trees and wanted.guided:
        return "step is 'graph', but step graphs for trees are not guided; leave step at 'auto', for the host"
    if _path(wanted) is not None:
        if not wanted.varied or step_graph_record(wanted).scales == "slot":
            return None
        return (
            f"step is 'graph', but guidance changes with the position, and the step graph of {bundle.manifest.name} has one scale "
            f"for a row; write it anew with `{step_graphs_command(bundle, method)}`, or leave step at 'auto'"
        )
    variant = " warped" * wanted.warped + " guided" * wanted.guided + " corrected" * _is_corrected(wanted)
    asked = f"{method}{variant}{' for trees' * wanted.trees}"
    kinds = ", ".join(map(str, bundle.manifest.step_graphs)) or "none"
    return (
        f"step is 'graph', but the bundle {bundle.manifest.name} has no step graph for {asked}, it has {kinds}; make one with "
        f"`{step_graphs_command(bundle, method)}`, or leave step at 'auto'"
    )


def step_graph_record(wanted: Wanted) -> StepGraph:
    """What the manifest says of the step graph that is wanted, which must be there."""
    path = _path(wanted)
    return next(graph for graph in wanted.bundle.manifest.step_graphs if path is not None and graph.file == path.name)


def _name(wanted: Wanted) -> str:
    return "" if wanted.method is None else wanted.method.name


def _is_corrected(wanted: Wanted) -> bool:
    """Whether a corrector is wanted, and the method has a use for it."""
    return wanted.corrections is not None and wanted.method is not None and wanted.method.recycles


def _path(wanted: Wanted) -> Path | None:
    return wanted.bundle.step_graph(
        _name(wanted),
        warped=wanted.warped,
        guided=wanted.guided,
        corrected=_is_corrected(wanted),
        tree=wanted.trees,
    )


def step_graph_facts(session: Any, name: str = "the graph") -> StepGraphFacts:
    """Read a step graph's metadata and check that its inputs and outputs are those that they call for.

    Raises
    ------
    BundleError
        It is no step graph, a newer one, or has other inputs or outputs than it should.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get("format") != _FORMAT:
        raise BundleError(
            f"{name} has format {metadata.get('format')!r}, expected {_FORMAT!r}; write one with "
            "coupled_sampling.export.graphs.step"
        )
    try:
        version = int(metadata["format_version"])
        method = find_method(metadata["method"])
        facts = StepGraphFacts(
            method,
            int(metadata["vocab_size"]),
            int(metadata["max_length"]),
            {"True": True, "False": False}[metadata["warped"]],
            {"True": True, "False": False}[metadata["guided"]],
            {"True": True, "False": False}[metadata.get("corrected", "False")],
            {"True": True, "False": False}[metadata.get("tree", "False")],
        )
    except (KeyError, ValueError) as error:
        raise BundleError(f"{name} has metadata {dict(metadata)}: {error}; export it again") from error
    if version > _NEWEST:
        raise BundleError(
            f"{name} is a step graph of format version {version}, this library runs up to {_NEWEST}; upgrade coupled-sampling"
        )
    scales = next((value for value in session.get_inputs() if value.name == "guidance"), None)
    facts = facts._replace(slot_scales=scales is not None and len(scales.shape) == 2)
    _check_values(session, facts, name)
    return facts


def check_against_bundle(session: Any, facts: StepGraphFacts, bundle: Bundle, record: StepGraph, name: str) -> None:
    """Refuse a step graph that is not what its bundle's manifest promises.

    Raises
    ------
    BundleError
        The message names what differs, with both values.
    """
    manifest = bundle.manifest
    graph = tree_window_graph(manifest) if record.tree else manifest.window_graph
    for what, found, expected in (
        ("method", facts.method.name, record.method),
        ("warped", facts.warped, record.warped),
        ("guided", facts.guided, record.guided),
        ("scales", "slot" if facts.slot_scales else "row", record.scales),
        ("corrected", facts.corrected, record.corrected),
        ("tree", facts.tree, record.tree),
        ("vocab_size", facts.vocab_size, manifest.vocab_size),
        ("max_length", facts.max_length, graph.max_length),
    ):
        if found != expected:
            raise BundleError(
                f"{name} has {what} {found!r}, the manifest promises {expected!r}; export the bundle again"
            )
    cache = (CACHE_TYPES.get(graph.dtype), [graph.kv_heads, graph.cache_length, graph.head_size])
    parts = sorted(f"{_PAST}{layer}.{part}" for layer in range(graph.layers) for part in ("key", "value"))
    pasts = [value for value in session.get_inputs() if value.name.startswith(_PAST)]
    found_caches = {value.name: (value.type, list(value.shape[1:])) for value in pasts}
    if found_caches != dict.fromkeys(parts, cache):
        kinds = sorted({f"{kind} {sizes}" for kind, sizes in found_caches.values()})
        raise BundleError(
            f"{name} has {len(found_caches)} caches of {', '.join(kinds)}, the manifest promises {len(parts)} of "
            f"{cache[0]} {cache[1]}; export the bundle again"
        )


def _expected(facts: StepGraphFacts) -> tuple[dict[str, _Kind], dict[str, _Kind]]:
    """Inputs and outputs of the format, besides caches and ``kv_length``."""
    law: _Kind = ("float", (None, None, facts.vocab_size))
    rows: _Kind = ("int64", (None,))
    inputs: dict[str, _Kind] = dict.fromkeys(("start", "known", "recycled", "fresh"), rows)
    inputs |= {"input_ids": ("int64", (None, None)), "draws": ("bool", (None,)), "temperature": ("float", (None,))}
    outputs: dict[str, _Kind] = {"tokens": ("int64", (None, None)), "committed": rows}
    outputs["highest_logits"] = ("float", (None, None))
    if facts.method.acceptance == "rejection":
        inputs |= {"uniforms": ("double", (None, None, 3)), "draft_laws": law, "draft_laws_start": rows}
        outputs |= {"laws": law}
    if facts.method.acceptance == "none":
        inputs |= {"noise": ("float", (None, 1, facts.vocab_size))}
    elif facts.method.acceptance == "match" or facts.method.redraft == "gumbel":
        inputs |= {"noise": law, "noise_start": rows, "past_noise": law}
        outputs |= {"present_noise": law}
    if facts.warped:
        inputs |= {
            "top_k": rows,
            "candidates": ("int64", (1,)),
            "top_p": ("double", (None,)),
            "min_p": ("float", (None,)),
        }
        outputs |= {"nucleus_short": ("bool", (None, None))}
    if facts.tree:
        best: tuple[int | None, ...] = (None, None, None)
        inputs |= {"parents": ("int64", (None, None)), "branches": rows, "best_count": ("int64", (1,))}
        outputs |= {"best_tokens": ("int64", best), "best_scores": ("float", best)}
    if facts.guided:
        inputs |= {"guidance": ("double", (None, None) if facts.slot_scales else (None,)), "guidance_lag": rows}
    if facts.corrected:
        inputs |= {
            f"{CORRECTION}lags": rows,
            f"{CORRECTION}unigram": ("float", (facts.vocab_size,)),
            f"{CORRECTION}basis": ("float", (None, facts.vocab_size)),
            f"{CORRECTION}neighbours": ("float", (None, facts.vocab_size + 1, None)),
            f"{CORRECTION}stale_scale": ("float", (None,)),
            f"{CORRECTION}unigram_scale": ("float", (None,)),
        }
    return inputs, outputs


def _check_values(session: Any, facts: StepGraphFacts, name: str) -> None:
    """Compare names, types and static sizes of inputs and outputs with those of the format."""
    inputs, outputs = _expected(facts)
    for values, expected, prefix in (
        (session.get_inputs(), inputs, _PAST),
        (session.get_outputs(), outputs, _PRESENT),
    ):
        found = {
            value.name: (value.type[7:-1], tuple(size if isinstance(size, int) else None for size in value.shape))
            for value in values
            if not (value.name.startswith(prefix) and value.name != "present_noise") and value.name != "kv_length"
        }
        for key in sorted(set(found) | set(expected)):
            if found.get(key) != expected.get(key):
                raise BundleError(
                    f"{name}: {key!r} is {found.get(key, 'missing')}, a step graph of {facts.method.name} has "
                    f"{expected.get(key, 'none of that name')}; export it again"
                )
    caches, written = (
        {value.name[len(prefix) :]: (value.type, value.shape[1:]) for value in values if value.name.startswith(prefix)}
        for values, prefix in ((session.get_inputs(), _PAST), (session.get_outputs(), _PRESENT))
    )
    static = all(isinstance(size, int) for _, shape in caches.values() for size in shape)
    if caches != written or not static or not {kind for kind, _ in caches.values()} <= set(TYPES):
        raise BundleError(
            f"{name}: caches in are {caches}, out {written}; expected the same, of static sizes and one of the types "
            f"{', '.join(TYPES)}"
        )
