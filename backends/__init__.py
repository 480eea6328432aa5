"""Backends: `open_model` opens an exported model wherever it is to run. Importing this package loads no runtime; opening does."""

from coupled_sampling.backends.foreign.bundle import open_onnx
from coupled_sampling.backends.foreign.encoder import Encoder
from coupled_sampling.backends.foreign.encoder_decoder import EncoderDecoderProvider
from coupled_sampling.backends.foreign.provider import ConcatenatedProvider
from coupled_sampling.backends.opening import BACKENDS, ModelSettings, OpeningSettings, Place, check_model, open_model
from coupled_sampling.backends.ort.network_correction import NetworkCorrection
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.backends.ort.step import OrtStep

__all__ = [
    "BACKENDS",
    "ConcatenatedProvider",
    "Encoder",
    "EncoderDecoderProvider",
    "ModelSettings",
    "NetworkCorrection",
    "OpeningSettings",
    "OrtProvider",
    "OrtStep",
    "PixelDecoder",
    "Place",
    "check_model",
    "open_model",
    "open_onnx",
]
