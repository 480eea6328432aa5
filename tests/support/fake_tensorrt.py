# ruff: noqa: N802 - names are those of TensorRT
"""A stand-in for ``tensorrt`` and ``tensorrt_rtx`` that keeps TensorRT's rules and computes.

It parses window graphs with ``onnx``, "builds" engines that hold the graph and what they were built for, and runs them with ONNX
Runtime on the memory of a `FakeCuda`, when the stream gets there. What TensorRT reports, it reports as TensorRT does: False or
None, and a line in the log. What is undefined there raises `RuleBroken`:

- work queued before every shape and address is set, in scratch memory that is too small, or with addresses that are not memory;
- a cache whose past and present are not at one address;
- a capture in the first run after a shape was set, and a captured graph launched after its context was changed;
- a KV cache written beyond its end.

What TensorRT does not promise is done the other way round: ArgMax finds the last of equal entries.
"""

import enum
import json
import zlib
from types import SimpleNamespace

import numpy as np
from fake_cuda import RuleBroken, Work, host_value


class LayerType(enum.Enum):
    OTHER = 0
    ATTENTION_INPUT = 1
    KV_CACHE_UPDATE = 2


class DataType(enum.Enum):
    FLOAT = 1
    HALF = 10
    BF16 = 16
    INT64 = 7
    BOOL = 9


NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_}


class ILayer:
    pass


class IAttentionInputLayer:
    pass


class FakeTensorRT:
    """The module. ``gpu`` is what engines are built for; ``sessions`` counts ONNX Runtime sessions made."""

    ILayer, IAttentionInputLayer, LayerType, DataType = ILayer, IAttentionInputLayer, LayerType, DataType
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    BuilderFlag = enum.Enum("BuilderFlag", ["TF32", "REQUIRE_USER_ALLOCATION"])
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
    DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", ["LAZY", "EAGER"])
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
    LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])

    class ILogger:
        pass

    class IProgressMonitor:
        pass

    def __init__(self, cuda, *, version="11.4.0", fused_float32=False, builds=True, capturable=True, on_step=None):
        self.cuda, self.__version__ = cuda, version
        self.fused_float32, self.builds, self.capturable, self.on_step = fused_float32, builds, capturable, on_step
        self.built = self.deserialized = 0
        self.configs, self.losing_mask = [], False

    @property
    def gpu(self):
        return f"{self.cuda.name} {self.cuda.capability}"

    def Builder(self, logger):
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return Parser(self, network, logger)

    def Runtime(self, logger):
        return Runtime(self, logger)


class Builder:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def create_network(self, flags):
        assert flags == 2, "the network must be strongly typed"
        return SimpleNamespace(layers=[], inputs=[])

    def create_builder_config(self):
        config = Config()
        self.trt.configs.append(config)
        return config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        monitor, trt = config.progress_monitor, self.trt
        monitor.phase_start("Building", None, 4)
        for step in range(4):
            if trt.on_step is not None:
                trt.on_step(step)
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if not trt.builds:
            self.logger.log(1, "Error Code 10: Could not find any implementation for node blocks.0.Gemm.1")
            return None
        for layer in network.layers:
            attention = getattr(layer, "attention", None)
            single = {t.dtype for t in network.inputs if t.name.startswith("past_key")} == {DataType.FLOAT}
            if attention is not None and single and not attention.decomposable and not trt.fused_float32:
                self.logger.log(1, "Attention operation was not supported by a dedicated kernel")
                return None
        for profile in config.profiles:
            for tensor in network.inputs:
                assert tensor.name in profile.shapes or -1 not in tensor.shape, f"no profile for {tensor.name}"
        trt.built += 1
        header = {
            "version": trt.__version__,
            "gpu": trt.gpu,
            "profiles": [profile.shapes for profile in config.profiles],
        }
        packed = zlib.compress(network.model.SerializeToString(), 1)
        return json.dumps(header).encode() + b"\n" + packed


class Config:
    def __init__(self):
        self.flags, self.profiles, self.limits, self.progress_monitor, self.cache = {"TF32"}, [], {}, None, None

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool.name] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content, serialize=lambda: content + b"timings")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return not cache.content.startswith(b"foreign")


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
        self.shapes[name] = [list(low), list(best), list(high)]

    def set_shape_input(self, name, low, best, high):
        self.set_shape(name, low, best, high)


