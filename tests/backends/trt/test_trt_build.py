"""Building and storing engines, on stand-ins: profiles, fingerprints, what is rebuilt and why, failures, Ctrl-C, killed builds."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.backends.trt import (
    BuildOptions,
    EngineError,
    EngineStore,
    find_flavour,
    load_or_build,
    progress_bar,
)
from coupled_sampling.backends.trt.options import Profile
from coupled_sampling.backends.trt.precision import convert_graph, load_graph, uses_float64
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import InvalidArgument, MissingDependency, OutputError
from standins import ROOT
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_cuda import RuleBroken
from standins.fake_kernels import EmulatedCuda
from standins.trt_bundles import Machine, write_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "toy")


def engine_folder(bundle):
    (folder,) = bundle.with_name("toy.engines").glob("window-*")
    return folder


def test_the_engine_lies_beside_the_bundle_and_is_used_again(bundle):
    machine = Machine()
    first = machine.open(bundle)
    assert first.built_because.startswith("there is no engine at")
    record = json.loads((engine_folder(bundle) / "fingerprint.json").read_text())
    assert record["gpu"] == "Fake GPU, compute capability 8.0"
    assert (record["flavour"], record["version"]) == ("tensorrt", "11.4.0")
    assert record["options"]["window_buckets"] == [1, 4, 16]
    assert list(record["files"]) == ["window.onnx"]
    assert machine.open(bundle).built_because == ""
    assert machine.trt.built == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("graph", "files was"),
        ("version", "version was '11.4.0', now '11.5.0'"),
        ("gpu", "there is no engine"),
        ("options", "there is no engine"),
        ("engine", "is damaged"),
        ("truncated", "is damaged"),
        ("fingerprint", "cannot be read"),
        ("format", "format was 0, now 1"),
    ],
)
def test_an_engine_of_anything_else_is_built_again_and_never_loaded(bundle, change, reason):
    """The stand-in raises if a foreign or damaged engine is handed to it."""
    Machine().open(bundle)
    folder, machine, options = engine_folder(bundle), Machine(), {}
    if change == "graph":
        write_bundle(bundle, seed=1)
    elif change == "version":
        machine = Machine(version="11.5.0")
    elif change == "gpu":
        machine = Machine(cuda=EmulatedCuda(name="Other GPU", capability=(9, 0)))
    elif change == "options":
        options = {"tf32": True}
    elif change == "engine":
        content = bytearray((folder / "engine.plan").read_bytes())
        content[-20] ^= 1
        (folder / "engine.plan").write_bytes(content)
    elif change == "truncated":
        (folder / "engine.plan").write_bytes((folder / "engine.plan").read_bytes()[:100])
    elif change == "fingerprint":
        (folder / "fingerprint.json").write_text("{")
    else:
        record = json.loads((folder / "fingerprint.json").read_text())
        (folder / "fingerprint.json").write_text(json.dumps(record | {"format": 0}))
    assert reason in machine.open(bundle, **options).built_because
    assert machine.trt.built == 1
    assert machine.open(bundle, **options).built_because == ""


def test_a_foreign_engine_would_be_noticed(bundle, monkeypatch):
    """Negative control: without the comparison of fingerprints the stand-in gets the engine of another version."""
    Machine().open(bundle)
    monkeypatch.setattr("coupled_sampling.backends.trt.store.Fingerprint.differences", lambda self, other: [])
    with pytest.raises(RuleBroken, match=r"a foreign engine, of 11\.4\.0"):
        Machine(version="11.5.0").open(bundle)


@pytest.mark.parametrize("capability", [(7, 5), (8, 7), (9, 0), (10, 0)])
def test_a_gpu_that_rtx_does_not_run_on_is_refused_before_a_build(bundle, capability):
    major, minor = capability
    machine = Machine(flavour="tensorrt-rtx", cuda=EmulatedCuda(name="Large GPU", capability=capability))
    with pytest.raises(MissingDependency, match=rf"but Large GPU has {major}\.{minor}: use tensorrt, pip install"):
        machine.open(bundle)
    assert machine.trt.built == 0
    assert Machine(cuda=machine.cuda).open(bundle).built_because, "tensorrt builds for it"


def test_engines_of_the_rtx_flavour_are_built_without_a_gpu_and_serve_any(bundle):
    machine, opened = Machine(flavour="tensorrt-rtx"), open_bundle(bundle)
    options = BuildOptions((3,), (1, 4, 16)).fitted(opened.manifest.window_graph)
    load_or_build(opened, machine.flavour, None, options, EngineStore(opened))
    assert machine.open(bundle).built_because == ""
    with pytest.raises(InvalidArgument, match="tensorrt builds on the GPU it builds for"):
        load_or_build(opened, Machine().flavour, None, options, EngineStore(opened))


def test_compiled_kernels_of_the_rtx_flavour_are_kept(bundle):
    machine = Machine(flavour="tensorrt-rtx")
    machine.open(bundle).close()
    machine.open(bundle)
    assert machine.trt.kernels == b"kernels"


def test_the_timing_cache_is_kept_and_a_foreign_one_is_not_used(bundle):
    machine = Machine()
    machine.open(bundle)
    (cache,) = bundle.with_name("toy.engines").glob("*.timing-cache")
    assert cache.read_bytes() == b"timings"
    machine.open(bundle, tf32=True)
    assert machine.trt.configs[-1].cache.content == b"timings"
    cache.write_bytes(b"foreign")
    machine.open(bundle, tf32=True, detailed=False, optimization_level=2)
    assert machine.trt.configs[-1].cache.content == b""


def test_the_rtx_flavour_gets_no_timing_cache_which_would_need_a_gpu(bundle):
    machine = Machine(flavour="tensorrt-rtx")
    machine.open(bundle)
    assert machine.trt.configs[-1].cache is None
    assert "REQUIRE_USER_ALLOCATION" in machine.trt.configs[-1].flags


def test_options_reach_the_builder(bundle):
    machine = Machine()
    machine.open(bundle, tf32=True, workspace_bytes=123, optimization_level=5)
    config = machine.trt.configs[-1]
    assert (config.flags, config.limits, config.builder_optimization_level) == ({"TF32"}, {"WORKSPACE": 123}, 5)
    machine.open(bundle)
    assert machine.trt.configs[-1].flags == set()


def test_every_bucket_has_a_profile():
    options = BuildOptions((2, 8), (1, 16), (64, 256))
    assert options.profiles() == [
        Profile((1, 2), (1, 1), (64, 256)),
        Profile((1, 2), (2, 16), (64, 256)),
        Profile((3, 8), (1, 1), (64, 256)),
        Profile((3, 8), (2, 16), (64, 256)),
    ]
    for rows in range(1, 9):
        for width in range(1, 17):
            profile = options.profiles()[options.profile_of(rows, width)]
            assert profile.rows[0] <= rows <= profile.rows[1]
            assert profile.window[0] <= width <= profile.window[1]


def test_buckets_fit_the_graph(bundle):
    graph = open_bundle(bundle).manifest.window_graph
    fitted = BuildOptions(window_buckets=(1, 16, 500, 600)).fitted(graph)
    assert (fitted.window_buckets, fitted.column_buckets) == ((1, 16, 40), (44,))
    with pytest.raises(InvalidArgument, match=r"column_buckets is .*expected at most 44"):
        BuildOptions(column_buckets=(45,)).fitted(graph)
    with pytest.raises(InvalidArgument, match="no input kv_length"):
        BuildOptions(column_buckets=(40,)).fitted(dataclasses.replace(graph, has_kv_length=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_buckets": ()}, "row_buckets is"),
        ({"window_buckets": (0,)}, "window_buckets is"),
        ({"column_buckets": (True,)}, "column_buckets is"),
        ({"precision": "int8"}, "precision is 'int8', expected one of 'float32', 'float16', 'bfloat16'"),
        ({"optimization_level": 6}, "optimization_level is 6"),
        ({"workspace_bytes": 0}, "workspace_bytes is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        BuildOptions(**options)


def test_a_failed_build_says_what_tensorrt_said_the_node_and_what_to_try_and_writes_nothing(bundle):
    with pytest.raises(
        EngineError, match=r"building window\.onnx.*node blocks\.0\.Gemm\.1; to do: raise workspace_bytes"
    ):
        Machine(builds=False).open(bundle)
    assert list(bundle.with_name("toy.engines").iterdir()) == []


def test_float32_attention_is_split_and_without_that_the_build_names_the_option(bundle):
    Machine().open(bundle)
    with pytest.raises(EngineError, match=r"pass decomposable=True, the default"):
        Machine().open(bundle, decomposable=False)


def test_an_operator_that_is_not_known_is_named(tmp_path):
    def spoil(model):
        model.graph.node[3].op_type, model.graph.node[3].domain = "NotAnOperator", "elsewhere"

    bundle = write_bundle(tmp_path / "toy", change=spoil)
    with pytest.raises(EngineError, match=r"UNSUPPORTED_NODE at node .*\(NotAnOperator\): no importer.*OrtProvider"):
        Machine().open(bundle)


def test_an_attention_that_lost_its_mask_is_refused(bundle):
    machine = Machine()
    machine.trt.losing_mask = True
    with pytest.raises(EngineError, match="without its boolean mask"):
        machine.open(bundle)


def test_a_folder_that_cannot_be_written_is_refused_before_the_build(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    machine = Machine()
    with pytest.raises(OutputError, match="pass engines="):
        machine.open(bundle, engines=tmp_path / "file")
    assert machine.trt.built == 0


def test_progress_rises_to_the_end_and_its_own_failure_does_not_stop_the_build(bundle):
    seen = []
    Machine().open(bundle, progress=lambda done, phase: seen.append((done, phase)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (1.0, "Building")

    def failing(done, phase):
        raise ValueError

    machine = Machine(version="12.0.0")
    machine.open(bundle, progress=failing)
    assert machine.trt.built == 1


def test_a_bar_can_be_shown(capsys):
    with progress_bar("building") as report:
        report(0.5, "timing")
        report(1.0, "done")


def test_ctrl_c_stops_a_build_at_its_next_step_and_leaves_nothing(bundle):
    steps = []

    def interrupt(step):
        steps.append(step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Machine(on_step=interrupt).open(bundle)
    assert steps == [0, 1]
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(bundle.with_name("toy.engines").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_killed_build_leaves_nothing_half_written_and_the_old_engine_stays(bundle):
    Machine().open(bundle)
    before = {path: path.read_bytes() for path in bundle.with_name("toy.engines").rglob("*") if path.is_file()}
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from standins.trt_bundles import Machine
def slow(step):
    print("building", flush=True)
    time.sleep(60)
Machine(version="11.5.0", on_step=slow).open({str(bundle)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        process.kill()
    time.sleep(0.05)
    after = {path: path.read_bytes() for path in bundle.with_name("toy.engines").rglob("*") if path.is_file()}
    assert after == before
    assert Machine().open(bundle).built_because == ""


def test_a_failure_while_storing_leaves_the_old_engine(bundle, monkeypatch):
    Machine().open(bundle)
    before = (engine_folder(bundle) / "engine.plan").read_bytes()
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, content: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OutputError, match="No space left"):
        Machine(version="11.5.0").open(bundle)
    assert (engine_folder(bundle) / "engine.plan").read_bytes() == before
    assert [path.name for path in bundle.with_name("toy.engines").iterdir() if path.name.startswith(".")] == []


def test_a_flavour_that_is_missing_or_too_old_names_the_extra(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"neither tensorrt nor tensorrt-rtx.*coupled-sampling\[tensorrt-rtx\]"):
        find_flavour()
    with pytest.raises(MissingDependency, match=r"coupled-sampling\[tensorrt\]"):
        find_flavour("tensorrt")
    with pytest.raises(InvalidArgument, match="flavour is 'cudnn'"):
        find_flavour("cudnn")
    monkeypatch.setitem(sys.modules, "tensorrt", Machine(version="10.9.0").trt)
    with pytest.raises(MissingDependency, match=r"tensorrt is 10\.9\.0, expected 10\.16 or more"):
        find_flavour()
    monkeypatch.setitem(sys.modules, "tensorrt", Machine(version="10.16.1").trt)
    assert find_flavour().version == "10.16.1"


def test_importing_the_package_loads_no_runtime():
    heavy = "{'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx', 'torch'}"
    code = f"import sys, coupled_sampling.backends.trt; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_converted_graph_has_narrow_weights_and_caches_and_wide_logits(bundle, precision):
    model = load_graph(bundle / "window.onnx")
    convert_graph(model, precision)
    onnx.checker.check_model(model, full_check=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    narrow = {"float16": 10, "bfloat16": 16}[precision]
    assert {kind for name, kind in kinds.items() if "key" in name or "value" in name} == {narrow}
    assert (kinds["logits"], kinds["input_ids"]) == (1, 7)
    assert {tensor.data_type for tensor in model.graph.initializer} == {narrow, 7}
    convert_graph(model, precision)  # nothing is left to do


def test_a_float16_engine_gives_nearly_the_logits_of_float32(bundle):
    machine = Machine()
    tokens, start = np.array([[1, 2, 3, 4]]), np.zeros(1, np.int64)
    expected = machine.open(bundle).forward(tokens, start)[..., :8]
    narrow = machine.open(bundle, precision="float16")
    difference = np.abs(narrow.forward(tokens, start)[..., :8] - expected).max()
    assert 0 < difference < 0.05
    assert narrow._runner.memories["past_key_values.0.key"].size == 3 * 2 * 44 * 4 * 2


def test_weights_beyond_the_range_of_a_precision_are_refused(bundle):
    model = load_graph(bundle / "window.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = 70000
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(
        InvalidArgument, match=r"weight 'head\.weight' reaches 70000, float16 ends at 65504; use precision='bfloat16'"
    ):
        convert_graph(model, "float16")


def test_a_graph_exported_in_another_type_is_refused(bundle):
    model = load_graph(bundle / "window.onnx")
    convert_graph(model, "float16")
    with pytest.raises(InvalidArgument, match="precision is 'float32', but the graph was exported in float16"):
        convert_graph(model, "float32")


@pytest.mark.parametrize(
    ("method", "wide"),
    [("ar", False), ("sjd", True), ("scd-maximal", True), ("scd-gumbel", True), ("scd-match", False)],
)
def test_step_graphs_with_float64_are_refused(method, wide):
    path = open_bundle("fashion").step_graph(method)
    if path is None:
        pytest.skip("fashion has no step graph for this method")
    model = load_graph(path)
    assert (uses_float64(model) is not None) == wide
    if wide:
        with pytest.raises(InvalidArgument, match=r"float64 in .*TensorRT has no float64.*OrtStep"):
            convert_graph(model, "float32")


def test_the_python_of_the_guide_runs_on_the_stand_ins(tmp_path, monkeypatch):
    page = ROOT.joinpath("docs", "tensorrt.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    machine, rtx = Machine(), Machine(flavour="tensorrt-rtx")
    monkeypatch.setattr("coupled_sampling.backends.trt.runner.find_flavour", lambda name: machine.flavour)
    monkeypatch.setattr("coupled_sampling.backends.trt.find_flavour", lambda name: rtx.flavour)
    monkeypatch.setattr("coupled_sampling.backends.cuda.driver._require_bindings", lambda: machine.cuda)
    monkeypatch.setattr("coupled_sampling.backends.cuda.compile.require_nvrtc", lambda: None)
    monkeypatch.setattr("coupled_sampling.backends.cuda.pinned_launcher.compile_kernels", lambda *_: b"")
    monkeypatch.chdir(tmp_path)
    names, made = {}, []
    with EmulationLauncher(PLAIN) as emulator:
        machine.cuda.emulator = emulator
        for block in blocks:
            exec(block.replace("length=196", "length=20"), names)
            made.append([len(row) for row in names["pictures"].tokens])
    assert made == [[20] * 4] * 4
    assert names["reason"].startswith("there is no engine")
    assert len(list((tmp_path / "engines").glob("window-*"))) == 3
    assert len(list((tmp_path / "engines").glob("step_scd_match_tensorrt-*"))) == 1
