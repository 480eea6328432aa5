"""A computer with a GPU and every package that uses one, all of them stand-ins: what `open_model` and the command line meet there.

The stand-ins keep the rules of what they stand for and compute on the CPU; kernels are emulated.
"""

import contextlib
import sys
from types import SimpleNamespace

from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.ort import cuda_session
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_kernels import EmulatedCuda
from standins.fake_onnxruntime import FakeRuntime
from standins.fake_tensorrt import FakeTensorRT

RAN = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "tensorrt 11.4.0",
    "tensorrt-rtx": "tensorrt-rtx 1.7.1",
}
"""What says that it runs a model, by back end."""
CAPTURING = ("tensorrt", "tensorrt-rtx")
"""Back ends that launch CUDA graphs unless they are told not to."""


class WatchedCuda(EmulatedCuda):
    """Notes which GPUs' contexts were asked for."""

    def __init__(self):
        super().__init__()
        self.retained = []

    def cuDevicePrimaryCtxRetain(self, device):  # noqa: N802 - CUDA's name
        self.retained.append(device)
        return super().cuDevicePrimaryCtxRetain(device)


@contextlib.contextmanager
def gpu_machine(monkeypatch):
    """Such a computer; its parts can be spoilt."""
    cuda = WatchedCuda()
    found = SimpleNamespace(
        cuda=cuda,
        onnxruntime=FakeRuntime(cuda=cuda),
        tensorrt=FakeTensorRT(cuda),
        rtx=FakeTensorRT(cuda, rtx=True, version="1.7.1"),
    )
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: found.onnxruntime)
    monkeypatch.setitem(sys.modules, "tensorrt", found.tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", found.rtx)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0)))
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda *_: b"")
    with EmulationLauncher(PLAIN) as emulator:
        cuda.emulator = emulator
        yield found
