"""OpenVINO's Python package: the one place where it is imported, and what every model is compiled with."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from coupled_sampling.backends.versions import check_version
from coupled_sampling.errors import MissingDependency

__all__ = ["DEVICE", "INSTALL", "Runtime", "find_runtime", "settings"]

DEVICE = "CPU"
OLDEST = (2026, 4)
INSTALL = "pip install 'coupled-sampling[openvino]'"


@dataclass(frozen=True)
class Runtime:
    """OpenVINO, imported: the package, its operators, and what reads operators that it does not know from ONNX files."""

    version: str
    package: Any
    operators: Any
    conversion: Any


def find_runtime() -> Runtime:
    """OpenVINO.

    Raises
    ------
    MissingDependency
        It is not installed, or older than 2026.4: its attention over blocks takes other inputs before.
    """
    try:
        package = importlib.import_module("openvino")
        operators = importlib.import_module("openvino.opset13")
        conversion = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    except ImportError as error:
        raise MissingDependency(
            f"this needs the package openvino, which could not be imported ({error}): {INSTALL}"
        ) from error
    version = str(package.__version__)
    check_version("openvino", version, OLDEST, "have another attention", f"{INSTALL} --upgrade")
    return Runtime(version, package, operators, conversion)


def settings(threads: int | None) -> dict[str, Any]:
    """Properties that every model is compiled with."""
    chosen: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads to one call
        # Without these it may compute in bfloat16, and round caches and the activations of quantised matrices to int8: logits of
        # one position then depend on how tokens were cut into windows.
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        # It would tie its threads to cores, the first ones for every model that is opened with as many threads.
        "ENABLE_CPU_PINNING": False,
    }
    return chosen if threads is None else chosen | {"INFERENCE_NUM_THREADS": threads}
