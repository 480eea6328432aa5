"""The benchmark of GPUs: its arithmetic on stand-ins, what it writes when, and what becomes of parts that fail.

Nothing ran on a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.errors import CoupledSamplingError, MissingDependency, ProviderError
from standins import ROOT
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_kernels import EmulatedCuda

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu.py"
MACHINE = {"gpu": "Fake GPU", "compute_capability": "8.0", "driver": 13000, "packages": {"numpy": "2.0"}}


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu_parts")


@pytest.fixture
def gpu(parts):
    return import_module("gpu")


@pytest.fixture
def device(monkeypatch):
    """A stand-in with emulated kernels, whose clock counts events."""
    cuda = EmulatedCuda(memory=2**33)
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda *_: b"")
    with EmulationLauncher(PLAIN) as emulator:
        cuda.emulator = emulator
        yield Device(bindings=cuda)


def settings(**changes):
    return argparse.Namespace(
        **{"steps": 3, "width": 4, "vocab_size": 50, "copied": 1000, "spread": 0, "device": 0, **changes}
    )


def given(parts, part, arguments, device):
    found = []
    parts.run_part(part, arguments, found.append, lambda index: device)
    return found


def test_without_a_gpu_it_ends_in_one_line(tmp_path):
    try:
        Device()
    except CoupledSamplingError:
        pass
    else:
        pytest.skip("there is a GPU")
    command = [sys.executable, SCRIPT, "--json", tmp_path / "gpu.json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    *before, last = result.stderr.splitlines()
    assert [line.partition(" figures")[0] for line in before] == ["machine: 0"]
    assert last.startswith("this benchmark needs an NVIDIA GPU: ")


def test_the_machine_and_its_bandwidth(parts, device):
    (_, machine), (_, bandwidth) = given(parts, "machine", settings(), device)
    assert (machine["gpu"], machine["compute_capability"], machine["driver"]) == ("Fake GPU", "8.0", 13000)
    assert bandwidth == 2 * 1000 / 1e-3


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_kernels_and_steps(parts, device, monkeypatch, method):
    """A step's kernels take one tick of a millisecond, and so does a graph of them for two addresses of logits."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", argparse.Namespace(nvrtcVersion=lambda: (0, 13, 0)))
    monkeypatch.setattr(parts, "CHUNK", 25)  # so that two blocks seem worth a try
    slots = 1 if method == "ar" else 4
    rows = [row for _, row in given(parts, f"kernels:{method}", settings(spread=2 * 4 * 4 * 50), device)]
    assert [(row["blocks_per_slot"], row["chosen"]) for row in rows] == [(1, True), (1, False), (2, False), (1, True)]
    assert [row["sampling"] for row in rows] == ["plain"] * 3 + ["top-k 2000, top-p 0.95"]
    for row in rows:
        assert (row["method"], row["launched_ms"], row["kernels_ms"]) == (method, 1, 0.5)
        assert row["floor_bytes"] == 4 * slots * 50 * (1 + (method in ("sjd", "scd-maximal", "scd-gumbel")))
        assert row["overhead_ms"] == row["step_ms"] - 0.5
    assert device.bindings.live() == [], "all memory is given back"


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
    from standins.fake_onnxruntime import FakeRuntime

    trt_bundles = pytest.importorskip("standins.trt_bundles")
    fake = FakeRuntime(cuda=device.bindings)
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    bundle = trt_bundles.write_bundle(tmp_path / "toy")
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


# The run as a whole: parts are processes.


def part_script(tmp_path, body):
    """A command that stands for parts; it is told the part's name as the last argument."""
    script = tmp_path / "parts.py"
    script.write_text(f"import json, os, sys, time\npart = sys.argv[-1]\n{body}")
    return [sys.executable, str(script)]


def said(gpu, tmp_path, body, part="kernels:sjd", seconds=30.0):
    return list(gpu.figures(part, part_script(tmp_path, body), seconds))


def test_figures_come_one_by_one_and_other_lines_are_passed_over(gpu, tmp_path):
    body = "print('warning: something'); print(json.dumps({'decisions': {'part': part}})); print('[1]')"
    assert said(gpu, tmp_path, body) == [("decisions", {"part": "kernels:sjd"})]


@pytest.mark.parametrize(
    ("body", "seconds", "kind", "reason"),
    [
        ("raise ValueError('no such thing')", 30, "failed", "ValueError: no such thing"),
        ("os.kill(os.getpid(), 11)", 30, "failed", "exit code -11"),
        ("sys.stdout.flush(); time.sleep(60)", 1, "failed", "not done after 1 seconds"),
        ("print('it needs more', file=sys.stderr); sys.exit(3)", 30, "skipped", "it needs more"),
    ],
    ids=["exception", "crash", "endless", "absent"],
)
def test_what_goes_wrong_is_noted_after_what_was_measured(gpu, tmp_path, body, seconds, kind, reason):
    measured = "print(json.dumps({'decisions': {'method': 'sjd'}}), flush=True)\n"
    (first, (name, problem)) = said(gpu, tmp_path, measured + body, seconds=seconds)
    assert first == ("decisions", {"method": "sjd"})
    assert (name, problem["part"], problem[kind]) == ("problems", "kernels:sjd", reason)
    assert ("log" in problem) == (kind == "failed")


def asked(gpu, *options):
    return gpu.parser().parse_args([str(option) for option in options])


