"""The kernels are compiled by NVRTC for real devices, and addresses are read from arrays of any library. Nothing runs on a GPU."""

import ctypes
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from coupled_sampling.backends.cuda import compile as compiling
from coupled_sampling.backends.cuda.compile import SOURCES, CompilationFailed, compile_kernels, kernel_sources
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernels import DECISION, DRAWS, ROW, SHARING, WINDOW_DRAWS
from coupled_sampling.backends.cuda.pointers import DevicePointer, device_pointer, parse_capsule
from coupled_sampling.errors import InvalidArgument, MissingDependency
from standins.cubins import keep
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher


@pytest.fixture
def nvrtc():
    bindings = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        bindings.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"the NVRTC library is not installed (package nvidia-cuda-nvrtc): {error}")
    return bindings


@pytest.fixture(autouse=True)
def _cubins_are_kept(monkeypatch):
    keep(monkeypatch)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("architecture", "threads"),
    [
        (80, 1024),
        (90, 1024),
        pytest.param(120, 1024, marks=pytest.mark.long),
        pytest.param(90, 256, marks=pytest.mark.long),
    ],
)
def test_kernels_become_cubins(nvrtc, architecture, threads):
    for source in SOURCES if threads == 1024 else ["decision.cu"]:
        cubin = compile_kernels(architecture, threads, source)
        assert cubin[:4] == b"\x7fELF"
        assert int.from_bytes(cubin[18:20], "little") == 190  # EM_CUDA
        for name in SOURCES[source]:
            assert b".text." + name.encode() + b"\0" in cubin


def test_a_wrong_source_is_refused_with_nvrtcs_log(nvrtc):
    sources = kernel_sources()
    sources["draws.cuh"] += "\nint wrong(;\n"
    with pytest.raises(CompilationFailed, match=r"draws\.cuh"):
        compiling._compile(nvrtc, sources, ["--gpu-architecture=sm_90", "--std=c++17"])


@pytest.mark.parametrize(
    ("architecture", "threads", "name"), [(70, 1024, "architecture"), (90, 100, "threads"), (90, 2048, "threads")]
)
def test_what_cannot_be_compiled_is_refused(nvrtc, architecture, threads, name):
    with pytest.raises(InvalidArgument, match=f"{name} is"):
        compile_kernels(architecture, threads)


def test_without_a_driver_the_device_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependency, match=r"coupled-sampling\[gpu\]"):
        Device()


def test_without_nvrtc_compiling_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingDependency, match=r"coupled-sampling\[gpu\]"):
        compile_kernels(90, 512)


def test_importing_loads_no_cuda():
    code = (
        "import sys, coupled_sampling.backends.cuda.kernel_step; "
        "print([m for m in sys.modules if m.split('.')[0] in ('cuda', 'cupy', 'torch')])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("table", "struct"), [(ROW, "Row"), (DECISION, "Decision"), (DRAWS, "Draws"), (WINDOW_DRAWS, "WindowDraws")]
)
def test_tables_have_the_fields_of_the_structs(table, struct):
    text = "".join(kernel_sources().values())
    body = re.search(rf"struct {struct} {{(.*?)}};", text, re.DOTALL)[1]
    body = re.sub(r"//.*", "", body)
    fields = [name.split()[-1].strip("*") for part in body.split(";") if part.strip() for name in part.split(",")]
    assert fields == list(table.names)
    assert table.itemsize == 8 * len(fields)


def test_numbers_have_the_values_of_the_source():
    """NVRTC is given them; whoever compiles the source by other means gets these."""
    text = "".join(kernel_sources().values())
    for name, value in (("CHUNK", compiling.CHUNK), ("PART_THREADS", compiling.PART_THREADS), ("THREADS", 1024)):
        assert re.search(rf"#define {name} (\d+)", text)[1] == str(value)


def test_tables_have_the_size_of_the_structs():
    """The emulator refuses parameters of another size."""
    for kernel, dtype in (("noise", DECISION), ("decide", DRAWS), ("window_noise", DRAWS)):
        with pytest.raises(AssertionError, match="parameters are"), EmulationLauncher(PLAIN) as launcher:
            launcher.launch(kernel, (1, 1), np.zeros((), dtype))


