"""A real tritonserver on the loopback, which a test starts and stops: the one in PyPI's nvidia-pytriton, without its Python.

`make test-triton` installs that package without what it depends on, as it wants an older numpy. The server's Python backend runs in
the environment of the tests.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

START = 60
"""Seconds that a server has to load a model, on a machine that does something else as well."""


def installed():
    """The folder of the server's files; skips where there is none."""
    found = importlib.util.find_spec("pytriton")
    if found is None or sys.platform != "linux":
        pytest.skip("needs nvidia-pytriton, which has a tritonserver: make test-triton installs it")
    folder = Path(found.submodule_search_locations[0]) / "tritonserver"
    stub = (
        folder / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    )
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no Python backend for Python {sys.version_info[0]}.{sys.version_info[1]}")
    return folder, stub


class Server:
    """A server that runs, or has ended."""

    def __init__(self, process, ports, log):
        self.process, self._log = process, log
        self.http, self.grpc, self._metrics = (f"127.0.0.1:{port}" for port in ports)

    @property
    def log(self):
        return self._log.read_text(errors="replace")

    def get(self, path, address=None):
        """The text at a path; None while nobody answers, or it is refused."""
        try:
            with urllib.request.urlopen(f"http://{address or self.http}{path}", timeout=5) as response:
                return response.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def metrics(self):
        """Numbers of this library at the server's /metrics, by name; sums over labels."""
        sums = {}
        for line in (self.get("/metrics", self._metrics) or "").splitlines():
            if line.startswith("coupled_sampling_"):
                name, value = line.partition("{")[0], line.rpartition(" ")[2]
                sums[name] = sums.get(name, 0) + float(value)
        return sums

    def wait_for_metrics(self, **wanted):
        """Numbers, once they are as wanted; names without ``coupled_sampling_``."""
        return until(lambda: all(self.metrics().get(f"coupled_sampling_{k}") == v for k, v in wanted.items()), self)

    def stop(self, kind=signal.SIGTERM):
        self.process.send_signal(kind)

    def ended(self, seconds=60):
        """Its exit code."""
        return self.process.wait(seconds)


def until(happened, server, seconds=START):
    """Wait until ``happened()`` is true; the server's log is shown if it never is."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"it did not happen in {seconds} s:\n{server.log[-4000:]}"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def tritonserver(repository, folder, *options, ready=True):
    """A server over a model repository; its files go to ``folder``. It is stopped at the end, and all that it has started."""
    files, stub = installed()
    backend = folder / "backends" / "python"
    if not backend.exists():
        shutil.copytree(files / "backends" / "python", backend)
        shutil.copy(stub, backend)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
    names = ("http", "grpc", "metrics")
    addresses = [
        f"--{name}-{part}"
        for name, port in zip(names, ports, strict=True)
        for part in ("address=127.0.0.1", f"port={port}")
    ]
    log = folder / f"{ports[0]}.log"
    own = files.parent.parent / "nvidia_pytriton.libs"
    libraries = [str(own), sysconfig.get_config_var("LIBDIR"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the stub finds its Python's packages by it
        "LD_LIBRARY_PATH": ":".join(libraries),  # the stub needs the server's, and libpython
    }
    command = [
        files / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backend.parent}",
    ]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *addresses, *options],
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, ports, log)
    try:
        if ready:
            until(lambda: server.get("/v2/health/ready") is not None or process.poll() is not None, server)
            assert process.poll() is None, server.log[-4000:]
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):  # its group: the backend's process, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
