"""A stand-in for the package ``onnxruntime-gpu`` that keeps the rules of bindings and of captured graphs, and computes on the CPU.

It has device memory at addresses of its own, copies an input from the host when it is bound and not again, and computes the graph
with the real ``onnxruntime``, or, where it has bfloat16, with ``onnx``'s reference implementation. What ONNX Runtime would do wrong
in silence raises `RuleBroken`:

- an input or output that is not bound, a binding beyond its memory or of another type, a cache or noise ring whose past and present
  are not at one address, an output over an input that is read;
- once it is told that it is warm: new device memory, and large arrays that cross between host and device;
- in a session that captures: an input of the device's bound from the host, an output bound to the host, or a run whose
  ``gpu_graph_id`` was captured with other shapes, addresses or host values. A replay reads what it captured, whatever is bound.
"""

import ctypes
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnxruntime

from coupled_sampling.backends.ort.binding import TYPES
from standins.fake_cuda import RuleBroken
from standins.reference_sessions import ReferenceSession, uses_bfloat16

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BFLOAT16 = 16
ON_THE_HOST = ("kv_length",)
"""Inputs that CUDA's kernels read on the host."""
SHAPES = ("Shape", "Slice", "Concat")


class FakeRuntime:
    """The module ``onnxruntime`` of a machine with ``devices`` GPUs.

    Parameters
    ----------
    on_cpu
        Operators that have no CUDA kernel.
    used
        The execution provider that sessions come to; None is the first that was asked for.
    fails
        What opening a session says, if it fails.
    cuda
        A `FakeCuda` whose memory it uses, so that kernels find the logits there.
    devices
        How many GPUs there are.
    """

    __version__ = "1.31.1"

    def __init__(
        self,
        *,
        on_cpu=("Slice", "Concat"),
        used=None,
        fails=None,
        cuda=None,
        devices=1,
    ):
        self.cuda, self.devices = cuda, devices
        self.on_cpu, self.used, self.fails = on_cpu, used, fails
        self.available = [CUDA, CPU]
        self.memory, self.next, self.sessions, self.preloaded = {}, 0x7F0000000000, [], 0
        self.crossed, self.limit = Counter(), None
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.on_the_device)
        self.SessionOptions, self.RunOptions = Options, RunOptions
        self.InferenceSession = self.open

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self):
        self.preloaded += 1

    def on_the_device(self, values, kind, device):
        assert kind == "cuda"
        assert device < self.devices
        if self.limit is not None:
            raise RuleBroken(f"{values.shape} is allocated on the device although all is warm")
        if self.cuda is None:
            address, self.memory[self.next] = self.next, values.copy()
            self.next += -(-values.nbytes // 256) * 256 + 4096
        else:
            address = self.cuda.take(values.nbytes)
            self.memory[address] = self.cuda.blocks[address].content.view(values.dtype).reshape(values.shape)
            self.memory[address][...] = values
        value = Value(self, address, values.shape, values.dtype)
        weakref.finalize(value, self.give_back, address)
        return value

    def give_back(self, address):
        """Memory goes with the value that owns it; whoever still has its address is caught by `at`."""
        del self.memory[address]
        if self.cuda is not None:
            self.cuda.blocks[address].freed = True

    def warm(self, limit):
        """From now on nothing is allocated, and no array but race noise crosses that has more than ``limit`` bytes."""
        self.crossed.clear()
        self.limit = limit

    def cross(self, name, size):
        if self.limit is not None and size > self.limit and name != "noise":
            raise RuleBroken(f"{size} bytes of {name} cross, more than {self.limit}")
        self.crossed[name] += size

    def at(self, address, shape, dtype):
        """The memory at ``address``, which must lie in an allocation that goes on for ``shape`` of ``dtype``."""
        base = max((begin for begin in self.memory if begin <= address), default=address)
        if base not in self.memory or address >= base + max(1, self.memory[base].nbytes):
            raise RuleBroken(f"{address:#x} is not device memory")
        if self.memory[base].dtype != dtype:
            raise RuleBroken(f"{address:#x} holds {self.memory[base].dtype}, not {dtype}")
        first, rest = divmod(address - base, np.dtype(dtype).itemsize)
        if rest:
            raise RuleBroken(f"{address:#x} is in the middle of an element")
        content, size = self.memory[base].reshape(-1)[first:], int(np.prod(shape))
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
        if int(dict(providers)[CUDA]["device_id"]) >= self.devices:
            raise RuntimeError("CUDA failure 101: invalid device ordinal ; GPU=0")
        session = Session(self, path, options, providers, enable_fallback)
        if session.captures and set(self.on_cpu) - set(SHAPES):
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user  as all compute graph nodes have not "
                "been partitioned to the CUDAExecutionProvider"
            )
        self.sessions.append(session)
        return session