class OnDevice:
    """A numpy array that says it lies in CUDA memory."""

    def __init__(self, array):
        self.array = array
        self.streams = []

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dlpack_gives_the_address(dtype):
    whole = np.zeros((3, 4, 5), dtype)
    for array in (whole, whole[1:], whole[:1, :, :]):
        given = OnDevice(array)
        found = device_pointer(given, 1234)
        assert found[:4] == (array.ctypes.data, array.shape, dtype, None)
        assert given.streams == [1234]
        assert sys.getrefcount(found.owner) > 1
    device_pointer(given)
    assert given.streams[-1] == 1  # the legacy default stream, by the name DLPack gives it


def test_bfloat16_and_byte_offsets_are_read_from_a_capsule():
    """numpy has no bfloat16, so the structure is written by hand, as in dlpack.h."""
    memory = np.zeros(64, np.uint8)
    shape = np.array([2, 3], np.int64)
    tensor = np.zeros((), np.dtype("u8, i4, i4, i4, u1, u1, u2, u8, u8, u8"))
    tensor[()] = (memory.ctypes.data, 2, 0, 2, 4, 16, 1, shape.ctypes.data, 0, 16)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    name = ctypes.create_string_buffer(b"dltensor")
    found = parse_capsule(make(tensor.ctypes.data, ctypes.addressof(name), None))
    assert found[:3] == (memory.ctypes.data + 16, (2, 3), "bfloat16")


def interface(**changes):
    fields = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "strides": None, "version": 3} | changes
    return type("Array", (), {"__cuda_array_interface__": fields})()


def test_the_cuda_array_interface_gives_the_address():
    assert device_pointer(interface())[:4] == (4096, (2, 3), "float32", None)
    assert device_pointer(interface(typestr="<f2", stream=7, strides=(6, 2)))[:4] == (4096, (2, 3), "float16", 7)
    given = DevicePointer(1, (2,), "bfloat16")
    assert device_pointer(given) is given


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.float32), "expected CUDA memory"),
        (OnDevice(np.zeros((2, 3))), "type float64"),
        (OnDevice(np.zeros((2, 3), np.int64)), "type type 0"),
        (OnDevice(np.zeros((4, 6), np.float32)[:, ::2]), "make it contiguous"),
        (interface(typestr="<f8"), "type <f8"),
        (interface(strides=(24, 8)), "make it contiguous"),
        ([1.0], "__dlpack__ or __cuda_array_interface__"),
    ],
)
def test_arrays_that_kernels_cannot_read_are_refused(array, message):
    with pytest.raises(InvalidArgument, match=message):
        device_pointer(array)


def resources(cubin):
    """By kernel: registers of a thread, and bytes of shared memory of a block, from the sections of an ELF file."""
    start, (size, count, names) = int.from_bytes(cubin[40:48], "little"), struct.unpack_from("<HHH", cubin, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + i * size) for i in range(count)]

    def text(table, offset):
        begin = rows[table][4] + offset
        return cubin[begin : cubin.index(b"\0", begin)].decode()

    found = {text(names, row[0]): row for row in rows}
    symbols = found[".symtab"]
    labels = [
        text(symbols[6], struct.unpack_from("<I", cubin, symbols[4] + at)[0]) for at in range(0, symbols[5], symbols[9])
    ]
    registers, at = {}, found[".nv.info"][4]
    end = at + found[".nv.info"][5]
    while at < end:
        kind, attribute, length = struct.unpack_from("<BBH", cubin, at)
        if (kind, attribute) == (4, 0x2F):  # EIATTR_REGCOUNT
            symbol, number = struct.unpack_from("<II", cubin, at + 4)
            registers[labels[symbol]] = number
        at += 4 + (length if kind == 4 else 0)
    shared = {name: found[f".nv.shared.{name}"][5] if f".nv.shared.{name}" in found else 0 for name in registers}
    return {name: (number, shared[name]) for name, number in registers.items()}


@pytest.mark.parametrize("architecture", [80, 90, pytest.param(120, marks=pytest.mark.long)])
def test_kernels_fit_a_multiprocessor(nvrtc, architecture):
    """A block that asked for more could not be launched, which only a GPU would say."""
    found = {}
    for source, kernels in SOURCES.items():
        found |= resources(compile_kernels(architecture, 1024, source))
        assert set(kernels) <= set(found)
    assert set(found) == {name for kernels in SOURCES.values() for name in kernels}
    for name, (registers, shared) in found.items():
        threads, blocks = (compiling.PART_THREADS, 4) if name in SHARING else (1024, 1)
        assert 16 <= registers <= 65536 // (threads * blocks), name
        assert shared <= 48 * 1024, f"{name} would have to ask for its shared memory"
