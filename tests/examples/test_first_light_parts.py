"""What the benchmark of GPUs measures, part by part: its arithmetic on stand-ins, and that it would notice what is wrong.

Nothing ran on a GPU.
"""

import argparse
import sys
from importlib import import_module

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.errors import MissingDependency
from standins import ROOT
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_kernels import EmulatedCuda

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module


@pytest.fixture
def parts(module):
    return module("gpu_parts")


@pytest.fixture
def device(monkeypatch):
    """A stand-in with emulated kernels, whose clock counts events."""
    cuda = EmulatedCuda(memory=2**33)
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda *_: b"")
    with EmulationLauncher(PLAIN) as emulator:
        cuda.emulator = emulator
        yield Device(bindings=cuda)


@pytest.fixture
def given(module, device, monkeypatch):
    """The figures of a part, over the stand-in."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", argparse.Namespace(nvrtcVersion=lambda: (0, 13, 0)))
    monkeypatch.setattr(module("gpu_machine"), "Device", lambda index: device)
    door = module("first_light_gpu")

    def figures(part, **changes):
        kind, _, name = part.partition(":")
        arguments = argparse.Namespace(**{**vars(door.parsed(["--rehearse"])), "copied": 1000, "spread": 0, **changes})
        return list(getattr(module(door.MEASURES[kind]), f"of_{kind}")(arguments, name))

    return figures


def test_the_machine_and_its_bandwidth(given):
    (_, before), (_, machine), (_, bandwidth) = given("machine")
    assert (machine["gpu"], machine["compute_capability"], machine["cuda_of_driver"]) == ("Fake GPU", "8.0", 13000)
    assert machine["packages"]["numpy"] == np.__version__
    assert before["packages"] == machine["packages"], "which are told even if there is no GPU"
    assert bandwidth == 2 * 1000 / 1e-3


def test_the_card_and_its_driver_are_what_nvidia_smi_says(module, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.159.03'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = module("gpu_machine").driver_says
    assert told(0) == {"gpu": "NVIDIA H200", "driver_version": "580.159.03"}
    program.write_text("#!/bin/sh\nexit 9\n")
    assert told(0) == {}
    monkeypatch.setenv("PATH", "")
    assert told(0) == {}


def test_noise_is_compared_with_the_library(module, monkeypatch):
    tokens = module("gpu_tokens")
    with EmulationLauncher(PLAIN) as emulator:
        found = tokens.noise_apart(emulator, 50, 2**20, 1000)
        assert (found["words_equal"], found["uniforms_equal"], found["weights"]) == (True, True, 50)
        assert found["most_units_apart"] <= 1
        monkeypatch.setattr(tokens, "uniforms", lambda *place: np.zeros((1, 4)))
        monkeypatch.setattr(tokens, "race_weights", lambda *place: np.ones(50))
        found = tokens.noise_apart(emulator, 50, 2**20, 1000)
    assert not found["uniforms_equal"]
    assert found["weights_apart"] == 50


@pytest.mark.parametrize("method", ["ar", "scd-match", pytest.param("sjd", marks=pytest.mark.long)])
def test_every_decision_is_compared_with_the_library(given, method):
    ((name, found),) = given(f"tokens:{method}", vocab_size=50)
    assert (name, found["method"], found["steps"]) == ("tokens", method, 12)
    assert found["width"] == (1 if method == "ar" else 4)
    assert found["disagreements"] == 0
    assert found["sites"] >= 12


def test_a_wrong_decision_is_noticed(given, module, monkeypatch):
    """Negative control: the kernels get logits of which one is another."""
    world = module("gpu_tokens").NormalWorld
    upload = world.forward

    def wrong(self, tokens, start):
        if self.launcher is not None:
            self.table[:, 7] = 5
        return upload(self, tokens, start)

    monkeypatch.setattr(world, "forward", wrong)
    assert given("tokens:scd-match", vocab_size=50)[0][1]["disagreements"] > 0


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_kernels_and_steps(given, device, method):
    """A step's kernels take one tick of a millisecond, and so does a graph of them for two addresses of logits."""
    slots = 1 if method == "ar" else 4
    rows = [row for _, row in given(f"kernels:{method}", vocab_size=50, spread=2 * 4 * 4 * 50)]
    assert [row["sampling"] for row in rows] == ["plain", "top-k 2000, top-p 0.95"]
    for row in rows:
        assert (row["method"], row["blocks_per_slot"], row["chosen"]) == (method, 1, True)
        assert (row["launched_ms"], row["kernels_ms"]) == (1, 0.5)
        assert row["floor_bytes"] == 4 * slots * 50 * (1 + (method in ("sjd", "scd-maximal", "scd-gumbel")))
        assert row["overhead_ms"] == row["step_ms"] - 0.5
    assert device.bindings.live() == [], "all memory is given back"


