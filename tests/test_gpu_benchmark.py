"""The benchmark of GPUs: that it ends in one line where there is none, and its arithmetic on stand-ins. Nothing ran on a GPU."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation.emulation import PLAIN, EmulationLauncher
from fake_kernels import EmulatedCuda

from coupled_sampling.backends.cuda import kernels
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.errors import CoupledSamplingError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def benchmark_():
    found = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_without_a_gpu_it_ends_in_one_line():
    try:
        Device()
    except CoupledSamplingError:
        pass
    else:
        pytest.skip("there is a GPU")
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("this benchmark needs an NVIDIA GPU: ")
    assert result.stderr.count("\n") == 1


def test_it_measures_and_prints_on_stand_ins(benchmark_, monkeypatch, capsys):
    """The fake clock counts events, so that the kernels of a step take one tick of a millisecond."""
    pytest.importorskip("cuda.bindings")
    cuda = EmulatedCuda(memory=2**33)
    real = benchmark_.bandwidth
    monkeypatch.setattr(benchmark_, "bandwidth", lambda stream: real(stream, 1000, 3))
    monkeypatch.setattr(kernels, "compile_kernels", lambda capability, threads: b"")
    with EmulationLauncher(PLAIN) as emulator:
        cuda.emulator = emulator
        monkeypatch.setattr(benchmark_, "CHUNK", 25)  # so that two blocks seem worth a try
        settings = argparse.Namespace(steps=3, width=4, vocab_size=50, model=False)
        result = benchmark_.measure(settings, Device(bindings=cuda))
    assert result["bandwidth"] == 2 * 1000 / 1e-3
    assert len(result["decisions"]) == 20
    for i, (blocks, chosen) in enumerate([(1, True), (1, False), (2, False), (1, True)] * 5):
        row = result["decisions"][i]
        assert (row["blocks_per_slot"], row["chosen"]) == (blocks, chosen)
    for row in result["decisions"]:
        assert row["kernels_ms"] == 1
        laws = row["method"] in ("sjd", "scd-maximal", "scd-gumbel")
        slots = 1 if row["method"] == "ar" else 4
        assert row["floor_ms"] == pytest.approx(1e3 * 4 * slots * 50 * (1 + laws) / result["bandwidth"])
        assert row["kernels_over_floor"] == pytest.approx(1 / row["floor_ms"])
        assert row["step_ms"] > 0
    result |= {"parameters": 10**9, "backend": "tensorrt"}
    rates = (("ar", 50.0, 1.0), ("scd-gumbel", 100.0, 2.0))
    for method, rate, per_step in rates:
        row = {
            "method": method,
            "decided_by": "kernels",
            "window": 4,
            "tokens_per_second": rate,
            "tokens_per_step": per_step,
        }
        result["decoding"].append(row)
    benchmark_.print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Fake GPU (8.0), driver for CUDA 13000; ")
    assert lines[-1].split() == ["scd-gumbel", "kernels", "4", "100.0", "2.00", "2.00"]


def test_decoding_counts_tokens_and_steps(benchmark_, monkeypatch):
    from cuda_emulation.comparison import NormalWorld
    from cuda_emulation.emulation import DeviceProvider

    with EmulationLauncher(PLAIN) as emulator:
        provider = DeviceProvider(NormalWorld(50), emulator)
        found = benchmark_.decoding(provider, emulator, "ar", 1, 12)
        coupled = benchmark_.decoding(provider, emulator, "scd-gumbel", 4, 12)
        provider.close()
    assert found["tokens_per_step"] == 1
    assert 1 <= coupled["tokens_per_step"] <= 4
    assert found["tokens_per_second"] > 0


def test_decoding_by_step_graph_counts_tokens_and_steps(benchmark_, monkeypatch):
    pytest.importorskip("onnxruntime")
    from fake_onnxruntime import FakeRuntime

    from coupled_sampling.backends import ort_gpu_session

    fake = FakeRuntime()
    monkeypatch.setattr(ort_gpu_session, "require_onnxruntime", lambda install: fake)
    found = benchmark_.decoding_by_step_graph("fashion", "ar", 1, 12)
    coupled = benchmark_.decoding_by_step_graph("fashion", "scd-gumbel", 4, 12)
    assert (found["decided_by"], found["method"], found["tokens_per_step"]) == ("step graph", "ar", 1)
    assert 1 < coupled["tokens_per_step"] <= 4
    assert coupled["tokens_per_second"] > 0
    ar, other = (session.runs for session in fake.sessions)  # of two sequences
    assert ar == 24
    assert 12 / coupled["tokens_per_step"] < other < 24


def test_decoding_by_a_step_engine_counts_tokens_and_steps(benchmark_, monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings")
    pytest.importorskip("onnxruntime")
    from trt_bundles import Machine, write_bundle

    machine = Machine()
    monkeypatch.setattr("coupled_sampling.backends.trt.runner.find_flavour", lambda name: machine.flavour)
    monkeypatch.setattr(kernels, "compile_kernels", lambda capability, threads: b"")
    with EmulationLauncher(PLAIN) as emulator:
        machine.cuda.emulator = emulator
        bundle = write_bundle(tmp_path / "toy")
        found = benchmark_.decoding_by_step_engine(bundle, 4, 20, Device(bindings=machine.cuda))
    assert (found["decided_by"], found["method"], found["window"]) == ("step engine", "scd-match", 4)
    assert 1 < found["tokens_per_step"] <= 4
    assert machine.cuda.live() == []
