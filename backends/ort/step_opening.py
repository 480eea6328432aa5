"""A step graph of a bundle as a step: what the manifest says of it is checked, and tells the step what it needs to know."""

from __future__ import annotations

from typing import Any, cast

from coupled_sampling.backends.ort.binding import HostBinding
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.ort.step_checks import check_against_bundle, step_graph_facts
from coupled_sampling.bundles.manifest import StepGraph
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.corrections import Corrector, LowRank
from coupled_sampling.guided_rows import Scale

__all__ = ["step_of_bundle"]


def step_of_bundle(
    bundle: Bundle,
    record: StepGraph,
    session: Any,
    rows: int,
    guidance: Scale,
    binding: HostBinding | None = None,
    corrections: Corrector | None = None,
) -> OrtStep:
    """A step over a session of the step graph ``record`` of ``bundle``.

    Parameters
    ----------
    bundle, record
        The bundle, and what its manifest says of the graph.
    session, rows, binding
        As for `OrtStep`.
    guidance
        The scale, with the bundle's unconditional prompt, for a guided graph.
    corrections
        The corrector, for a corrected graph.

    Raises
    ------
    BundleError
        The graph is not what the manifest says.
    """
    name, manifest = str(bundle.folder / record.file), bundle.manifest
    check_against_bundle(session, step_graph_facts(session, name), bundle, record, name)
    return OrtStep(
        session,
        rows,
        manifest.window_graph.max_window,
        guidance=guidance if record.guided else None,
        unconditional=manifest.unconditional_prompt if record.guided else None,
        binding=binding,
        prompt_chunk=manifest.prompt_chunk,
        corrections=cast(LowRank, corrections) if record.corrected else None,
    )
