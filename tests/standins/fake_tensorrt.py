# ruff: noqa: N802 - names are those of TensorRT
"""A stand-in for ``tensorrt`` and ``tensorrt_rtx`` that keeps TensorRT's rules and computes.

It parses window graphs with ``onnx``, "builds" engines that hold the graph and what they were built for, and runs them with ONNX
Runtime on the memory of a `FakeCuda`, when the stream gets there. Classes and their public members have TensorRT's names (``Rtx``
stands for the ``I`` of what ``tensorrt_rtx`` alone has); `test_trt_bindings.py` compares them. What TensorRT reports, it reports as
TensorRT's Python does: None or False, in some places a ``RuntimeError`` or a ``TypeError``, and a line in the log. What is
undefined there raises `RuleBroken`:

- work queued before every shape and address is set, in scratch memory that is too small, or with addresses that are not memory;
- a cache whose past and present are not at one address;
- a capture in the first run after a shape was set, and a captured graph launched after its context was changed;
- a KV cache written beyond its end.

What TensorRT does not promise is done the other way round: ArgMax finds the last of equal entries.
"""

import enum
import json
import zlib

import numpy as np

from standins.fake_cuda import RuleBroken, Work, host_value


class LayerType(enum.Enum):
    """``ELEMENTWISE`` is here for all that matter to nobody."""

    ELEMENTWISE = 0
    ATTENTION_INPUT = 1
    KV_CACHE_UPDATE = 2


class DataType(enum.Enum):
    FLOAT = 1
    HALF = 10
    BF16 = 16
    INT64 = 7
    BOOL = 9


class ErrorCode(enum.Enum):
    UNSUPPORTED_NODE = 8


NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_}


class ILayer:
    def __init__(self, kind, attention=None):
        self.type, self._attention = kind, attention


class IAttentionInputLayer:
    @property
    def attention(self):
        return self._attention


class IAttention:
    decomposable = False

    def __init__(self, name, mask):
        self.name, self.mask = name, mask


class IHostMemory:
    def __init__(self, content):
        self._content = content

    @property
    def nbytes(self):
        return len(self._content)

    def __bytes__(self):
        return self._content


class INetworkDefinition:
    def __init__(self):
        self._layers, self._inputs, self._model = [], [], None

    @property
    def num_layers(self):
        return len(self._layers)

    @property
    def num_inputs(self):
        return len(self._inputs)

    def get_layer(self, index):
        return self._layers[index]

    def get_input(self, index):
        return self._inputs[index]


