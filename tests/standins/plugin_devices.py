"""A machine with a device for a plugin, where there is none: software in place of a GPU, any x86 CPU in place of Intel's.

Plugins choose among the devices that ONNX Runtime found: WebGPU's wants a GPU, OpenVINO's a CPU of Intel's. Both then run
elsewhere, too: WebGPU's on whatever Vulkan driver there is, such as SwiftShader, which computes on the CPU, and OpenVINO's on
other x86 CPUs.
So while a library is loaded, the record that ONNX Runtime keeps of this CPU says what the plugin asks for.
"""

import contextlib
import ctypes
import importlib.util
import os
from pathlib import Path

from coupled_sampling.backends.ort import plugins

SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
"""Comes with Debian's Chromium."""

GPU, INTEL = 1, 0x8086
PRETENDED = {"webgpu": (0, GPU), "openvino": (1, INTEL)}
"""By plugin which number of the record changes, (type, vendor, device), and what it says meanwhile."""


@contextlib.contextmanager
def pretended(name):
    """A device for the plugin ``name``, as long as its library is being loaded."""
    import onnxruntime

    [ours] = [one.device for one in onnxruntime.get_ep_devices() if one.ep_name == "CPUExecutionProvider"]
    # A Python object of pybind11 holds a pointer to what it stands for, right behind its own head of two words.
    address = ctypes.c_void_p.from_address(id(ours) + 2 * ctypes.sizeof(ctypes.c_void_p)).value
    record = (ctypes.c_uint32 * 3).from_address(address)
    if list(record) != [0, ours.vendor_id, ours.device_id]:
        raise RuntimeError("ONNX Runtime keeps its record of this CPU in another way; pretend in another way")
    field, value = PRETENDED[name]
    kept, record[field] = record[field], value
    try:
        yield
    finally:
        record[field] = kept


def why_not(name):
    """Why the plugin ``name`` cannot run here; None if it can, and then its library is loaded."""
    plugin = plugins.PLUGINS[name]
    if importlib.util.find_spec(plugin.module) is None:
        how = "`make test-plugins` installs it" if name in PRETENDED else plugin.install
        return f"{plugin.package} is not installed ({how})"
    try:
        plugins.find_device(plugin, 0)
    except Exception as error:
        if name not in PRETENDED or "finds no device" not in str(error):
            return str(error)
    else:
        return None
    if name == "webgpu" and "VK_ICD_FILENAMES" not in os.environ:
        if not SWIFTSHADER.exists():
            return f"no GPU, and no Vulkan driver in software: {SWIFTSHADER} comes with Debian's chromium"
        os.environ["VK_ICD_FILENAMES"] = str(SWIFTSHADER)
    import onnxruntime

    # It looks for devices when it is loaded.
    onnxruntime.unregister_execution_provider_library(f"coupled-sampling.{name}")
    with pretended(name):
        try:
            plugins.find_device(plugin, 0)
        except Exception as error:
            return str(error)
    return None
