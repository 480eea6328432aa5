"""Plugins of ONNX Runtime: execution providers in packages of their own, beside the one package ``onnxruntime``.

| provider | package | runs on | what it was run on |
|---|---|---|---|
| ``webgpu`` | ``onnxruntime-ep-webgpu`` | GPUs, through Vulkan, Direct3D or Metal | a GPU in software |
| ``openvino`` | ``onnxruntime-ep-openvino`` | Intel's CPUs, GPUs and NPUs | a CPU |
| ``nv-tensorrt-rtx`` | ``onnxruntime-ep-nv-tensorrt-rtx-cu13`` | NVIDIA's RTX cards | nothing |

A package holds a library that ONNX Runtime loads once in a process. It then names the devices that the library can use, of which
one is picked by its number.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.ort.session import require_onnxruntime
from coupled_sampling.backends.versions import check_version
from coupled_sampling.errors import InvalidArgument, MissingDependency, ProviderError

__all__ = ["PLUGINS", "Plugin", "find_device", "find_plugin", "hardware"]

_OLDEST = (1, 32)
"""Of ONNX Runtime: what it says of devices, placement and device memory was read and tried in this version."""

_VIRTUAL = "is_virtual"


@dataclass(frozen=True)
class Plugin:
    """A plugin that can be asked for.

    Parameters
    ----------
    name
        What `coupled_sampling.backends.Place` calls it.
    extra
        The extra that installs it.
    package, module
        Its package, and the module in it that knows where the library is.
    keeps
        Operators that it has itself, of those that `coupled_sampling.bundles.portable_graphs` replaces.
    options
        Options of its sessions that are always set.
    memory
        What ONNX Runtime calls its memory where tensors can be kept there; "" keeps them on the host.
    steps
        Whether it takes step graphs whole.
    needs
        What else a machine must have, for messages.
    """

    name: str
    extra: str
    package: str
    module: str
    keeps: Collection[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""
    steps: bool = True
    needs: str = ""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'coupled-sampling[{self.extra}]'"

    def session_options(self, threads: int | None) -> dict[str, str]:
        """Options of a session with ``threads`` threads."""
        if self.name != "openvino":
            return dict(self.options)
        # Without these it may compute in bfloat16: logits of one position then depend on how tokens were cut into windows.
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        cpu = properties if threads is None else {**properties, "INFERENCE_NUM_THREADS": threads}
        return {"load_config": json.dumps({"CPU": cpu, "GPU": properties, "NPU": {}})}


PLUGINS = {
    plugin.name: plugin
    for plugin in (
        Plugin(
            "webgpu",
            "webgpu",
            "onnxruntime-ep-webgpu",
            "onnxruntime_ep_webgpu",
            keeps=("RotaryEmbedding",),
            # Else everything that computes with tokens and positions is placed on the CPU.
            options={"enableInt64": "1"},
            memory="webgpu",
            needs="a GPU, on Linux with a Vulkan driver and the loader libvulkan.so.1",
        ),
        Plugin(
            "openvino",
            "openvino-plugin",
            "onnxruntime-ep-openvino",
            "onnxruntime_ep_openvino",
            needs="a CPU, GPU or NPU of Intel's; on other CPUs use backend 'openvino', which is OpenVINO's own package",
        ),
        Plugin(
            "nv-tensorrt-rtx",
            "nv-tensorrt-rtx",
            "onnxruntime-ep-nv-tensorrt-rtx-cu13",
            "onnxruntime_ep_nv_tensorrt_rtx",
            steps=False,
            needs="an RTX card of NVIDIA's with its driver (`nvidia-smi` must work)",
        ),
    )
}
"""Plugins by name."""

_LOCK = threading.Lock()


def find_plugin(name: str | None) -> Plugin:
    """The plugin called ``name``.

    Raises
    ------
    InvalidArgument
        There is none.
    """
    if name not in PLUGINS:
        raise InvalidArgument(f"provider is {name!r}, expected one of {', '.join(PLUGINS)}")
    return PLUGINS[name]


def find_device(plugin: Plugin, number: int) -> tuple[Any, Any]:
    """The module ``onnxruntime``, with the plugin's library loaded, and the plugin's device ``number``, from 0.

    Raises
    ------
    InvalidArgument
        There are fewer devices.
    MissingDependency
        ``onnxruntime`` or the plugin's package is missing or too old.
    ProviderError
        The library cannot be loaded, or finds no device.
    """
    onnxruntime = require_onnxruntime(plugin.install)
    upgrade = f"{plugin.install} --upgrade"
    check_version("onnxruntime", str(onnxruntime.__version__), _OLDEST, "were not tried with plugins", upgrade)
    try:
        module = importlib.import_module(plugin.module)
    except ImportError as error:
        raise MissingDependency(
            f"provider {plugin.name!r} needs the package {plugin.package}, which could not be imported "
            f"({in_one_line(error)}): {plugin.install}"
        ) from error
    devices = _devices(onnxruntime, plugin, module)
    if not devices:
        seen = "; ".join(hardware(onnxruntime))
        raise ProviderError(
            f"provider {plugin.name!r} finds no device it can use; ONNX Runtime sees {seen}. It needs {plugin.needs}"
        )
    if number >= len(devices):
        listed = "; ".join(f"{i}: {_described(device)}" for i, device in enumerate(devices))
        raise InvalidArgument(f"device is {number}, but provider {plugin.name!r} has these devices: {listed}")
    return onnxruntime, devices[number]


def hardware(onnxruntime: Any) -> list[str]:
    """The devices that ONNX Runtime sees, in words, each once."""
    return list(dict.fromkeys(_described(device) for device in onnxruntime.get_ep_devices()))


def _devices(onnxruntime: Any, plugin: Plugin, module: Any) -> Sequence[Any]:
    """The plugin's devices that can run something, its library loaded if it was not."""
    # One name of several: others stand for a choice among devices.
    provider = module.get_ep_name()
    with _LOCK:  # two threads that open models must not both load it
        found = _usable(onnxruntime, provider)
        if not found:
            try:
                onnxruntime.register_execution_provider_library(
                    f"coupled-sampling.{plugin.name}", module.get_library_path()
                )
            except Exception as error:
                # Its exceptions share no base class but Exception.
                if "already registered" not in str(error):
                    raise ProviderError(
                        f"onnxruntime {onnxruntime.__version__} cannot load the library of {plugin.package}: "
                        f"{in_one_line(error)}. It needs {plugin.needs}"
                    ) from error
            found = _usable(onnxruntime, provider)
    return found


def _usable(onnxruntime: Any, provider: str) -> list[Any]:
    """The devices of an execution provider, without virtual ones, for which graphs can only be compiled."""
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    return [device for device in devices if _VIRTUAL not in device.device.metadata]


def _described(device: Any) -> str:
    kind, vendor = device.device.type.name, device.device.vendor or f"vendor {device.device.vendor_id:#06x}"
    return f"{kind} ({vendor}, {device.device.device_id:#06x})"
