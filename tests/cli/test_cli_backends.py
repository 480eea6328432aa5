"""``--backend`` and ``--step`` of the command line, on stand-ins for CUDA, TensorRT and ``onnxruntime-gpu``.

Nothing ran on a GPU. What is opened from Python is in ``tests/backends/test_opening.py``.
"""

import dataclasses
import json
import sys

import pytest

from coupled_sampling.bundles.layouts import Span
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.export import add_step_graphs
from standins.fake_cuda import Code

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")
gpu_machine = pytest.importorskip("standins.gpu_machine")
trt_bundles = pytest.importorskip("standins.trt_bundles")

RAN, CAPTURING = gpu_machine.RAN, gpu_machine.CAPTURING
GPU = ("cuda", "tensorrt", "tensorrt-rtx")
ENGINE_GRAPH = ("--backend", "tensorrt", "--step", "graph")


@pytest.fixture
def bundle(tmp_path):
    return trt_bundles.write_bundle(tmp_path / "toy")


@pytest.fixture
def stepping(bundle):
    """The same with step graphs for ``scd-match``, TensorRT's among them."""
    return trt_bundles.write_bundle(bundle, steps=["scd-match"])


@pytest.fixture
def machine(monkeypatch):
    with gpu_machine.gpu_machine(monkeypatch) as found:
        yield found


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def compared(capsys, bundle, *arguments):
    """The figures of a comparison on ``bundle`` that do not depend on the machine."""
    settings = ("--methods", "sjd,scd-match", "--count", 3, "--batch-size", 2, "--window", 4, "--drafting", "repeat")
    code, text, error = run(capsys, "compare", bundle, *settings, "--json", *arguments)
    assert code == 0, error
    return [{k: v for k, v in row.items() if "second" not in k} for row in json.loads(text)]


@pytest.mark.parametrize("step", ["auto", "kernels", "host"])
@pytest.mark.parametrize("backend", GPU)
def test_every_back_end_decodes_as_the_cpu_does_and_says_what_ran(machine, bundle, capsys, backend, step):
    expected = compared(capsys, bundle)
    assert {(row["execution_provider"], row["step"]) for row in expected} == {("CPUExecutionProvider", "host")}
    found = compared(capsys, bundle, "--backend", backend, "--step", step)
    ran = {"execution_provider": RAN[backend], "step": "host" if step == "host" else "kernels"}
    ran |= {"device": 0, "cuda_graphs": backend in CAPTURING}
    assert found == [{**row, **ran} for row in expected]
    assert found[-1]["identical_to_ar"]
    assert (machine.cuda.calls.count("cuLaunchKernel") == 0) == (step == "host")


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("backend", "step"), [("cuda", "kernels"), ("tensorrt", "kernels"), ("cuda", "host"), ("cuda", "graph")]
)
def test_guided_tokens_are_those_of_the_cpu(machine, tmp_path, capsys, backend, step):
    """With the bundle's unconditional prompt, two rows of the model for each sequence."""
    pytest.importorskip("PIL")

    def tokens(*arguments):
        out, trace = tmp_path / "x.png", tmp_path / "trace.json"
        settings = ["--prompt", "shoe", "--count", 1, "--window", 32, "--method", "scd-match"]
        code, _, error = run(capsys, "generate", *settings, "--out", out, "--trace", trace, *arguments)
        assert code == 0, error
        return json.loads(trace.read_text())["sequences"][0]["tokens"]

    engines = ["--engines", tmp_path / "engines"] if backend == "tensorrt" else []
    expected = tokens("--guidance", 2, "--step", "host")
    assert tokens("--guidance", 2, "--backend", backend, "--step", step, *engines) == expected
    assert (tmp_path / "engines").exists() == (backend == "tensorrt")
    assert tokens("--step", "host") != expected


