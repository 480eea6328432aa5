"""OpenVINO on the CPU: a bundle's window graph, with its caches in blocks that attention reads and writes in place."""

from coupled_sampling.backends.openvino.provider import OpenVinoProvider

__all__ = ["OpenVinoProvider"]
