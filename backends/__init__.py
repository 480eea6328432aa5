"""Backends: exported models as logits providers. Importing this package loads no runtime; opening a model does."""

from coupled_sampling.backends.foreign.provider import ConcatenatedProvider
from coupled_sampling.backends.opening import BACKENDS, open_graph_step, open_kernel_step, open_provider
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.trt import TrtProvider, TrtStep

__all__ = [
    "BACKENDS",
    "ConcatenatedProvider",
    "OrtProvider",
    "OrtStep",
    "PixelDecoder",
    "TrtProvider",
    "TrtStep",
    "open_graph_step",
    "open_kernel_step",
    "open_provider",
]