class Parser:
    num_errors = 0

    def __init__(self, trt, network, logger):
        self.trt, self.network, self.logger = trt, network, logger

    def parse_from_file(self, path):
        import onnx

        model = self.network.model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type == "NotAnOperator":
                self.num_errors, self.node = 1, node
                return False
            kinds = {"Attention": LayerType.ATTENTION_INPUT, "TensorScatter": LayerType.KV_CACHE_UPDATE}
            layer = ILayer()
            layer.type = kinds.get(node.op_type, LayerType.OTHER)
            if node.op_type == "Attention":
                mask = SimpleNamespace(dtype=DataType.BOOL, shape=(-1, 1, -1, -1))
                has_mask = len(node.input) > 3 and bool(node.input[3]) and not self.trt.losing_mask
                layer.attention = SimpleNamespace(name=node.name, mask=mask if has_mask else None, decomposable=False)
            self.network.layers.append(layer)
        self.network.inputs += [Tensor(value) for value in model.graph.input]
        self.network.num_layers, self.network.get_layer = len(self.network.layers), self.network.layers.__getitem__
        self.network.num_inputs, self.network.get_input = len(self.network.inputs), self.network.inputs.__getitem__
        return True

    def get_error(self, i):
        node = self.node
        return SimpleNamespace(
            code=lambda: "ErrorCode.UNSUPPORTED_NODE",
            node_name=lambda: node.name,
            node_operator=lambda: node.op_type,
            desc=lambda: "no importer for it",
        )


class Tensor:
    """An input or output, as the graph describes it."""

    def __init__(self, value):
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, DataType(kind.elem_type)
        self.shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
        self.is_shape_tensor = value.name == "kv_length"


class Runtime:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan):
        header, _, packed = plan.partition(b"\n")
        try:
            facts, graph = json.loads(header), zlib.decompress(packed)
        except (ValueError, zlib.error) as error:
            raise RuleBroken("damaged bytes were handed to TensorRT, which runs code that is in them") from error
        if (facts["version"], facts["gpu"]) != (self.trt.__version__, self.trt.gpu):
            raise RuleBroken(f"a foreign engine, of {facts['version']} on {facts['gpu']}, was handed to TensorRT")
        self.trt.deserialized += 1
        return Engine(self.trt, self.logger, facts["profiles"], graph)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, trt, logger, profiles, graph):
        import onnx
        import onnxruntime

        model = onnx.load_from_string(graph)
        for node in model.graph.node:
            if node.op_type == "ArgMax":
                node.attribute.append(onnx.helper.make_attribute("select_last_index", 1))
        self.trt, self.logger, self.profiles = trt, logger, profiles
        self.inputs = [Tensor(value) for value in model.graph.input]
        self.outputs = [Tensor(value) for value in model.graph.output]
        self.by_name = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.num_io_tensors, self.get_tensor_name = len(self.by_name), list(self.by_name).__getitem__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def get_tensor_mode(self, name):
        return (
            FakeTensorRT.TensorIOMode.INPUT if self.by_name[name] in self.inputs else FakeTensorRT.TensorIOMode.OUTPUT
        )

    def get_tensor_dtype(self, name):
        return f"DataType.{self.by_name[name].dtype.name}"

    def get_tensor_shape(self, name):
        return self.by_name[name].shape

    def get_tensor_location(self, name):
        return FakeTensorRT.TensorLocation.HOST if name == "kv_length" else FakeTensorRT.TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name):
        return name.replace("present.", "past_key_values.")

    def create_execution_context(self, how):
        strategy = getattr(how, "strategy", how)
        assert strategy == FakeTensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)

    def create_runtime_config(self):
        config = SimpleNamespace(strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.create_runtime_cache = lambda: SimpleNamespace(
            content=[],
            deserialize=lambda content: self.trt.__dict__.update(kernels=content),
            serialize=lambda: b"kernels",
        )
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda kind: '{"Layers": []}')