def test_a_step_graph_on_cuda_says_so(machine, capsys):
    settings = ["--methods", "scd-match", "--count", 1, "--window", 8, "--json"]
    code, text, error = run(capsys, "compare", *settings, "--backend", "cuda", "--step", "graph")
    assert code == 0, error
    assert {(row["execution_provider"], row["step"]) for row in json.loads(text)} == {(RAN["cuda"], "graph")}
    assert machine.cuda.calls.count("cuLaunchKernel") == 0


@pytest.mark.parametrize("step", ["host", "kernels"])
@pytest.mark.parametrize("backend", GPU)
def test_everything_is_on_the_gpu_asked_for(machine, bundle, capsys, backend, step):
    machine.cuda.devices = machine.onnxruntime.devices = 2
    rows = compared(capsys, bundle, "--backend", backend, "--step", step, "--device", 1)
    assert {row["device"] for row in rows} == {1}
    assert {session.device for session in machine.onnxruntime.sessions} == ({1} if backend == "cuda" else set())
    assert set(machine.cuda.retained) == (set() if backend == "cuda" and step == "host" else {1})


@pytest.mark.parametrize("step", ["host", "kernels"])
@pytest.mark.parametrize("backend", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_cuda_graphs_are_launched_if_asked(machine, bundle, capsys, backend, step):
    """The tokens are the same, and what is said of them."""
    rows = []
    for wanted in ("--cuda-graphs", "--no-cuda-graphs"):
        machine.cuda.calls.clear()
        machine.onnxruntime.sessions.clear()
        rows.append(compared(capsys, bundle, "--backend", backend, "--step", step, wanted))
        launched = machine.cuda.calls.count("cuGraphLaunch") + sum(s.replays for s in machine.onnxruntime.sessions)
        assert (launched > 0) == (wanted == "--cuda-graphs")
    with_graphs, without_graphs = rows
    assert {row["cuda_graphs"] for row in with_graphs} == {True}
    assert with_graphs == [{**row, "cuda_graphs": True} for row in without_graphs]


def test_a_step_graph_runs_on_the_gpu_asked_for(machine, capsys):
    machine.onnxruntime.devices = 2
    settings = ["--methods", "scd-match", "--count", 1, "--window", 8, "--json", "--device", 1, "--no-cuda-graphs"]
    code, text, error = run(capsys, "compare", *settings, "--backend", "cuda", "--step", "graph")
    assert code == 0, error
    assert {(row["device"], row["cuda_graphs"], row["step"]) for row in json.loads(text)} == {(1, False, "graph")}
    assert {session.device for session in machine.onnxruntime.sessions} == {1}


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_step_engine_decodes_as_the_cpu_does_and_ar_beside_it_says_what_it_is(machine, stepping, capsys, backend):
    settings = ["--methods", "scd-match", "--drafting", "copy:1"]
    expected = compared(capsys, stepping, *settings, "--step", "host")
    found = compared(capsys, stepping, *settings, "--backend", backend, "--step", "graph")
    ran = {"ar": "kernels", "scd-match": "graph"}
    place = {"execution_provider": RAN[backend], "device": 0, "cuda_graphs": True}
    assert found == [{**row, **place, "step": ran[str(row["method"])]} for row in expected]
    assert found[-1]["identical_to_ar"]
    names = sorted(path.name.split("-")[0] for path in (stepping.parent / "toy.engines").iterdir() if path.is_dir())
    assert names == ["step_scd_match_tensorrt", "window"]


def test_generate_and_verify_run_a_step_engine(machine, stepping, capsys, tmp_path):
    settings = ["--methods", "scd-match", "--samples", 60, "--positions", 3, "--after", 1, "--window", 3]
    _, text, error = run(capsys, "verify", stepping, *settings, *ENGINE_GRAPH, "--json")
    (row,) = json.loads(text)
    assert (row["execution_provider"], row["step"]) == ("tensorrt 11.4.0", "graph"), error
    assert row["differing_tokens"] == 0
    pytest.importorskip("PIL")
    shipped = add_step_graphs("fashion", tmp_path / "fashion-steps", ["scd-match"]).folder
    out = ["--out", tmp_path / "x.png", "--engines", tmp_path / "engines"]
    settings = [shipped, "--prompt", "shoe", "--count", 1, "--window", 32, "--method", "scd-match"]
    code, text, error = run(capsys, "generate", *settings, *out, *ENGINE_GRAPH)
    assert code == 0, error
    assert text.splitlines()[0].endswith(" s, on tensorrt 11.4.0 (GPU 0, CUDA graphs), step: graph")
    code, text, error = run(capsys, "generate", *settings, *out, *ENGINE_GRAPH, "--guidance", 2)
    assert (code, error.count("\n")) == (2, 1)
    assert "guidance is 2.0, expected 1 for a step in TensorRT" in error


def test_a_layout_is_no_step_engine(machine, bundle, capsys):
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, layout=(Span(0, 4, 3), Span(4, 4, 3))))
    code, _, error = run(capsys, "compare", bundle, "--count", 1, "--methods", "scd-match", *ENGINE_GRAPH)
    assert (code, error.count("\n")) == (2, 1)
    assert "the bundle toy has a layout, which needs the host" in error


