"""The back end ``cuda``: ONNX Runtime's CUDA execution provider. Written, never run on a GPU.

What its parts are for is in `coupled_sampling.backends.place`; how tensors are bound, and what capturing demands, in
`coupled_sampling.backends.ort.device_binding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coupled_sampling.backends.cuda.correction_tables import refused_by_kernels
from coupled_sampling.backends.ort.causal_choice import ROWS, choose_window, skips_empty_columns
from coupled_sampling.backends.ort.cuda_session import CUDA, CudaSession, cuda_version, open_cuda_session
from coupled_sampling.backends.ort.device_binding import DeviceBinding, GraphBinding
from coupled_sampling.backends.ort.provider import OrtProvider, check_dtype, graph_path
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.ort.step_checks import missing_step_graph, step_graph_record
from coupled_sampling.backends.ort.step_opening import step_of_bundle
from coupled_sampling.backends.place import Wanted
from coupled_sampling.backends.window_tensors import tree_window_graph
from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.contracts import OpenProvider, OpenStep
from coupled_sampling.errors import InvalidArgument

__all__ = ["KERNELS", "SETTINGS", "STEPS", "TREES", "CudaOptions", "open", "open_provider", "open_step", "takes"]

SETTINGS = frozenset({"device", "threads", "cuda_graphs"})
STEPS = ("kernels", "host", "graph")
KERNELS = ("kernels",)
TREES = ("host",)


@dataclass(frozen=True)
class CudaOptions:
    """What `open_model` leaves as it is.

    Parameters
    ----------
    cpu_nodes
        Which nodes may run on the CPU: "none", "shapes" for arithmetic on shapes only, or "any", which copies tensors back
        and forth. ``binding.on_cpu`` of what was opened says which do.
    column_buckets
        With CUDA graphs: values of ``kv_length``; a call attends to the smallest that holds its windows, or to the whole cache.
        More of them read less of a long cache and cost a graph each. They need the graph with masks, which is used then.
    """

    cpu_nodes: str = "shapes"
    column_buckets: Sequence[int] = ()


_DEFAULT = CudaOptions()


def takes(wanted: Wanted) -> str | None:
    """A step graph must be in the bundle, and is neither corrected nor captured; kernels correct laws by a `LowRank` only."""
    if wanted.step != "graph":
        return refused_by_kernels(wanted.corrections) if wanted.step == "kernels" else None
    if wanted.place.cuda_graphs:
        return "cuda_graphs is True, but step is 'graph', and step graphs of bundles are not captured; leave one of them out"
    if wanted.corrections is not None:
        return (
            "corrections is given, but step is 'graph', and corrected step graphs run with backend 'cpu' only; set step to "
            "'host', or leave corrections out"
        )
    return missing_step_graph(wanted)


def open(wanted: Wanted) -> OpenProvider | OpenStep:  # noqa: A001 - it is called as cuda.open
    """A provider, or the step of the bundle's step graph."""
    return open_step(wanted) if wanted.step == "graph" else open_provider(wanted)


def open_provider(wanted: Wanted, options: CudaOptions = _DEFAULT) -> OrtProvider:
    """A provider on a GPU, whose logits stay there where ``wanted.step`` is "kernels".

    It runs the bundle's graph without masks where there is one that this runtime computes rightly
    (`coupled_sampling.backends.ort.causal_choice`), and no column buckets are asked for.

    With CUDA graphs, a window's second call of a shape is captured and later ones launch that; the provider must then be called
    from one thread.

    Raises
    ------
    BundleError
        The graph cannot be loaded, or is not what its manifest promises.
    InvalidArgument
        An option is none of the values it can have.
    MissingDependency, ProviderError
        As for `coupled_sampling.backends.ort.cuda_session.open_cuda_session`.
    """
    bundle, place = wanted.bundle, wanted.place
    captures = bool(place.cuda_graphs)
    graph = tree_window_graph(bundle.manifest) if wanted.trees else bundle.manifest.window_graph
    buckets = _fitted(options.column_buckets, graph, captures)
    check_dtype(bundle, CUDA)
    on_device = wanted.step == "kernels"

    def open_graph(causal: bool) -> CudaSession:
        path = graph_path(bundle, trees=wanted.trees, causal=causal)
        nodes, threads = options.cpu_nodes, place.threads
        return open_cuda_session(path, place.device or 0, threads, cpu_nodes=nodes, cuda_graphs=captures)

    def over(opened: CudaSession, causal: bool, rows: int = ROWS, on_device: bool = False) -> OrtProvider:
        binding = (GraphBinding if captures else DeviceBinding)(opened, on_device=on_device)
        return OrtProvider(bundle, opened.session, rows, binding, buckets, trees=wanted.trees, causal=causal)

    if wanted.trees or options.column_buckets or not skips_empty_columns(bundle.manifest):
        return over(open_graph(False), False, wanted.model_rows, on_device)
    # A graph that cannot be captured, or whose nodes are refused, may run all the same in another way.
    runtime = (cuda_version(), CUDA, str(place.device or 0), options.cpu_nodes, str(captures))
    chosen = choose_window(bundle, runtime, open_graph, over)
    provider = over(chosen.opened, chosen.causal, wanted.model_rows, on_device)
    provider.runs = replace(provider.runs, window_graph=chosen.said)
    return provider


def open_step(wanted: Wanted, options: CudaOptions = _DEFAULT) -> OrtStep:
    """A step of the bundle's step graph on a GPU.

    Raises
    ------
    BundleError
        The graph cannot be loaded, or is not what the manifest promises.
    InvalidArgument, MissingDependency, ProviderError
        As for `coupled_sampling.backends.ort.cuda_session.open_cuda_session`.
    """
    bundle, place, record = wanted.bundle, wanted.place, step_graph_record(wanted)
    opened = open_cuda_session(
        bundle.folder / record.file, place.device or 0, place.threads, cpu_nodes=options.cpu_nodes
    )
    return step_of_bundle(bundle, record, opened.session, wanted.rows, wanted.guidance, DeviceBinding(opened))


def _fitted(buckets: Sequence[int], graph: WindowGraph, captures: bool) -> tuple[int, ...]:
    """Column buckets in order, up to the length of the caches; none where each call has as many columns as it needs."""
    wrong = any(isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= graph.cache_length for b in buckets)
    if wrong:
        raise InvalidArgument(
            f"column_buckets is {tuple(buckets)}, expected integers from 1 to {graph.cache_length}, the columns of the caches"
        )
    if buckets and not (captures and graph.has_kv_length):
        need = "cuda_graphs" if graph.has_kv_length else "a graph with an input kv_length"
        raise InvalidArgument(f"column_buckets is {tuple(buckets)}, but they need {need}; expected ()")
    return tuple(sorted({*buckets, graph.cache_length})) if captures else ()
