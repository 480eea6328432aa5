"""The benchmark of GPUs as a whole: what it writes when, what becomes of parts that fail, and what its table says.

Parts are processes. Nothing ran on a GPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.errors import CoupledSamplingError, MissingDependency, ProviderError
from standins import ROOT

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "first_light_gpu.py"
MACHINE = {"gpu": "Fake GPU", "compute_capability": "8.0", "cuda_of_driver": 13000, "packages": {"numpy": "2.0"}}


@pytest.fixture
def frame(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu_frame")


@pytest.fixture
def door(frame):
    return import_module("first_light_gpu")


def test_without_a_gpu_it_ends_in_one_line(tmp_path):
    try:
        Device()
    except CoupledSamplingError:
        pass
    else:
        pytest.skip("there is a GPU")
    command = [sys.executable, SCRIPT, "--json", tmp_path / "gpu.json"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": ""})
    assert result.returncode == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("machine: 1 figures")
    assert last.startswith("this benchmark needs an NVIDIA GPU: ")


def part_script(tmp_path, body):
    """A command that stands for parts; it is told the part's name as the last argument."""
    script = tmp_path / "parts.py"
    script.write_text(f"import json, os, sys, time\npart = sys.argv[-1]\n{body}")
    return [sys.executable, str(script)]


def said(frame, tmp_path, body, part="kernels:sjd", seconds=30.0):
    return list(frame.figures(part, part_script(tmp_path, body), seconds, os.environ))


def test_figures_come_one_by_one_and_other_lines_are_passed_over(frame, tmp_path):
    body = "print('warning: something'); print(json.dumps({'decisions': {'part': part}})); print('[1]')"
    assert said(frame, tmp_path, body) == [("decisions", {"part": "kernels:sjd"})]


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
def test_what_goes_wrong_is_noted_after_what_was_measured(frame, tmp_path, body, seconds, kind, reason):
    measured = "print(json.dumps({'decisions': {'method': 'sjd'}}), flush=True)\n"
    (first, (name, problem)) = said(frame, tmp_path, measured + body, seconds=seconds)
    assert first == ("decisions", {"method": "sjd"})
    assert (name, problem["part"], problem[kind]) == ("problems", "kernels:sjd", reason)
    assert ("log" in problem) == (kind == "failed")


def reported(frame, path=None, **settings):
    return frame.Report(
        lambda result: path, settings, ("decisions", "runtimes", "decoding", "loops", "passes", "problems")
    )