def test_other_numbers_of_blocks(given, parts, monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 25)  # so that two blocks seem worth a try
    rows = [row for _, row in given("blocks:scd-match", vocab_size=50)]
    assert [(row["blocks_per_slot"], row["chosen"], row["sampling"]) for row in rows] == [
        (1, False, "plain"),
        (2, False, "plain"),
    ]


@pytest.mark.parametrize("method", ["sjd", "scd-gumbel", "scd-match"])
def test_a_decision_can_be_made_again(parts, device, monkeypatch, method):
    """What times kernels by a graph relies on it: nothing on the device changes when a decision is repeated."""
    found = []
    real = parts.replayed

    def watched(stream, launcher, *arguments):
        blocks = [block for block in device.bindings.live() if not block.pinned]
        before = [block.content.copy() for block in blocks]
        result = real(stream, launcher, *arguments)
        found.append([np.array_equal(a, block.content) for a, block in zip(before, blocks, strict=True)])
        return result

    monkeypatch.setattr(parts, "replayed", watched)
    parts.decisions(Stream(device), method, Sampling(), 6, 4, 50, spread=3 * 800)
    (same,) = found
    assert len(same) > 4
    assert all(same)


def test_a_missing_gpu_is_an_absence(module, monkeypatch):
    cuda, machine = EmulatedCuda(devices=0), module("gpu_machine")
    monkeypatch.setattr(machine, "Device", lambda index: Device(index, bindings=cuda))
    with pytest.raises(MissingDependency, match="there are 0 GPUs"):
        machine.opened(argparse.Namespace(device=0))


def test_decoding_counts_tokens_and_steps(parts):
    from standins.cuda_emulation.comparison import NormalWorld
    from standins.cuda_emulation.emulation import DeviceProvider

    with EmulationLauncher(PLAIN) as emulator:
        provider = DeviceProvider(NormalWorld(50), emulator)
        found = parts.decoding(provider, emulator, "ar", 1, 12)
        coupled = parts.decoding(provider, emulator, "scd-gumbel", 4, 12)
        provider.close()
    assert found["tokens_per_step"] == 1
    assert 1 <= coupled["tokens_per_step"] <= 4
    assert found["tokens_per_second"] > 0


def test_decoding_by_step_graph_counts_tokens_and_steps(parts, monkeypatch):
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends.ort import cuda_session
    from standins.fake_onnxruntime import FakeRuntime

    fake = FakeRuntime()
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    found = parts.decoding_by_step_graph("fashion", "ar", 1, 12)
    coupled = parts.decoding_by_step_graph("fashion", "scd-gumbel", 4, 12)
    assert (found["decided_by"], found["method"], found["tokens_per_step"]) == ("step graph", "ar", 1)
    assert 1 < coupled["tokens_per_step"] <= 4
    assert coupled["tokens_per_second"] > 0
    ar, other = (session.runs for session in fake.sessions)  # of two sequences
    assert ar == 24
    assert 12 / coupled["tokens_per_step"] < other < 24


@pytest.mark.parametrize("backend", ["cuda", "cuda-graphs"])
def test_the_model_is_opened_by_every_back_end_of_onnx_runtime(parts, device, monkeypatch, tmp_path, backend):
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
    from coupled_sampling.backends.ort import cuda_session
    from coupled_sampling.export import Storage
    from standins.fake_onnxruntime import FakeRuntime

    trt_bundles = pytest.importorskip("standins.trt_bundles")
    fake = FakeRuntime(cuda=device.bindings)
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    bundle = trt_bundles.write_bundle(tmp_path / "toy", storage=Storage("float16", "float16"))
    provider, stream = parts.open_provider(backend, bundle, 8, device)
    found = parts.decoding(provider, PinnedLauncher(stream), "scd-gumbel", 4, 12)
    assert found["tokens_per_step"] >= 1
    (session,) = fake.sessions
    assert (session.replays > 0) == (backend == "cuda-graphs")


def test_decoding_by_a_step_engine_counts_tokens_and_steps(parts, monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings")
    pytest.importorskip("onnxruntime")
    from standins.trt_bundles import Machine, write_bundle

    machine = Machine()
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda *_: b"")
    with EmulationLauncher(PLAIN) as emulator, machine.used():
        machine.cuda.emulator = emulator
        bundle = write_bundle(tmp_path / "toy", steps=["scd-match"])
        found = parts.decoding_by_step_engine("tensorrt", bundle, 4, 20, 0)
    assert (found["decided_by"], found["method"], found["window"]) == ("step engine", "scd-match", 4)
    assert 1 < found["tokens_per_step"] <= 4
    assert machine.cuda.live() == []
