"""How tests open a bundle that an exporter is to check."""

from coupled_sampling.backends import OrtProvider


def on_cpu(bundle, *, rows):
    """A provider in ONNX Runtime, on one thread."""
    return OrtProvider.open(bundle, rows, threads=1)