def test_all_parts_run_whatever_fails_and_the_file_is_written_after_each_figure(frame, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    path.write_text('[{"earlier": 1}]')
    body = f"""
if part == "machine":
    print(json.dumps({{"machine": {MACHINE!r}}}))
    print(json.dumps({{"bandwidth": 1e9}}))
elif part == "kernels:sjd":
    raise RuntimeError("an illegal address")
else:
    row = {{"method": part[8:], "sampling": "plain", "blocks_per_slot": 2, "chosen": True, "floor_bytes": 500000}}
    print(json.dumps({{"decisions": {{**row, "kernels_ms": 0.8, "launched_ms": 1, "step_ms": 3, "overhead_ms": 2}}}}))
"""
    report, states = reported(frame, path, width=64, vocab_size=65536, windows=[16]), []
    add = report.add
    monkeypatch.setattr(report, "add", lambda *figure: (add(*figure), states.append(path.read_text())))
    names = ["machine", "kernels:sjd", "kernels:scd-match"]
    parts = [frame.Part(name, 30) for name in names]
    parts += [
        frame.Part("arrays:none", 30, "no_such_module"),
        frame.Part("model", 30, "json", "runtimes", "nothing ran"),
    ]
    frame.run(parts, time.monotonic() + 60, part_script(tmp_path, body), os.environ, report)
    written = [json.loads(state) for state in states]
    assert all(earlier == {"earlier": 1} for earlier, _ in written)
    assert [len(one["decisions"]) + len(one["problems"]) for _, one in written] == [0, 0, 0, 1, 1, 2, 2, 3, 4]
    result = written[-1][1]
    assert list(result["seconds_by_part"]) == names
    failed, absent, needless = result["problems"]
    assert (failed["part"], failed["failed"]) == ("kernels:sjd", "RuntimeError: an illegal address")
    assert absent == {"part": "arrays:none", "skipped": "the module no_such_module is not installed"}
    assert needless == {"part": "model", "skipped": "nothing ran"}
    import_module("gpu_table").print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Fake GPU (8.0), driver ? for CUDA 13000, load 0.0")
    assert lines[1] == "copy within the GPU: 1 GB/s"
    assert "800.0 us, 1.60 of floor  <= 2 of floor  met" in lines[3]
    assert lines[4].split()[-6:] == ["2000", "us", "<", "60", "us", "MISSED"]
    assert lines[-5] == "kernels:sjd failed: RuntimeError: an illegal address"
    assert lines[-1] == "model was skipped: nothing ran"


def test_when_the_time_is_over_no_part_begins(frame, tmp_path):
    report = reported(frame)
    parts = [frame.Part("machine", 30), frame.Part("kernels:ar", 30)]
    frame.run(parts, time.monotonic() + 5.5, part_script(tmp_path, "time.sleep(1)"), os.environ, report)
    assert report.result["problems"] == [{"part": "kernels:ar", "skipped": "the time of --seconds is over"}]


def test_what_is_wanted_most_comes_first(door):
    names = [part.name for part in door.all_parts(door.parsed([]))]
    assert names[:6] == ["machine", "noise", "tokens:scd-match", "kernels:scd-match", "kernels:scd-maximal", "jax:1b"]
    assert names[-1] == "decoding:tensorrt-rtx"
    assert {name.partition(":")[0] for name in names} == set(door.MEASURES)
    rehearsed = [part.name for part in door.all_parts(door.parsed(["--rehearse"]))]
    assert rehearsed.index("runtimes:cpu") < rehearsed.index("model")  # without which it would be skipped
    chosen = door.parsed(["--only", "noise,jax:3b", "--no-model"])
    assert [part.name for part in door.all_parts(chosen)] == ["machine", "noise", "jax:3b"]


def test_results_are_named_by_the_card_and_rehearsals_are_written_nowhere(door, tmp_path):
    def path(*options, gpu="NVIDIA H200"):
        return door.written_to(door.parsed(options), {"machine": {"gpu": gpu} if gpu else {}})

    results = BENCHMARKS / "results"
    assert path() == results / "gpu-nvidia-h200.json"
    assert path(gpu="NVIDIA RTX 4090 (Laptop)") == results / "gpu-nvidia-rtx-4090-laptop.json"
    assert path(gpu=None) is None
    assert path("--rehearse") is None
    assert path("--rehearse", "--json", str(tmp_path / "a.json")) == tmp_path / "a.json"


def test_array_api_compat_is_found_in_a_package_that_has_a_copy(frame, tmp_path, monkeypatch):
    """CUDA images have scikit-learn, and not the package itself."""
    import array_api_compat

    inside = tmp_path / "packages" / "sklearn" / "externals"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").touch()
    (inside / "array_api_compat").symlink_to(array_api_compat.__path__[0])
    find_spec = frame.importlib.util.find_spec
    monkeypatch.setattr(
        frame.importlib.util, "find_spec", lambda name: None if name == "array_api_compat" else find_spec(name)
    )
    monkeypatch.syspath_prepend(str(inside.parents[1]))
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    around = frame.environment(tmp_path / "links", ROOT)
    *_, last = around["PYTHONPATH"].split(os.pathsep)
    assert last == str(tmp_path / "links")
    command = [sys.executable, "-S", "-c", "import array_api_compat; print(array_api_compat.__file__)"]
    said = subprocess.run(command, capture_output=True, text=True, env={**around, "PYTHONPATH": last})
    assert said.stdout.startswith(last), said.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(MissingDependency("no package"), 3), (ProviderError("it broke"), None)],
    ids=["absent", "failed"],
)
def test_a_part_says_whether_it_cannot_run_or_failed(door, monkeypatch, capsys, error, code):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(import_module("gpu_machine"), "of_machine", fail)
    monkeypatch.setattr(sys, "argv", ["first_light_gpu.py", "--part", "machine"])
    if code is None:
        with pytest.raises(ProviderError):
            door.main()
    else:
        assert door.main() == code
        assert capsys.readouterr().err == "no package\n"


def test_a_run_that_is_ended_ends_its_part_and_leaves_what_it_has(tmp_path):
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
    program = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['x', '--json', {str(path)!r}]; "
    program += "import first_light_gpu as door; "
    program += f"door.command_of = lambda folder: {command!r}; sys.exit(door.main())"
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backends", "cuda,rocm"], "--backends has rocm, expected some of cuda,"),
        (["--only", "jax:7b"], "--only has jax:7b, expected some of arrays,"),
        (["--repeats", "0"], "numbers from 1 on"),
    ],
)
def test_what_does_not_exist_is_refused(door, capsys, options, message):
    with pytest.raises(SystemExit):
        door.parsed(options)
    assert message in capsys.readouterr().err


@pytest.mark.frameworks
def test_jax_and_torch_are_rehearsed_on_the_cpu(tmp_path):
    """All that needs JAX or torch, small: figures, no failure, and the tokens that are claimed."""
    pytest.importorskip("jax", reason="make test-frameworks installs it")
    pytest.importorskip("torch", reason="make test-frameworks installs it")
    path = tmp_path / "gpu.json"
    only = "jax:1b,jax:embedded,arrays:torch,runtimes:cpu"
    command = [sys.executable, SCRIPT, "--rehearse", "--only", only, "--json", path]
    done = subprocess.run(command, capture_output=True, text=True)
    (result,) = json.loads(path.read_text())
    assert (result["complete"], [problem for problem in result["problems"] if "failed" in problem]) == (True, [])
    assert done.returncode == 0, done.stderr
    assert "1b, scd-match, W 4, 3.00 tokens per pass set: over ar" in done.stdout
    assert [(row["window"], row["wanted"], row["tokens_per_pass"]) for row in result["loops"]] == [
        (4, 2, 2), (4, 3, 3), (6, 2, 2), (6, 3, 3),
    ]  # fmt: skip
    assert {row["same_as_itself"] for row in result["loops"]} == {24}
    assert [row["width"] for row in result["passes"]] == [1, 4, 6]
    assert [row["same_tokens"] for row in result["pictures"]] == [[30]] * 2
    assert [row["same_tokens"] for row in result["runtimes"]] == [[30]] * 3
    assert [(row["device"], row["disagreements"]) for row in result["arrays"]] == [("cpu", 0)] * 3
