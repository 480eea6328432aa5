"""What cuda-python makes of our calls: the real package over a stand-in of NVIDIA's driver, which runs the kernels on the CPU.

The other tests of CUDA replace cuda-python. Here it is real, and so are the cubins; only ``libcuda.so.1`` is
not (``standins/libcuda``). It is used in a process of its own, because a process keeps the first libcuda that it finds.
Nothing here has run on a GPU.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coupled_sampling.backends.cuda.compile import CHUNK, PART_THREADS, kernel_sources
from standins import ROOT
from standins.builds import built

pytest.importorskip("cuda.bindings")

HERE = Path(__file__).parent
STANDINS = ROOT / "tests" / "standins"
OPTIONS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"),
    *("-ftrivial-auto-var-init=pattern", "-DTHREADS=1024", f"-DPART_THREADS={PART_THREADS}", f"-DCHUNK={CHUNK}"),
)
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "standins.cubins")


@pytest.fixture(scope="module")
def run():
    """What runs Python with the stand-in as its libcuda."""
    if sys.platform != "linux":
        pytest.skip(f"the stand-in for the driver needs Linux, this is {sys.platform}")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the stand-in for the driver is C++")
    sources = kernel_sources()
    ours = [STANDINS / "libcuda" / "libcuda.cpp", STANDINS / "cuda_emulation" / "shim.h"]

    def compile_in(folder):
        for name, text in sources.items():
            (folder / name).write_text(text, "utf-8")
        includes = (f"-I{place}" for place in (folder, ours[1].parent))
        command = ["g++", *OPTIONS, *includes, str(ours[0]), "-o", str(folder / "libcuda.so.1")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    folder = built((OPTIONS, sources, [file.read_text("utf-8") for file in ours]), compile_in)

    def python(*arguments):
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)

    return python


def expect_passed(result, count):
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert f"{count} passed" in result.stdout.splitlines()[-1], result.stdout[-2000:]
    assert "skipped" not in result.stdout


def test_memory_streams_graphs_and_kernels_work_through_the_real_bindings(run):
    expect_passed(run(*PYTEST, STANDINS / "libcuda" / "cases.py"), 13)


def test_the_kernels_tests_for_gpus_pass_on_it(run):
    """So that their first run on a GPU does not fail for what has nothing to do with GPUs. Large vocabularies: one method."""
    chosen = ("-m", "gpu", "-k", "not large_vocabularies or scd-maximal")
    expect_passed(run(*PYTEST, *chosen, HERE / "test_cuda_kernels.py"), 10)


@pytest.mark.long
def test_the_other_tests_for_gpus_pass_on_it(run):
    expect_passed(run(*PYTEST, "-k", "not onnx_runtime", HERE / "test_gpu.py"), 14)


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("part", "figures"),
    [
        ("machine", 3),
        ("kernels:scd-gumbel", 2),
        *(pytest.param(*more, marks=pytest.mark.long) for more in (("noise", 3), ("tokens:scd-match", 1))),
    ],
)
def test_the_benchmark_runs_on_it(run, part, figures):
    result = run(ROOT / "benchmarks" / "first_light_gpu.py", "--rehearse", "--part", part)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == figures


START = """
import ctypes
import numpy as np
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import Stream
device = Device()
stream, buffer, pinned = Stream(device), device.allocate(64), device.pinned((64,), np.uint8)
"""


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("print(ctypes.string_at(buffer.address, 1))", -11),
        ("PinnedLauncher(stream, threads=512).launch('settle', (1, 1), np.zeros(200, np.uint8))", 86),
        ("device.call('cuStreamCreate', 0)", 86),
        ("device.call('cuMemcpyHtoDAsync', pinned.address, buffer.address, 64, stream.handle)", 1),
        ("device.call('cuMemcpyHtoDAsync', buffer.address, pinned.address, 65, stream.handle)", 1),
        ("device.call('cuMemFree', pinned.address)", 1),
        ("stream.free(); device.call('cuStreamSynchronize', stream.handle)", 86),
        ("", 0),
    ],
    ids=[
        "a host that reads the device",
        "block size",
        "blocking stream",
        "swapped",
        "too long",
        "free",
        "gone",
        "nothing",
    ],
)
def test_what_is_wrong_is_noticed(run, code, ending):
    """Negative controls."""
    result = run("-c", START + code)
    assert result.returncode == ending, result.stderr
    if ending == 1:
        assert "CUDA_ERROR_INVALID_VALUE (1)" in result.stderr
