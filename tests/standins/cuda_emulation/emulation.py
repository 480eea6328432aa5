"""The CUDA kernels on the CPU: their source built as C++ under sanitizers, and a `Launcher` that talks to the program.

The program's heap is the device memory, so a kernel that leaves a buffer ends it, and the test fails with the sanitizer's
report. Broken variants are made by replacing pieces of the source, each of which must be there exactly once.
"""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.backends.cuda.compile import kernel_sources
from coupled_sampling.backends.cuda.pointers import DevicePointer
from standins.builds import built

HERE = Path(__file__).parent
COMMON = ("-std=c++17", "-O2", "-g1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
# With sanitizers -O2 takes twice as long to compile as -O1 and saves nothing of it when it runs.
SANITIZED = (
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-ftrivial-auto-var-init=pattern",
    "-DTHREADS=128",
)
QUICKLY_SANITIZED = (*SANITIZED, "-O0")
PLAIN = ("-ftrivial-auto-var-init=pattern", "-DTHREADS=64", "-DPART_THREADS=64")
AS_SHIPPED = ("-ftrivial-auto-var-init=pattern", "-DTHREADS=1024")
THREADED = ("-DTHREADED", "-DTHREADS=64", "-DPART_THREADS=128", "-fsanitize=thread")


@cache
def build(options=SANITIZED, replacement=None):
    """Path of the emulator, built with ``options`` and a piece of source, or several, replaced; skips without a compiler."""
    compiler = shutil.which("g++")
    if sys.platform != "linux":
        pytest.skip(f"the emulation needs Linux, this is {sys.platform}")
    if compiler is None:
        pytest.skip("g++ is not installed: the CUDA kernels are emulated by compiling them as C++")
    sources = kernel_sources()
    pieces = [] if replacement is None else [replacement] if isinstance(replacement[0], str) else replacement
    for old, new in pieces:
        found = [name for name, text in sources.items() for _ in range(text.count(old))]
        assert len(found) == 1, f"{old!r} is in {found}, expected once"
        sources[found[0]] = sources[found[0]].replace(old, new)
    command = [compiler, *COMMON, *options]

    def compile_in(folder):
        for name, text in sources.items():
            (folder / name).write_text(text, "utf-8")
        places = (f"-I{folder}", f"-I{HERE}", str(HERE / "emulator.cpp"), "-o", str(folder / "emulator"))
        result = subprocess.run([*command, *places, "-lpthread"], capture_output=True, text=True)
        if result.returncode and "cannot find -l" in result.stderr:
            pytest.skip(f"g++ has no sanitizer libraries: {result.stderr.splitlines()[-1]}")
        assert result.returncode == 0, result.stderr

    ours = [(HERE / name).read_text("utf-8") for name in ("emulator.cpp", "shim.h")]
    return built((command, sources, ours), compile_in) / "emulator"


class EmulationLauncher:
    """A `coupled_sampling.backends.cuda.kernels.Launcher` over the emulator."""

    stream = 0
    processors = 132

    def __init__(self, options=SANITIZED, *, replacement=None, order=0, prefix=()):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        command = [*prefix, str(build(options, replacement)), str(order)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "bufsize": 0}
        self._program = subprocess.Popen(command, env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}, **pipes)
        self.launched = []
        self.sent = self.received = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.end()
        else:
            self._program.kill()
            self._program.wait()

    def end(self):
        """End the program, which reports leaks and races as it goes; refuses a bad ending."""
        self._program.stdin.close()
        self._program.wait(60)
        self._program.stdout.close()
        report = self._report() if self._program.returncode else None
        self._errors.close()
        if report is not None:
            raise AssertionError(report)

    def _report(self):
        self._errors.seek(0)
        found = self._errors.read().decode()
        if "unexpected memory mapping" in found:
            pytest.skip(f"ThreadSanitizer does not run on this kernel's memory layout: {found.splitlines()[0]}")
        return f"the emulator ended with {self._program.returncode}:\n{found[:6000]}"

    def _send(self, *parts):
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                while len(view):
                    view = view[self._program.stdin.write(view) :]
        except BrokenPipeError:
            self._program.wait(60)
            raise AssertionError(self._report()) from None

    def _receive(self, size):
        data = bytearray()
        while len(data) < size:
            piece = self._program.stdout.read(size - len(data))
            if not piece:
                self._program.wait(60)
                raise AssertionError(self._report())
            data += piece
        return data

    def allocate(self, size):
        self._send(struct.pack("<QQ", ord("a"), size))
        return struct.unpack("<Q", self._receive(8))[0]

    def release(self, pointer):
        self._send(struct.pack("<QQ", ord("r"), pointer))

    def upload(self, pointer, values):
        self.sent += values.nbytes
        self._send(
            struct.pack("<QQQ", ord("u"), pointer, values.nbytes),
            np.ascontiguousarray(values).reshape(-1).view(np.uint8),
        )

    def download(self, pointer, into):
        self.received += into.nbytes
        self._send(struct.pack("<QQQ", ord("d"), pointer, into.nbytes))
        into.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._receive(into.nbytes), np.uint8)

    def wait(self, stream):
        raise AssertionError("nothing here has a stream")

    def round_trip(self, given, made, launch):
        return RoundTrip(self, given, made, launch)

    def launch(self, kernel, grid, parameters):
        self.launched.append(kernel)
        data = parameters.tobytes()
        head = struct.pack("<Q32sQQQ", ord("l"), kernel.encode(), *grid, len(data))
        self._send(head, data)
        self._receive(8)


class RoundTrip:
    """A `coupled_sampling.backends.cuda.kernels.RoundTrip` call by call."""

    def __init__(self, launcher, given, made, launch):
        self.given, self.made = np.zeros(given.size, np.uint8), np.zeros(made.size, np.uint8)
        self._launcher, self._there, self._back, self._launch = launcher, given.pointer, made.pointer, launch

    def run(self):
        self._launcher.upload(self._there, self.given)
        self._launch()
        self._launcher.download(self._back, self.made)


class DeviceProvider:
    """A provider on numpy as one whose logits lie in the emulator's memory."""

    def __init__(self, provider, launcher, dtype="float32"):
        self.provider, self.launcher, self.dtype = provider, launcher, dtype
        self.vocab_size, self.batch_size = provider.vocab_size, provider.batch_size
        self.max_length = provider.max_length
        self._memory = 0

    def begin(self, row, request):
        if hasattr(self.provider, "begin"):
            self.provider.begin(row, request)

    def forward(self, tokens, start):
        return self.upload(self.provider.forward(tokens, start))

    def upload(self, logits):
        """Where ``logits`` lie in the device's memory until the next ones come."""
        logits = np.ascontiguousarray(logits)
        if self._memory:
            self.launcher.release(self._memory)
        self._memory = self.launcher.allocate(logits.nbytes)
        self.launcher.upload(self._memory, logits)
        return DevicePointer(self._memory, logits.shape, self.dtype)

    def close(self):
        if self._memory:
            self.launcher.release(self._memory)
        self._memory = 0
