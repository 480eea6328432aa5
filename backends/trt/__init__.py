"""TensorRT: engines built from window graphs, and run as logits providers or as whole steps. See ``docs/tensorrt.md``.

Importing this package loads no runtime; opening a provider or building an engine does.
"""

from coupled_sampling.backends.trt.build import load_or_build
from coupled_sampling.backends.trt.flavour import find_flavour
from coupled_sampling.backends.trt.messages import EngineError
from coupled_sampling.backends.trt.options import BuildOptions
from coupled_sampling.backends.trt.progress import progress_bar
from coupled_sampling.backends.trt.provider import TrtProvider
from coupled_sampling.backends.trt.step import TrtStep
from coupled_sampling.backends.trt.store import EngineStore

__all__ = [
    "BuildOptions",
    "EngineError",
    "EngineStore",
    "TrtProvider",
    "TrtStep",
    "find_flavour",
    "load_or_build",
    "progress_bar",
]