def test_pictures_are_made_and_the_line_says_on_what(machine, tmp_path, capsys):
    pytest.importorskip("PIL")
    lines = []
    for backend in ("cpu", "cuda"):
        settings = ["--prompt", "shoe", "--count", 1, "--window", 32, "--step", "host", "--backend", backend]
        code, text, error = run(capsys, "generate", *settings, "--out", tmp_path / f"{backend}.png")
        assert code == 0, error
        lines.append(text.splitlines()[0])
    assert (tmp_path / "cpu.png").read_bytes() == (tmp_path / "cuda.png").read_bytes()
    assert lines[0].endswith(" s, on CPUExecutionProvider, step: host, corrections: LowRank")
    expected = "on CUDAExecutionProvider (GPU 0), step: host, corrections: LowRank, window graph: causal"
    assert lines[1].endswith(f" s, {expected}")


def test_the_table_says_what_ran(machine, bundle, capsys):
    _, text, _ = run(capsys, "compare", bundle, "--count", 1, "--methods", "sjd", "--backend", "tensorrt-rtx")
    assert text.splitlines()[-1] == "ar, sjd: on tensorrt-rtx 1.7.1 (GPU 0, CUDA graphs), step: kernels"


def test_verify_verifies_what_would_run(machine, bundle, capsys):
    settings = ["--methods", "scd-match", "--samples", 60, "--positions", 3, "--after", 1, "--window", 3]
    _, text, _ = run(capsys, "verify", bundle, *settings, "--backend", "tensorrt", "--json")
    (row,) = json.loads(text)
    assert (row["execution_provider"], row["step"]) == ("tensorrt 11.4.0", "kernels")
    assert row["differing_tokens"] == 0
    _, text, _ = run(capsys, "verify", bundle, *settings, "--backend", "cuda")
    assert text.splitlines()[-1] == "scd-match: on CUDAExecutionProvider (GPU 0), step: kernels"


def test_a_layout_is_decided_on_the_host(machine, bundle, capsys):
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, layout=(Span(0, 4, 3), Span(4, 4, 3))))
    rows = compared(capsys, bundle, "--backend", "cuda")
    assert {row["step"] for row in rows} == {"host"}
    code, _, error = run(capsys, "compare", bundle, "--count", 1, "--backend", "cuda", "--step", "kernels")
    assert (code, error.count("\n")) == (2, 1)
    assert "the bundle toy has a layout, which needs the host" in error


@pytest.mark.parametrize("step", ["host", "kernels"])
def test_the_engine_is_tuned_for_the_window_asked(machine, bundle, capsys, step):
    compared(capsys, bundle, "--backend", "tensorrt", "--window", 6, "--step", step)
    (profile, *_) = machine.tensorrt.configs[0].profiles
    widths = [p.shapes["input_ids"][2][1] for p in machine.tensorrt.configs[0].profiles]
    assert widths == [1, 6]
    assert profile.shapes["start"][2] == [2]


