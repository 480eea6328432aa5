"""Opening ONNX Runtime sessions: the one place where ``onnxruntime`` is imported."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.versions import check_version
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError

__all__ = [
    "EXECUTION_PROVIDER",
    "check_threads",
    "missing_kernel",
    "open_session",
    "require_onnxruntime",
    "session_options",
]

EXECUTION_PROVIDER = "CPUExecutionProvider"
OLDEST = (1, 28)
FLAVOURS = ("onnxruntime", "onnxruntime-gpu")
INSTALL = "pip install 'coupled-sampling[cpu]'"
_MISSING = re.compile(
    r"Could not find an implementation for (\w+)\(\d+\) node with name '(.*?)'|"
    r"Provider type for (\w+) node with name '(.*?)' is not set"
)


def require_onnxruntime(install: str = INSTALL) -> Any:
    """The module ``onnxruntime``; ``install`` is the command to name where it is missing or too old.

    Raises
    ------
    MissingDependency
        It is not installed, or older than 1.28: TensorScatter is missing or wrong before. Or two flavours of it are installed: they
        are one module, and which of them it is depends on the order of installation.
    """
    flavours = [name for name in FLAVOURS if _is_installed(name)]
    if len(flavours) > 1:
        raise MissingDependency(
            f"{' and '.join(flavours)} are both installed, and both are the module onnxruntime: uninstall them, then install one, "
            "with [cpu] or with [gpu]"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"running models needs the package onnxruntime, which is not installed: {install}"
        ) from error
    check_version("onnxruntime", str(onnxruntime.__version__), OLDEST, "write caches wrongly", f"{install} --upgrade")
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_threads(threads: int | None) -> None:
    """Raise `InvalidArgument` if ``threads`` is not a number of threads."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 4096):
        raise InvalidArgument(
            f"threads is {threads!r}, expected an integer from 1 to 4096, or None to let ONNX Runtime choose"
        )


def session_options(onnxruntime: Any, threads: int | None) -> Any:
    """``SessionOptions`` that every session here has, on whatever device."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Its warnings would go to standard error as they are, with whatever names a stranger's graph has. Errors are raised anyway.
    options.log_severity_level = 4
    # A pattern would be kept for every shape of window ever seen; it saves no measurable time here.
    options.enable_mem_pattern = False
    # This concerns DequantizeLinear only, the standard form of quantised weights. By default ONNX Runtime fuses it with the product
    # and rounds activations to int8: log-probabilities of one position then differ by up to 0.8 between windows of different
    # widths (SmolLM2-135M), and the law depends on the decoding method. So these weights are widened when they are loaded;
    # MatMulNBits, which the exporter writes by default, says itself that activations stay float32.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def missing_kernel(said: str) -> str | None:
    """The operator and the node that have no kernel, if that is what ONNX Runtime ``said`` when a session could not be made."""
    found = _MISSING.search(in_one_line(said))
    if found is None:
        return None
    operator, node = found.group(1, 2) if found.group(1) else found.group(3, 4)
    return f"{operator} ({node!r})"


def open_session(graph: Path | bytes, threads: int | None = None, *, beside: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` of ``graph`` on the CPU.

    Parameters
    ----------
    graph
        Path of an ONNX file, or its content.
    threads
        Threads within an operator; None lets ONNX Runtime choose, which is one per physical core.
    beside
        The folder with weights that lie in files of their own, where ``graph`` is content.

    Raises
    ------
    BundleError
        ONNX Runtime cannot load the file, or has no kernel on the CPU for one of its nodes.
    InvalidArgument
        ``threads`` is not a number of threads.
    MissingDependency
        ``onnxruntime`` is missing or too old.
    ProviderError
        ONNX Runtime chose another execution provider.
    """
    check_threads(threads)
    onnxruntime = require_onnxruntime()
    options = session_options(onnxruntime, threads)
    source, name = (graph, "a graph") if isinstance(graph, bytes) else (str(graph), str(graph))
    if isinstance(graph, bytes) and beside is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(beside))
    try:
        # Its own fallback prints to standard output what is raised here, and tries the same again.
        session = onnxruntime.InferenceSession(source, options, providers=[EXECUTION_PROVIDER], enable_fallback=0)
    except Exception as error:
        # Its exceptions share no base class but Exception.
        missing = missing_kernel(str(error))
        if missing is not None:
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} has no kernel on the CPU for a node of {name}: {missing}, with the types "
                "that it has there; bfloat16 is for GPUs and has few here: export with --compute float32 or float16, or open the "
                'bundle with Place("cuda")'
            ) from error
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {in_one_line(error)}; export the bundle again"
        ) from error
    used = session.get_providers()
    if used[0] != EXECUTION_PROVIDER:
        raise ProviderError(
            f"ONNX Runtime runs {name} on {used[0]}, expected {EXECUTION_PROVIDER}; install the package onnxruntime "
            "and no other flavour of it"
        )
    return session