def test_all_parts_run_whatever_fails_and_the_file_is_written_after_each_figure(gpu, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    path.write_text('[{"earlier": 1}]')
    body = f"""
if part == "machine":
    print(json.dumps({{"machine": {MACHINE!r}}}))
    print(json.dumps({{"bandwidth": 1e9}}))
elif part == "kernels:sjd":
    raise RuntimeError("an illegal address")
elif part.startswith("kernels"):
    row = {{"method": part[8:], "sampling": "plain", "blocks_per_slot": 2, "chosen": True, "floor_bytes": 500000}}
    print(json.dumps({{"decisions": {{**row, "kernels_ms": 1, "launched_ms": 1, "step_ms": 3, "overhead_ms": 2}}}}))
elif part == "model":
    print(json.dumps({{"parameters": 10**9}}))
elif part == "decoding:cuda":
    for method, speed in (("ar", 50), ("scd-gumbel", 100)):
        row = {{"backend": "cuda", "method": method, "decided_by": "kernels", "window": 4}}
        print(json.dumps({{"decoding": {{**row, "tokens_per_second": speed, "tokens_per_step": 2}}}}))
else:
    print("nothing of the kind is installed", file=sys.stderr)
    sys.exit(3)
"""
    arguments = asked(gpu, "--json", path, "--backends", "cuda,tensorrt")
    report = gpu.Report(path, {"width": 64, "vocab_size": 65536})
    states = []
    monkeypatch.setattr(gpu, "write_whole", lambda path, write: (write(path), states.append(path.read_text())))
    gpu.run(arguments, part_script(tmp_path, body), report)
    written = [json.loads(state) for state in states]
    assert all(one[0] == {"earlier": 1} for one in written)
    assert [one[1]["complete"] for one in written] == [False] * (len(written) - 1) + [True]
    counts = [sum(len(one[1][name]) for name in gpu.LISTS) for one in written]
    assert counts == [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 8]
    result = written[-1][1]
    assert [row["method"] for row in result["decisions"]] == ["ar", "scd-maximal", "scd-gumbel", "scd-match"]
    failed, skipped = result["problems"]
    assert (failed["part"], failed["failed"]) == ("kernels:sjd", "RuntimeError: an illegal address")
    assert skipped == {"part": "decoding:tensorrt", "skipped": "nothing of the kind is installed"}
    gpu.print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Fake GPU (8.0), driver for CUDA 13000; numpy 2.0"
    assert lines[1] == "copy within the GPU: 1 GB/s"
    assert lines[5].split() == ["ar", "plain", "2*", "1.000", "0.500", "2.000", "1.000", "3.000", "2.000"]
    assert ["cuda", "scd-gumbel", "kernels", "4", "100.0", "2.00", "2.00"] in [line.split() for line in lines]
    assert lines[-3] == "kernels:sjd failed: RuntimeError: an illegal address"
    assert lines[-1] == "decoding:tensorrt was skipped: nothing of the kind is installed"


def test_when_the_time_is_over_no_part_begins(gpu, tmp_path):
    body = f"print(json.dumps({{'machine': {MACHINE!r}}}), flush=True)\ntime.sleep(2.5)"
    report = gpu.Report(None, {})
    gpu.run(asked(gpu, "--seconds", 7, "--no-model"), part_script(tmp_path, body), report)
    assert {problem["skipped"] for problem in report.result["problems"]} == {"the 7.0 seconds of --seconds are over"}
    assert report.result["problems"][0]["part"] == "kernels:ar"


def test_without_a_model_nothing_is_decoded(gpu, tmp_path):
    body = f"print(json.dumps({{'machine': {MACHINE!r}}}))\nif part == 'model': raise OSError('the disk is full')"
    report = gpu.Report(None, {})
    gpu.run(asked(gpu, "--backends", "cuda"), part_script(tmp_path, body), report)
    assert [problem.get("skipped", problem.get("failed")) for problem in report.result["problems"]] == [
        "OSError: the disk is full",
        "there is no model",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [(MissingDependency("no package"), 3), (ProviderError("it broke"), None)],
    ids=["absent", "failed"],
)
def test_a_part_says_whether_it_cannot_run_or_failed(gpu, monkeypatch, capsys, error, code):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(gpu, "run_part", fail)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--part", "machine"])
    if code is None:
        with pytest.raises(ProviderError):
            gpu.main()
    else:
        assert gpu.main() == code
        assert capsys.readouterr().err == "no package\n"


def test_a_missing_gpu_is_an_absence(parts):
    cuda = EmulatedCuda(devices=0)
    with pytest.raises(MissingDependency, match="there are 0 GPUs"):
        parts.run_part("machine", settings(), print, lambda index: Device(index, bindings=cuda))


def test_a_run_that_is_ended_ends_its_part_and_leaves_what_it_has(gpu, tmp_path):
    """As `timeout` ends it."""
    path, mark = tmp_path / "gpu.json", tmp_path / "pid"
    body = f"""
if part == "machine":
    print(json.dumps({{"machine": {MACHINE!r}}}))
else:
    open({str(mark)!r}, "w").write(str(os.getpid()))
    time.sleep(60)
"""
    command = part_script(tmp_path, body)
    program = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['gpu.py', '--json', {str(path)!r}]; import gpu; "
    program += f"gpu.command_of = lambda folder: {command!r}; sys.exit(gpu.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(300):
        if mark.exists() and mark.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=30)
    assert process.returncode == 143, error
    assert output.startswith("Fake GPU (8.0)")
    (result,) = json.loads(path.read_text())
    assert (result["machine"], result["complete"]) == (MACHINE, False)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_back_ends_that_do_not_exist_are_refused(gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--backends", "cuda,rocm"])
    with pytest.raises(SystemExit, match="backends has rocm, expected some of cuda,"):
        gpu.main()
