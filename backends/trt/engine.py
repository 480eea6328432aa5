"""A deserialised engine and its contexts: one context for each shape of window, all in the same scratch memory.

A CUDA graph captured from a context holds that context's state, so a context whose shapes change spoils its graphs. Hence one for
each (rows, slots, columns), set up once and never changed. Only one runs at a time, on one stream, so they share the memory for
what lies between layers: TensorRT would allocate it once for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coupled_sampling.backends.cuda.device import Device, DeviceBuffer, PinnedArray
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.backends.trt.messages import EngineError, message_log
from coupled_sampling.errors import BundleError

__all__ = ["Context", "Engine"]


class Engine:
    """An engine on a GPU.

    Parameters
    ----------
    plan
        Its bytes. They must be known to belong here: TensorRT runs code that is in them.
    flavour, device
        Which TensorRT, on which GPU.
    runtime_cache
        Kernels compiled earlier, for `tensorrt-rtx`; b"" is none.

    Raises
    ------
    EngineError
        TensorRT refuses it.
    """

    def __init__(self, plan: bytes, flavour: Flavour, device: Device, runtime_cache: bytes = b"") -> None:
        self.flavour = flavour
        self.device = device
        self._log = message_log(flavour)
        self._log.clear()
        device.use()
        made, used = self._log.made, f"{flavour.name} {flavour.version}"
        self._runtime = made(f"starting {used}", flavour.module.Runtime, self._log.logger)
        loading = f"loading an engine with {used} on {device.name}"
        self._engine = made(loading, self._runtime.deserialize_cuda_engine, plan)
        self.names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._config, self._cache = self._runtime_config(runtime_cache)
        self.scratch = device.allocate(int(self._engine.device_memory_size_v2))

    def _runtime_config(self, content: bytes) -> tuple[Any, Any]:
        """Of `tensorrt-rtx`: kernels for a shape are compiled when it is first seen, not later in the background, where a captured
        graph would not profit from them."""
        trt = self.flavour.module
        if not self.flavour.is_portable:
            return None, None
        config = self._log.made("making a runtime's configuration", self._engine.create_runtime_config)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the graphs are ours
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        cache = self._log.made("making a runtime cache", config.create_runtime_cache)
        if content:
            cache.deserialize(content)  # refused if it is of another GPU or version, and then just empty
        config.set_runtime_cache(cache)
        return config, cache

    def runtime_cache(self) -> bytes:
        """Kernels compiled so far, to start faster next time; b"" where there is no such thing."""
        kernels = None if self._cache is None else self._cache.serialize()
        return b"" if kernels is None else bytes(kernels)

    def tensors(self) -> dict[str, tuple[bool, str, tuple[int, ...]]]:
        """By name: whether it is an input, its type, and its shape with -1 where that is free."""
        trt, engine = self.flavour.module, self._engine
        return {
            name: (
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1],
                tuple(engine.get_tensor_shape(name)),
            )
            for name in self.names
        }

    def check_tensors(self, expected: Mapping[str, tuple[bool, str, tuple[int, ...]]]) -> None:
        """Refuse an engine whose inputs and outputs are not ``expected``, or whose caches are not written in place.

        Raises
        ------
        BundleError
            The graph is not what the manifest promises.
        EngineError
            A cache's output is not in its input's memory.
        """
        found = self.tensors()
        for name in sorted(set(expected) | set(found)):
            if expected.get(name) != found.get(name):
                raise BundleError(
                    f"engine: input or output {name!r} is {found.get(name, 'missing')}, the manifest promises "
                    f"{expected.get(name, 'none of that name')}; export the bundle again"
                )
        for name in found:
            if name.startswith("present."):
                past = self._engine.get_aliased_input_tensor(name)
                wanted = name.replace("present.", "past_key_values.", 1)
                if past != wanted:
                    raise EngineError(
                        f"engine: {name} lies in {past!r}, expected {wanted!r}; delete the engine, it is built again"
                    )

    def in_host_memory(self, name: str) -> bool:
        """Whether TensorRT reads ``name`` on the host, when work is queued (what decides shapes) and not when it is done."""
        return bool(self._engine.get_tensor_location(name) == self.flavour.module.TensorLocation.HOST)

    def context(self, profile: int, stream: Stream) -> Context:
        """A new context in the shared scratch memory.

        Raises
        ------
        EngineError
            TensorRT cannot make it.
        """
        self._log.clear()
        trt = self.flavour.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy if self._config is None else self._config
        context = self._log.made("making an execution context", self._engine.create_execution_context, how)
        context.set_device_memory(self.scratch.address, self.scratch.size)
        choosing = f"choosing optimisation profile {profile}"
        self._log.done(choosing, context.set_optimization_profile_async, profile, stream.handle)
        return Context(self, context, stream)

    def layers(self) -> str:
        """What TensorRT says of its layers, as JSON; more with ``BuildOptions(detailed=True)``.

        Raises
        ------
        EngineError
            TensorRT cannot say.
        """
        self._log.clear()
        inspector = self._log.made("making an inspector", self._engine.create_engine_inspector)
        return str(inspector.get_engine_information(self.flavour.module.LayerInformationFormat.JSON))

    def free(self) -> None:
        """Give the memory back; contexts must not be used afterwards."""
        self._engine = self._runtime = self._config = self._cache = None
        self.scratch.free()


class Context:
    """An execution context, for one shape of window."""

    def __init__(self, engine: Engine, context: Any, stream: Stream) -> None:
        self._engine = engine
        self._context = context
        self._stream = stream
        self._log = message_log(engine.flavour)

    def bind(self, memories: Mapping[str, DeviceBuffer | PinnedArray], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set every tensor's address and every input's shape, once.

        Raises
        ------
        EngineError
            TensorRT refuses one, or something is missing.
        """
        self._log.clear()
        for name, shape in shapes.items():
            self._log.done(f"setting input {name} to {shape}", self._context.set_input_shape, name, shape)
        for name in self._engine.names:
            setting = f"setting the address of {name}"
            self._log.done(setting, self._context.set_tensor_address, name, memories[name].address)
        missing = self._log.done("inferring shapes", self._context.infer_shapes)
        if missing:
            raise self._log.error("inferring shapes", f"{', '.join(missing)} is not given")

    def enqueue(self) -> None:
        """Queue the engine's work on the stream.

        Raises
        ------
        EngineError
            TensorRT could not.
        """
        self._log.clear()
        self._log.done("execute_async_v3", self._context.execute_async_v3, self._stream.handle)

    def is_capturable(self) -> bool:
        """Whether its work can be captured into a CUDA graph, as far as TensorRT tells: ``tensorrt`` does not."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(self._stream.handle))
