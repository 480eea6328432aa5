"""Building engines: from a bundle's window graph, or its step graph for TensorRT, to bytes.

What can be known beforehand is checked then.

TensorRT says why it failed in its log; that text, the node, and the option to try are in the error. Ctrl-C stops a build at its
next step. Nothing is written until the engine is complete, so a killed build leaves nothing.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.backends.trt.messages import message_log
from coupled_sampling.backends.trt.network import Network, parse_network, set_profiles
from coupled_sampling.backends.trt.options import BuildOptions
from coupled_sampling.backends.trt.precision import convert_graph, load_graph, save_converted
from coupled_sampling.backends.trt.progress import Progress, interruptible, progress_monitor
from coupled_sampling.backends.trt.store import EngineStore, Fingerprint
from coupled_sampling.backends.window_tensors import cache_shape
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import ProviderError

__all__ = ["build_engine", "check_memory", "least_memory", "load_or_build"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def load_or_build(
    bundle: Bundle,
    flavour: Flavour,
    device: Device | None,
    options: BuildOptions,
    store: EngineStore,
    progress: Progress | None = None,
) -> tuple[bytes, Fingerprint, str]:
    """The engine of ``bundle`` from ``store``, or a new one, stored.

    Parameters
    ----------
    bundle, flavour, store
        What, with which TensorRT, and where it is kept; ``store.graph`` says which of its graphs.
    device
        The GPU; None, without one, for `tensorrt-rtx` only.
    options
        Already fitted to the graph.
    progress
        Told how far a build is.

    Returns
    -------
    tuple
        The engine, its fingerprint, and why it was built; "" if it was there.

    Raises
    ------
    EngineError
        TensorRT failed.
    OutputError
        The engine could not be stored; refused before the build if that can be known.
    ProviderError
        The GPU has too little memory.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends.trt import BuildOptions, EngineStore, find_flavour, load_or_build
    >>> bundle = open_bundle("fashion")
    >>> options = BuildOptions(window_buckets=(1, 8)).fitted(bundle.manifest.window_graph)

    Not run here, since it needs TensorRT for RTX and some minutes:

    >>> store, flavour = EngineStore(bundle, "engines"), find_flavour("tensorrt-rtx")  # doctest: +SKIP
    >>> engine, fingerprint, reason = load_or_build(bundle, flavour, None, options, store)  # doctest: +SKIP
    >>> reason.startswith("there is no engine")  # doctest: +SKIP
    True
    """
    fingerprint = Fingerprint.of(bundle, flavour, flavour.gpu(device), options, store.graph)
    engine, reason = store.load(fingerprint)
    if engine is not None:
        return engine, fingerprint, ""
    store.check_writable()
    if device is not None:
        check_memory(bundle, options, device, is_step=store.graph != bundle.manifest.window_graph.file)
    timing = None if flavour.is_portable else store.cache(fingerprint, "timing-cache")
    known = b"" if timing is None else store.read_cache(timing)
    engine, new_timing = build_engine(bundle.folder / store.graph, flavour, options, progress, known)
    store.save(fingerprint, engine)
    if timing is not None and new_timing:
        store.write_cache(timing, new_timing)
    return engine, fingerprint, reason


def least_memory(bundle: Bundle, options: BuildOptions, *, is_step: bool = False) -> dict[str, int]:
    """Bytes that running needs on the GPU at the least, by purpose; what lies between layers comes on top.

    A step has its logits there, and noise of the same size beside the layers.
    """
    graph, size = bundle.manifest.window_graph, _BYTES[options.precision]
    weights = sum(path.stat().st_size for path in _weight_files(bundle))
    stored = _BYTES.get(graph.dtype, 4)
    rows, width = options.batch_size, options.max_window
    return {
        "weights": weights * size // stored if size < stored else weights,
        "caches": 2 * graph.layers * math.prod(cache_shape(graph, rows)) * size,
        "noise" if is_step else "logits": rows * width * bundle.manifest.vocab_size * 4,
    }


def _weight_files(bundle: Bundle) -> list[Path]:
    """The window graph and the files that are no graphs, which may be its weights."""
    manifest = bundle.manifest
    names = {name for name in manifest.files if not name.endswith(".onnx") and name != manifest.tokenizer}
    return [bundle.folder / name for name in sorted(names | {manifest.window_graph.file})]


def check_memory(bundle: Bundle, options: BuildOptions, device: Device, *, is_step: bool = False) -> None:
    """Refuse what cannot fit into the free memory of ``device``.

    Raises
    ------
    ProviderError
        It cannot; says how much is needed and how much is there.
    """
    needed = least_memory(bundle, options, is_step=is_step)
    free, total = device.memory()
    if sum(needed.values()) > free:
        parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in needed.items())
        raise ProviderError(
            f"{device.name} has {free / 2**20:.1f} MiB free of {total / 2**20:.1f} MiB, but at least "
            f"{sum(needed.values()) / 2**20:.1f} MiB are needed ({parts}); close other programs on the GPU, or use "
            "fewer rows, narrower windows or precision='float16'"
        )


def build_engine(
    graph: Path,
    flavour: Flavour,
    options: BuildOptions,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> tuple[bytes, bytes]:
    """Build an engine from the window graph or step graph in ``graph``.

    Parameters
    ----------
    graph
        An ONNX file.
    flavour
        Which TensorRT.
    options
        Already fitted to the graph.
    progress
        Told how far it is.
    timing_cache
        Of an earlier build on the same GPU; b"" is none.

    Returns
    -------
    tuple of bytes
        The engine, and the timing cache after it (b"" for `tensorrt-rtx`, which has none).

    Raises
    ------
    BundleError
        ``graph`` is no ONNX file.
    EngineError
        TensorRT failed.
    InvalidArgument
        The graph cannot be had in the precision asked, or uses float64.
    KeyboardInterrupt
        Ctrl-C came; nothing was written.
    """
    log = message_log(flavour)
    model = load_graph(graph)
    before = [value.type.tensor_type.elem_type for value in model.graph.input]
    convert_graph(model, options.precision)
    written = before != [value.type.tensor_type.elem_type for value in model.graph.input]
    with tempfile.TemporaryDirectory(prefix="coupled-sampling-") as folder, interruptible() as is_cancelled:
        path = save_converted(model, Path(folder)) if written else graph
        del model
        network = parse_network(flavour, path, options, log)
        config = _configured(flavour, network, options)
        report: Progress = progress or (lambda done, phase: None)
        config.progress_monitor = progress_monitor(flavour.module, report, is_cancelled)
        cache = None if flavour.is_portable else _timing_cache(config, timing_cache)
        engine = network.builder.build_serialized_network(network.definition, config)
        if engine is None and not is_cancelled():
            raise log.error(f"building {graph.name} with {flavour.name} {flavour.version}")
        if engine is None:
            return b"", b""  # on the way out: interruptible raises KeyboardInterrupt
        timings = None if cache is None else cache.serialize()
        return bytes(engine), b"" if timings is None else bytes(timings)


def _configured(flavour: Flavour, network: Network, options: BuildOptions) -> Any:
    trt = flavour.module
    config = network.log.made("making a builder's configuration", network.builder.create_builder_config)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if flavour.is_portable:
        # Memory comes from us, or the engine cannot be captured into a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    set_profiles(network, config, options)
    return config


def _timing_cache(config: Any, content: bytes) -> Any:
    """Give ``config`` a timing cache, an empty one if it refuses ``content``; returns it."""
    for bytes_ in (content, b""):
        cache = config.create_timing_cache(bytes_)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
