"""A stand-in for ``onnxruntime`` with a GPU, that keeps the rules of bindings of step graphs.

It has device memory at addresses of its own, copies an input from the host when it is bound and not again, counts what crosses, and
computes the graph on the CPU. Once told that it is warm, it refuses new device memory and large arrays that cross.
"""

import ctypes
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnxruntime
from fake_cuda import RuleBroken

from coupled_sampling.backends.ort_step_binding import TYPES

CUDA = "CUDAExecutionProvider"


class FakeRuntime:
    """The module ``onnxruntime`` of a machine with one GPU; ``on_cpu`` are operators that have no CUDA kernel."""

    __version__ = "1.31.1"
    available = (CUDA, "CPUExecutionProvider")

    def __init__(self, *, on_cpu=("Slice", "Concat"), used=CUDA, fails=None):
        self.on_cpu, self.used, self.fails = on_cpu, used, fails
        self.memory, self.next, self.sessions = {}, 0x7F0000000000, []
        self.crossed = Counter()
        self.limit = None
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.on_the_device)
        self.SessionOptions = Options
        self.InferenceSession = self.open

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self):
        """Nothing to load."""

    def on_the_device(self, values, kind, device):
        assert (kind, device) == ("cuda", 0)
        if self.limit is not None:
            raise RuleBroken(f"{values.shape} is allocated on the device although all is warm")
        address, content = self.next, values.copy()
        self.next += -(-content.nbytes // 256) * 256 + 4096
        self.memory[address] = content
        return SimpleNamespace(
            data_ptr=lambda: address, shape=lambda: list(values.shape), numpy=lambda: self.fetched(content)
        )

    def fetched(self, content):
        self.cross("fetched", content.nbytes)
        return content.copy()

    def warm(self, limit):
        """From now on nothing is allocated, and no array but race noise crosses that has more than ``limit`` bytes."""
        self.crossed.clear()
        self.limit = limit

    def cross(self, name, size):
        if self.limit is not None and size > self.limit and name != "noise":
            raise RuleBroken(f"{size} bytes of {name} cross, more than {self.limit}")
        self.crossed[name] += size

    def at(self, address, shape, dtype=np.float32):
        """The memory at ``address``, which must be a whole allocation's beginning and hold ``shape`` of ``dtype``."""
        if address not in self.memory:
            raise RuleBroken(f"{address:#x} is not device memory")
        if self.memory[address].dtype != dtype:
            raise RuleBroken(f"{address:#x} holds {self.memory[address].dtype}, not {dtype}")
        content, size = self.memory[address].reshape(-1), int(np.prod(shape))
        if size > content.size:
            raise RuleBroken(f"{shape} at {address:#x} runs beyond the allocation")
        return content[:size].reshape(shape)

    def open(self, path, options, providers, enable_fallback):
        if self.fails is not None:
            raise RuntimeError(self.fails)
        if options.entries.get("session.disable_cpu_ep_fallback") == "1" and self.on_cpu:
            raise RuntimeError(
                "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been "
                "explicitly disabled by the user."
            )
        session = Session(self, path, options, providers, enable_fallback)
        self.sessions.append(session)
        return session


class Options:
    def __init__(self):
        self.entries, self.intra_op_num_threads, self.enable_mem_pattern = {}, None, True

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class Session:
    def __init__(self, runtime, path, options, providers, enable_fallback):
        self.runtime, self.options, self.providers = runtime, options, providers
        self.enable_fallback, self.runs = enable_fallback, 0
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads, plain.log_severity_level = 1, 3
        plain.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self.real = onnxruntime.InferenceSession(path, plain, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs
        self.get_modelmeta = self.real.get_modelmeta

    def get_providers(self):
        return [self.runtime.used, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        assert self.options.entries["session.record_ep_graph_assignment_info"] == "1"
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        places = {CUDA: [], "CPUExecutionProvider": []}
        for node in nodes:
            places["CPUExecutionProvider" if node.op_type in self.runtime.on_cpu else CUDA].append(node)
        return [SimpleNamespace(ep_name=name, get_nodes=lambda found=found: found) for name, found in places.items()]

    def io_binding(self):
        return Binding(self)

    def run_with_iobinding(self, binding):
        self.runs += 1
        names = [value.name for value in self.get_outputs()]
        missing = {value.name for value in self.get_inputs()} - set(binding.inputs) | set(names) - set(binding.outputs)
        if missing:
            raise RuleBroken(f"{', '.join(sorted(missing))} is not bound")
        for name, output in binding.outputs.items():
            past = name.replace("present.", "past_key_values.").replace("present_noise", "past_noise")
            if past != name and binding.inputs[past].ctypes.data != output.ctypes.data:
                raise RuleBroken(f"{name} is not at the address of {past}")
            over = [other for other, read in binding.inputs.items() if np.may_share_memory(read, output)]
            if over not in ([], [past]):
                raise RuleBroken(f"{name} is written over {', '.join(over)} while these are read")
        for name, value in zip(names, self.real.run(names, binding.inputs), strict=True):
            binding.outputs[name][...] = value
            if name in binding.on_host:
                self.runtime.cross(name, value.nbytes)


class Binding:
    def __init__(self, session):
        self.runtime, self.inputs, self.outputs, self.on_host = session.runtime, {}, {}, set()
        self.types = {value.name: TYPES[value.type] for value in (*session.get_inputs(), *session.get_outputs())}

    def bind_cpu_input(self, name, values):
        if values.dtype != self.types[name] or not values.flags.c_contiguous:
            raise RuleBroken(f"{name} is {values.dtype}, expected contiguous {self.types[name]}")
        self.runtime.cross(name, values.nbytes)
        self.inputs[name] = values.copy()  # as ONNX Runtime does: later changes of the array are not seen

    def bind_input(self, name, kind, device, dtype, shape, address):
        assert (device, dtype) == (0, self.types[name])
        if kind != "cuda":
            raise RuleBroken(f"{name} is bound from the host and would be copied once, at binding")
        self.inputs[name] = self.runtime.at(address, shape, dtype)

    def bind_output(self, name, kind, device, dtype, shape, address):
        assert (device, dtype) == (0, self.types[name])
        self.on_host.discard(name)
        if kind == "cuda":
            self.outputs[name] = self.runtime.at(address, shape, dtype)
        else:
            if address in self.runtime.memory:
                raise RuleBroken(f"{name} is bound as host memory, but lies on the device")
            self.on_host.add(name)
            raw = (ctypes.c_uint8 * (np.dtype(dtype).itemsize * int(np.prod(shape)))).from_address(address)
            self.outputs[name] = np.frombuffer(raw, dtype).reshape(shape)