# Errors: one line, exit code 2.


def without(*modules):
    def spoil(machine, monkeypatch):
        for name in modules:
            monkeypatch.setitem(sys.modules, name, None)

    return spoil


def failing(code):
    return lambda machine, monkeypatch: machine.cuda.fail("cuInit", code)


def old_driver(machine, monkeypatch):
    machine.cuda.version = 12080


def built_without_cuda(machine, monkeypatch):
    machine.onnxruntime.available = ["CPUExecutionProvider"]


def without_gpu(machine, monkeypatch):
    machine.onnxruntime.used = "CPUExecutionProvider"


def without_step_graphs(machine, monkeypatch):
    """The bundle has none."""


def nothing(machine, monkeypatch):
    pass


@pytest.mark.cases(24)
@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (built_without_cuda, ["--backend", "cuda"], "built without CUDA, it has CPUExecutionProvider"),
        (
            without_gpu,
            ["--backend", "cuda", "--step", "host"],
            "expected CUDAExecutionProvider: it could not use GPU 0",
        ),
        (without("tensorrt"), ["--backend", "tensorrt"], "tensorrt could not be imported"),
        (without("tensorrt"), ["--backend", "tensorrt"], "pip install 'coupled-sampling[tensorrt]'"),
        (without("tensorrt_rtx"), ["--backend", "tensorrt-rtx"], "pip install 'coupled-sampling[tensorrt-rtx]'"),
        (without("cuda.bindings.driver"), ["--backend", "cuda"], "the package cuda-python, which is not installed"),
        (without("cuda.bindings.driver"), ["--backend", "tensorrt", "--step", "host"], "the package cuda-python"),
        (without("cuda.bindings.nvrtc"), ["--backend", "tensorrt"], "CUDA kernels need the package cuda-bindings"),
        (
            failing(RuntimeError("no libcuda")),
            ["--backend", "cuda"],
            "no NVIDIA driver (no libcuda): install the driver",
        ),
        (old_driver, ["--backend", "tensorrt", "--step", "host"], "knows CUDA 12.8, expected 13.0 or newer"),
        (failing(Code.CUDA_ERROR_NO_DEVICE), ["--backend", "tensorrt-rtx"], "no NVIDIA GPU is visible"),
        (
            nothing,
            [*ENGINE_GRAPH, "--methods", "scd-match,sjd"],
            "method is 'sjd', expected 'scd-match' for a step in TensorRT",
        ),
        (nothing, [*ENGINE_GRAPH, "--methods", "ar"], "method is 'ar', expected 'scd-match' for a step in TensorRT"),
        (nothing, [*ENGINE_GRAPH, "--methods", "scd-gumbel"], "leave step at 'auto', and CUDA kernels decide"),
        (nothing, [*ENGINE_GRAPH, "--methods", "scd-match", "--top-k", "3"], "neither top-k, top-p nor min-p"),
        (without("cuda.bindings.nvrtc"), [*ENGINE_GRAPH, "--methods", "scd-match"], "CUDA kernels need"),
        (without("tensorrt"), [*ENGINE_GRAPH, "--methods", "scd-match"], "tensorrt could not be imported"),
        (without_step_graphs, [*ENGINE_GRAPH, "--methods", "scd-match"], "toy-steps --methods scd-match`, or"),
        (nothing, ["--step", "kernels"], "step is 'kernels', but backend is 'cpu'"),
        (without_step_graphs, ["--step", "graph"], "has no step graph for"),
        (nothing, ["--backend", "tensorrt", "--threads", "2"], "threads is 2, but backend 'tensorrt'"),
        (nothing, ["--backend", "cuda", "--threads", "0"], "threads is 0"),
        (nothing, ["--backend", "cuda", "--engines", "here"], "engines is 'here', but backend 'cuda' builds none"),
        (nothing, ["--engines", "here"], "engines is 'here', but backend 'cpu' builds none"),
        (nothing, ["--backend", "cuda", "--guidance", "2"], "guidance is 2.0, but the bundle toy has no unconditional"),
        (nothing, ["--backend", "cuda", "--window", "99"], "window is 99"),
        (
            nothing,
            ["--device", "0"],
            "device is 0, but backend 'cpu' runs on no GPU; leave it out, or choose one of cuda",
        ),
        (nothing, ["--cuda-graphs"], "cuda_graphs is True, but backend 'cpu' has no CUDA graphs"),
        (nothing, ["--no-cuda-graphs"], "cuda_graphs is False, but backend 'cpu' has no CUDA graphs"),
        (nothing, ["--backend", "cuda", "--step", "graph", "--cuda-graphs"], "step graphs of bundles are not captured"),
        (nothing, ["--backend", "cuda", "--device", "-1"], "device is -1, expected the number of a GPU, from 0"),
        (nothing, ["--backend", "cuda", "--device", "1"], "there are 1 GPUs, number 1 was asked"),
        (nothing, ["--backend", "cuda", "--device", "1", "--step", "host"], "cannot use GPU 1: CUDA failure 101"),
        (nothing, ["--backend", "tensorrt", "--device", "1", "--step", "host"], "`nvidia-smi -L` lists them"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "verify"])