class Context:
    def __init__(self, engine):
        self.engine, self.cuda = engine, engine.trt.cuda
        self.shapes, self.addresses, self.scratch = {}, {}, None
        self.profile, self.version, self.settled = 0, 0, -1

    def _changed(self):
        self.version += 1

    def set_device_memory(self, address, size):
        if address % 256:
            raise RuleBroken("scratch memory is not aligned to 256 bytes")
        self.scratch = (address, size)
        self._changed()

    def set_optimization_profile_async(self, index, stream):
        self.cuda.stream(stream, "set_optimization_profile_async")
        if not 0 <= index < len(self.engine.profiles):
            return False
        self.profile, self.shapes = index, {}
        self._changed()
        return True

    def set_input_shape(self, name, shape):
        expected = self.engine.by_name[name].shape
        low, _, high = self.engine.profiles[self.profile].get(name, [expected] * 3)
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            self.engine.logger.log(
                1, f"Supplied shape {tuple(shape)} of {name} is outside profile {self.profile}: {low} to {high}"
            )
            return False
        self.shapes[name] = tuple(shape)
        self._changed()
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        self._changed()
        return True

    def infer_shapes(self):
        free = [t.name for t in self.engine.inputs if -1 in t.shape and t.name not in self.shapes]
        return free + [t.name for t in self.engine.inputs if t.is_shape_tensor and t.name not in self.addresses]

    def is_stream_capturable(self, stream):
        return self.engine.trt.capturable

    def execute_async_v3(self, handle):
        stream = self.cuda.stream(handle, "execute_async_v3")
        missing = [name for name in self.engine.by_name if name not in self.addresses] + self.infer_shapes()
        if missing:
            raise RuleBroken(f"queued before {', '.join(missing)} had an address or a shape")
        if stream.recording is not None and self.settled != self.version:
            raise RuleBroken("captured in the first run after a change of the context; run once, then capture")
        self.settled = self.version
        if self.scratch is None or self.scratch[1] < self.engine.device_memory_size_v2:
            raise RuleBroken("there is no scratch memory, or too little")
        self.cuda.find(*self.scratch, "scratch memory")
        columns = host_value(self.addresses["kv_length"], np.int64) if "kv_length" in self.engine.by_name else None
        if columns is not None:
            self._check_columns(int(columns))
        arrays = {
            tensor.name: self._array(tensor) for tensor in self.engine.by_name.values() if tensor.name != "kv_length"
        }
        for tensor in self.engine.outputs:
            past = self.engine.get_aliased_input_tensor(tensor.name)
            if past != tensor.name and self.addresses[past] != self.addresses[tensor.name]:
                raise RuleBroken(f"{tensor.name} is not at the address of {past}")
        version = self.version

        def run():
            feeds = {t.name: arrays[t.name][1] for t in self.engine.inputs if t.name in arrays}
            window, start = feeds["input_ids"].shape[1], feeds["start"]
            length = feeds["past_key_values.0.key"].shape[2]
            if start.min() < 0 or start.max() + window > length:
                raise RuleBroken("the cache is written beyond its end, which a GPU does not report")
            if columns is not None:
                feeds["kv_length"] = np.array([columns])
            names = [t.name for t in self.engine.outputs]
            for name, value in zip(names, self.engine.session.run(names, feeds), strict=True):
                arrays[name][1][...] = value

        def valid():
            if self.version != version:
                raise RuleBroken("the context of a captured graph was changed")

        blocks = {name: block for name, (block, _) in arrays.items()}
        outputs = {t.name for t in self.engine.outputs}
        scratch, _ = self.cuda.find(*self.scratch, "scratch memory")
        reads = [block for name, block in blocks.items() if name not in outputs]
        self.cuda.queue(stream, Work(run, reads, [blocks[name] for name in outputs] + [scratch], valid))
        return True

    def _check_columns(self, columns):
        low, _, high = self.engine.profiles[self.profile]["kv_length"]
        if not low[0] <= columns <= high[0]:
            raise RuleBroken(f"kv_length is {columns}, outside its profile, {low[0]} to {high[0]}")

    def _array(self, tensor):
        """(block, array) of a tensor's memory."""
        rows, width = self.shapes["input_ids"]
        shape = self.shapes.get(tensor.name)
        if shape is None:
            shape = tuple(size if size != -1 else (rows, width)[axis] for axis, size in enumerate(tensor.shape))
        dtype = np.dtype(NUMPY[tensor.dtype.name])
        size = int(np.prod(shape)) * dtype.itemsize
        block, offset = self.cuda.find(self.addresses[tensor.name], size, f"tensor {tensor.name}")
        if block.pinned:
            raise RuleBroken(f"tensor {tensor.name} lies on the host")
        return block, block.content[offset : offset + size].view(dtype).reshape(shape)
