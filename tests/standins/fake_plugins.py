"""A stand-in for ``onnxruntime`` with a plugin, which keeps the rules of its devices and memory, and computes on the CPU.

- an input from the host is copied when it is bound and not again;
- device memory is known by handles, which are no addresses: a binding to any other number raises `RuleBroken`;
- a session goes to the plugin only if a device was added to its options, and then says where its nodes are.
"""

import ctypes
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnxruntime

from coupled_sampling.backends.ort.binding import TYPES
from standins.fake_cuda import RuleBroken

PROVIDER, CPU = "PluginExecutionProvider", "CPUExecutionProvider"


def hardware(kind, vendor, number=0, **metadata):
    """A device as ONNX Runtime describes it."""
    return SimpleNamespace(
        type=SimpleNamespace(name=kind), vendor=vendor, vendor_id=7, device_id=number, metadata=metadata
    )


PROCESSOR, CARD = hardware("CPU", "Maker"), hardware("GPU", "Maker", 3)


class FakePlugins:
    """The module ``onnxruntime``.

    Parameters
    ----------
    devices
        What the plugin can use once its library is loaded.
    on_cpu
        Operators that the plugin has no kernel for.
    fails, loads
        What opening a session, or loading the library, says, if it fails.
    """

    __version__ = "1.32.0"

    def __init__(self, devices=(CARD,), *, on_cpu=("Shape", "Slice"), fails=None, loads=None):
        self.devices, self.on_cpu, self.fails, self.loads = devices, on_cpu, fails, loads
        self.registered, self.opened, self.memory = [], [], {}
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._kept)

    def register_execution_provider_library(self, name, path):
        if self.loads:
            raise RuntimeError(self.loads)
        self.registered.append((name, path))

    def get_ep_devices(self):
        found = [SimpleNamespace(ep_name=CPU, device=PROCESSOR)]
        if self.registered:
            found += [SimpleNamespace(ep_name=PROVIDER, device=device) for device in self.devices]
            found += [SimpleNamespace(ep_name=f"{PROVIDER}.AUTO", device=device) for device in self.devices]
        return found

    def SessionOptions(self):  # noqa: N802 - ONNX Runtime's name
        return Options()

    def InferenceSession(self, graph, options, enable_fallback):  # noqa: N802
        assert enable_fallback == 0
        if self.fails:
            raise RuntimeError(self.fails)
        self.opened.append(options)
        return Session(self, graph, options)

    def _kept(self, values, memory, number):
        handle = len(self.memory) + 1
        self.memory[handle] = values.copy()
        return SimpleNamespace(data_ptr=lambda: handle, numpy=lambda: self.memory[handle].copy())


class Options:
    """Session options: what was added to them."""

    def __init__(self):
        self.real, self.entries, self.added = onnxruntime.SessionOptions(), {}, []

    def add_session_config_entry(self, name, value):
        self.entries[name] = value
        self.real.add_session_config_entry(name, value)

    def add_provider_for_devices(self, devices, options):
        self.added.append((devices, options))


class Session:
    """A session on the plugin, as far as operators have kernels there."""

    def __init__(self, runtime, graph, options):
        self.runtime = runtime
        options.real.log_severity_level = 4
        self.real = onnxruntime.InferenceSession(graph, options.real, providers=[CPU])

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_providers(self):
        return [PROVIDER, CPU]

    def get_provider_graph_assignment_info(self):
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        parts = {PROVIDER: [], CPU: []}
        for node in nodes:
            parts[CPU if node.op_type in self.runtime.on_cpu else PROVIDER].append(node)
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda found=found: found) for name, found in parts.items() if found
        ]

    def io_binding(self):
        return Binding(self)

    def run_with_iobinding(self, binding):
        feeds = {name: read() for name, read in binding.inputs.items()}
        outputs = [value.name for value in self.real.get_outputs()]
        for name, values in zip(outputs, self.real.run(outputs, feeds), strict=True):
            binding.outputs[name](values)


class Binding:
    """What is bound for a run."""

    def __init__(self, session):
        self.session, self.inputs, self.outputs = session, {}, {}
        self.types = {value.name: TYPES[value.type] for value in session.get_inputs()}
        self.counts = Counter()

    def bind_cpu_input(self, name, values):
        assert values.dtype == self.types[name]
        copied = values.copy()
        self.inputs[name] = lambda: copied
        self.counts[name] += 1

    def bind_input(self, name, place, number, dtype, shape, address):
        if place == "cpu":
            self.bind_cpu_input(name, on_host(dtype, shape, address))
        else:
            self.inputs[name] = lambda: self._there(dtype, shape, address).copy()

    def bind_output(self, name, place, number, dtype, shape, address):
        def write(values):
            target = on_host(dtype, shape, address) if place == "cpu" else self._there(dtype, shape, address)
            target[...] = values

        self.outputs[name] = write

    def _there(self, dtype, shape, handle):
        memory = self.session.runtime.memory.get(handle)
        if memory is None or memory.dtype != dtype or memory.size < np.prod(shape):
            raise RuleBroken(f"{handle} is no memory of {shape} of {dtype}")
        return memory.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def on_host(dtype, shape, address):
    """The array at an address of the host."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(
        (ctypes.c_char * max(size, 1)).from_address(address), np.dtype(dtype), int(np.prod(shape))
    ).reshape(shape)


def plugin_module(**changed):
    """The module in a plugin's package."""
    parts = {"get_ep_name": lambda: PROVIDER, "get_library_path": lambda: "/there/plugin.so"}
    return SimpleNamespace(**parts | changed)