class Value:
    """An ``OrtValue`` in device memory."""

    def __init__(self, runtime, address, shape, dtype):
        self.runtime, self.address, self.shape_, self.dtype = runtime, address, tuple(shape), dtype
        self.is_broken = lambda: False

    def data_ptr(self):
        return self.address

    def shape(self):
        return list(self.shape_)

    def numpy(self):
        if self.is_broken():
            raise RuleBroken("an output's value was asked for before all outputs were bound")
        content = self.runtime.at(self.address, self.shape_, self.dtype)
        self.runtime.cross("fetched", content.nbytes)
        return content.copy()

    def update_inplace(self, values):
        """As ONNX Runtime does, only with as many values as there are."""
        assert values.shape == self.shape_
        self.runtime.at(self.address, self.shape_, self.dtype)[...] = values


class Options:
    def __init__(self):
        self.entries, self.intra_op_num_threads, self.enable_mem_pattern = {}, None, True

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


class Session:
    """A session; ``runs`` counts computations, ``replays`` those of captured graphs."""

    def __init__(self, runtime, path, options, providers, enable_fallback):
        self.runtime, self.options, self.providers = runtime, options, providers
        self.enable_fallback, self.runs, self.replays, self.captured = enable_fallback, 0, 0, {}
        self.settings = dict(providers)
        (self.device,) = {int(settings["device_id"]) for settings in self.settings.values()}
        self.captures = self.settings[CUDA].get("enable_cuda_graph") == "1"
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads, plain.log_severity_level = 1, 3
        plain.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        reference = uses_bfloat16(path)
        self.real = ReferenceSession(path) if reference else onnxruntime.InferenceSession(path, plain, providers=[CPU])
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs
        self.get_modelmeta = self.real.get_modelmeta

    def get_providers(self):
        names, used = [name for name, _ in self.providers], self.runtime.used
        first = 0 if used is None else names.index(used) if used in names else len(names)
        return [*names[first:], CPU]

    def place_of(self, operator):
        return CPU if operator in self.runtime.on_cpu else CUDA

    def get_provider_graph_assignment_info(self):
        assert self.options.entries["session.record_ep_graph_assignment_info"] == "1"
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        places = {CUDA: [], CPU: []}
        for node in nodes:
            places[self.place_of(node.op_type)].append(node)
        return [SimpleNamespace(ep_name=name, get_nodes=lambda found=found: found) for name, found in places.items()]

    def io_binding(self):
        return Binding(self)

    def run_with_iobinding(self, binding, options=None):
        if not self.captures:
            return self.compute(binding)
        self.check_places(binding)
        number = int((options or RunOptions()).entries.get("gpu_graph_id", "0"))
        if number == -1:
            return self.compute(binding)
        if number not in self.captured:
            for _ in range(3):  # twice plainly, then the replay of what was captured
                self.compute(binding)
            self.captured[number] = (binding, binding.signature())
            return None
        captured, signature = self.captured[number]
        if binding.signature() != signature:
            raise RuleBroken(
                f"graph {number} was captured with other shapes, addresses or host values than this run has"
            )
        self.replays += 1
        return self.compute(captured)

    def check_places(self, binding):
        for name in binding.from_host - set(ON_THE_HOST):
            raise RuleBroken(f"{name} is bound from the host, and a replay would not copy it")
        for name in binding.to_host:
            raise RuleBroken(f"{name} is bound to the host, and a replay would not copy it")

    def compute(self, binding):
        self.runs += 1
        names = [value.name for value in self.get_outputs()]
        missing = {value.name for value in self.get_inputs()} - set(binding.inputs) | set(names) - set(binding.outputs)
        if missing:
            raise RuleBroken(f"{', '.join(sorted(missing))} is not bound")
        for name in names:
            output, past = binding.outputs[name], name.replace("present_noise", "past_noise")
            past = past.replace("present.", "past_key_values.")
            if past != name and binding.inputs[past].ctypes.data != output.ctypes.data:
                raise RuleBroken(f"{name} is not at the address of {past}")
            over = [other for other, read in binding.inputs.items() if np.may_share_memory(read, output)]
            if over not in ([], [past]):
                raise RuleBroken(f"{name} is written over {', '.join(over)} while these are read")
        for name, value in zip(names, self.real.run(names, binding.inputs), strict=True):
            binding.outputs[name][...] = value
            if name in binding.to_host:
                self.runtime.cross(name, value.nbytes)