class FakeTensorRT:
    """The module. ``gpu`` is what engines are built for; ``sessions`` counts ONNX Runtime sessions made."""

    ILayer, IAttentionInputLayer = ILayer, IAttentionInputLayer
    LayerType, DataType, ErrorCode = LayerType, DataType, ErrorCode
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
    LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])

    class ILogger:
        pass

    class IProgressMonitor:
        pass

    def __init__(
        self,
        cuda,
        *,
        rtx=False,
        version="11.4.0",
        fused_float32=False,
        starts=True,
        builds=True,
        capturable=True,
        on_step=None,
    ):
        self.cuda, self.__version__, self.rtx = cuda, version, rtx
        self.strongly_typed = 1 if version.startswith("10.") and not rtx else 0
        flags = {"STRONGLY_TYPED": self.strongly_typed}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
        self.BuilderFlag = enum.Enum("BuilderFlag", ["TF32"] + ["REQUIRE_USER_ALLOCATION"] * rtx)
        if rtx:
            name = "DynamicShapesKernelSpecializationStrategy"
            self.DynamicShapesKernelSpecializationStrategy = enum.Enum(name, ["LAZY", "EAGER"])
            self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        self.fused_float32, self.builds, self.capturable, self.on_step = fused_float32, builds, capturable, on_step
        self.starts, self.built, self.deserialized = starts, 0, 0
        self.configs, self.losing_mask = [], False

    @property
    def gpu(self):
        return f"{self.cuda.name} {self.cuda.capability}"

    def _start(self, logger):
        if not self.starts:
            logger.log(0, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def Builder(self, logger):
        self._start(logger)
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return OnnxParser(self, network, logger)

    def Runtime(self, logger):
        self._start(logger)
        return Runtime(self, logger)


class Builder:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def create_network(self, flags):
        assert flags == 1 << self.trt.strongly_typed, "the network must be strongly typed"
        return INetworkDefinition()

    def create_builder_config(self):
        config = IBuilderConfig()
        self.trt.configs.append(config)
        return config

    def create_optimization_profile(self):
        return IOptimizationProfile()

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
        for layer in network._layers:
            attention = layer._attention
            single = {t.dtype for t in network._inputs if t.name.startswith("past_key")} == {DataType.FLOAT}
            if attention is not None and single and not attention.decomposable and not trt.fused_float32:
                self.logger.log(1, "Attention operation was not supported by a dedicated kernel")
                return None
        for profile in config.profiles:
            for tensor in network._inputs:
                assert tensor.name in profile.shapes or -1 not in tensor.shape, f"no profile for {tensor.name}"
        trt.built += 1
        header = {
            "version": trt.__version__,
            "gpu": trt.gpu,
            "profiles": [profile.shapes for profile in config.profiles],
        }
        packed = zlib.compress(network._model.SerializeToString(), 1)
        return IHostMemory(json.dumps(header).encode() + b"\n" + packed)


class IBuilderConfig:
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
        return ITimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return not cache.content.startswith(b"foreign")


class ITimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return IHostMemory(self.content + b"timings")


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self.shapes[name] = [list(low), list(best), list(high)]

    def set_shape_input(self, name, low, best, high):
        self.set_shape(name, low, best, high)


class OnnxParser:
    num_errors = 0

    def __init__(self, trt, network, logger):
        self.trt, self.network, self.logger = trt, network, logger

    def parse_from_file(self, path):
        import onnx

        model = self.network._model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type == "NotAnOperator":
                self.num_errors, self.node = 1, node
                return False
            kinds = {"Attention": LayerType.ATTENTION_INPUT, "TensorScatter": LayerType.KV_CACHE_UPDATE}
            attention = None
            if node.op_type == "Attention":
                mask = ITensor(None, DataType.BOOL, (-1, 1, -1, -1))
                has_mask = len(node.input) > 3 and bool(node.input[3]) and not self.trt.losing_mask
                attention = IAttention(node.name, mask if has_mask else None)
            self.network._layers.append(ILayer(kinds.get(node.op_type, LayerType.ELEMENTWISE), attention))
        self.network._inputs += [ITensor._of(value) for value in model.graph.input]
        return True

    def get_error(self, index):
        return ParserError(self.node)


class ParserError:
    def __init__(self, node):
        self._node = node

    def code(self):
        return ErrorCode.UNSUPPORTED_NODE

    def node_name(self):
        return self._node.name

    def node_operator(self):
        return self._node.op_type

    def desc(self):
        return "no importer for it"


class ITensor:
    """A tensor of a network or an engine."""

    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, dtype, shape

    @classmethod
    def _of(cls, value):
        """An input or output, as the graph describes it."""
        kind = value.type.tensor_type
        shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
        return cls(value.name, DataType(kind.elem_type), shape)

    @property
    def is_shape_tensor(self):
        return self.name == "kv_length"


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
        return ICudaEngine(self.trt, self.logger, facts["profiles"], graph)


class ICudaEngine:
    device_memory_size_v2 = 1000

    def __init__(self, trt, logger, profiles, graph):
        import onnx
        import onnxruntime

        model = onnx.load_from_string(graph)
        for node in model.graph.node:
            if node.op_type == "ArgMax":
                node.attribute.append(onnx.helper.make_attribute("select_last_index", 1))
        self.trt, self.logger, self.profiles = trt, logger, profiles
        self.inputs = [ITensor._of(value) for value in model.graph.input]
        self.outputs = [ITensor._of(value) for value in model.graph.output]
        self.by_name = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self):
        return len(self.by_name)

    def get_tensor_name(self, index):
        return list(self.by_name)[index]

    def get_tensor_mode(self, name):
        return (
            FakeTensorRT.TensorIOMode.INPUT if self.by_name[name] in self.inputs else FakeTensorRT.TensorIOMode.OUTPUT
        )

    def get_tensor_dtype(self, name):
        return self.by_name[name].dtype

    def get_tensor_shape(self, name):
        return self.by_name[name].shape

    def get_tensor_location(self, name):
        return FakeTensorRT.TensorLocation.HOST if name == "kv_length" else FakeTensorRT.TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name):
        return name.replace("present.", "past_key_values.") if name.startswith("present.") else None

    def create_execution_context(self, how):
        strategy = getattr(how, "strategy", how)
        assert strategy == FakeTensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        return (RtxExecutionContext if self.trt.rtx else IExecutionContext)(self)

    def create_runtime_config(self):
        return RtxRuntimeConfig(self.trt)

    def create_engine_inspector(self):
        return EngineInspector()


class EngineInspector:
    def get_engine_information(self, format):  # noqa: A002
        return '{"Layers": []}'


class RtxRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = cuda_graph_strategy = None

    def __init__(self, trt):
        self.trt, self.strategy, self.cache = trt, None, None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RtxRuntimeCache(self.trt)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RtxRuntimeCache:
    def __init__(self, trt):
        self.trt = trt

    def deserialize(self, content):
        self.trt.kernels = content
        return True

    def serialize(self):
        return IHostMemory(b"kernels")


class IExecutionContext:
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
            raise RuntimeError("Error in set optimization profile async.")
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

    def get_tensor_address(self, name):
        return self.addresses.get(name, 0)

    def infer_shapes(self):
        free = [t.name for t in self.engine.inputs if -1 in t.shape and t.name not in self.shapes]
        return free + [t.name for t in self.engine.inputs if t.is_shape_tensor and t.name not in self.addresses]

    def execute_async_v3(self, handle):
        stream = self.cuda.stream(handle, "execute_async_v3")
        missing = [name for name in self.engine.by_name if name not in self.addresses] + self.infer_shapes()
        if missing:
            raise RuleBroken(f"queued before {', '.join(missing)} had an address or a shape")
        if stream.recording is not None and not self.engine.trt.capturable:
            self.engine.logger.log(1, "Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
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
            if past is not None and self.addresses[past] != self.addresses[tensor.name]:
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


class RtxExecutionContext(IExecutionContext):
    """What ``tensorrt`` does not tell, ``tensorrt_rtx`` does."""

    def is_stream_capturable(self, stream):
        return self.engine.trt.capturable