def test_what_cannot_run_is_one_line_and_exit_code_2(
    machine, bundle, capsys, monkeypatch, command, spoil, arguments, words
):
    spoil(machine, monkeypatch)
    if "graph" in arguments and spoil is not without_step_graphs:
        trt_bundles.write_bundle(bundle, steps=["scd-match"])
    less = ["--count", "1"] if command == "compare" else ["--samples", "2", "--positions", "2"]
    code, text, error = run(capsys, command, bundle, *less, *arguments)
    assert (code, text) == (2, "")
    assert words in error
    assert error.count("\n") == 1
    assert machine.tensorrt.built == machine.rtx.built == 0
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["toy"]


def test_engines_are_refused_where_a_step_graph_would_run(capsys):
    """It is opened by another way than providers are."""
    code, text, error = run(capsys, "compare", "fashion", "--count", 1, "--engines", "here")
    assert (code, text) == (2, "")
    assert "engines is 'here', but backend 'cpu' builds none" in error


def test_an_unknown_back_end_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--backend", "rocm"])
    assert ended.value.code == 2
    assert "invalid choice: 'rocm'" in capsys.readouterr().err


def test_pictures_need_onnxruntime_whatever_runs_the_model(machine, capsys, monkeypatch, tmp_path):
    """Said before the work, and before an engine is built."""
    pytest.importorskip("PIL")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, text, error = run(capsys, "generate", "--backend", "tensorrt", "--count", "1", "--out", tmp_path / "x.png")
    assert (code, text) == (2, "")
    assert "pip install 'coupled-sampling[cpu]'" in error
    assert machine.tensorrt.built == 0


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("step", ["host", "kernels"])
def test_engines_are_kept_where_asked(machine, bundle, tmp_path, capsys, backend, step):
    compared(capsys, bundle, "--backend", backend, "--step", step, "--engines", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir())
    assert not (tmp_path / "toy.engines").exists()


def test_plugins_are_asked_for_by_name(bundle, capsys, monkeypatch):
    for module in ("onnxruntime_ep_webgpu", "onnxruntime_ep_openvino"):
        monkeypatch.setitem(sys.modules, module, None)  # installed or not
    for options, said in (
        ((), "provider is None, expected one of webgpu, openvino, nv-tensorrt-rtx"),
        (("--provider", "webgpu"), "pip install 'coupled-sampling[webgpu]'"),
        (("--provider", "openvino"), "pip install 'coupled-sampling[openvino-plugin]'"),
    ):
        asked = ["generate", str(bundle), "--backend", "ort", *options, "--count", "1", "--json"]
        assert main(asked) == 2
        assert said in capsys.readouterr().err