class Binding:
    def __init__(self, session):
        self.runtime, self.device, self.inputs, self.outputs = session.runtime, session.device, {}, {}
        values = (*session.get_inputs(), *session.get_outputs())
        self.types = {value.name: TYPES[value.type] for value in values}
        self.told = {value.name: BFLOAT16 for value in values if value.type == "tensor(bfloat16)"}
        self.from_host, self.to_host, self.values = set(), set(), {}

    def bind_cpu_input(self, name, values):
        if values.dtype != self.types[name] or not values.flags.c_contiguous:
            raise RuleBroken(f"{name} is {values.dtype}, expected contiguous {self.types[name]}")
        self.runtime.cross(name, values.nbytes)
        self.inputs[name] = values.copy()  # as ONNX Runtime does: later changes of the array are not seen
        self.from_host.add(name)

    def held(self, name, told):
        """The type in which memory lies that is said to hold ``told``: bfloat16, which numpy has not, is told by ONNX's number."""
        if told != self.told.get(name, self.types[name]):
            raise RuleBroken(f"{name} is bound as {told}, expected {self.told.get(name, self.types[name])}")
        return self.types[name]

    def bind_input(self, name, kind, device, dtype, shape, address):
        assert device == self.device
        dtype = self.held(name, dtype)
        if kind != "cuda":
            raise RuleBroken(f"{name} is bound from the host and would be copied once, at binding")
        self.inputs[name] = self.runtime.at(address, shape, dtype)
        self.from_host.discard(name)

    def bind_output(self, name, kind, device, dtype, shape, address):
        assert device == (self.device if kind == "cuda" else 0)
        dtype = self.held(name, dtype)
        self.to_host.discard(name)
        if kind == "cuda":
            self.outputs[name] = self.runtime.at(address, shape, dtype)
        else:
            if address in self.runtime.memory:
                raise RuleBroken(f"{name} is bound as host memory, but lies on the device")
            raw = (ctypes.c_uint8 * (np.dtype(dtype).itemsize * int(np.prod(shape)))).from_address(address)
            self.outputs[name] = np.frombuffer(raw, dtype).reshape(shape)
            self.to_host.add(name)
        self.values[name] = (address, shape, dtype)

    def get_outputs(self):
        values, count = [Value(self.runtime, *place) for place in self.values.values()], len(self.values)
        for value in values:  # references into a list that the next one bound may move, as in ONNX Runtime 1.28
            value.is_broken = lambda: len(self.values) > count
        return values

    def signature(self):
        """What a captured graph has taken from this binding."""
        places = {name: (array.ctypes.data, array.shape) for name, array in {**self.inputs, **self.outputs}.items()}
        return places | {name: self.inputs[name].tolist() for name in self.from_host}
