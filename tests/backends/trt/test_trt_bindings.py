"""The TensorRT backend against the real Python bindings of TensorRT 10, 11 and TensorRT-RTX, without TensorRT.

`trt_bindings` loads the bindings without ``libnvinfer``, and `trt_behind` puts the stand-in behind them, so that every call of our
code passes through TensorRT's own conversion of arguments and results. What TensorRT would do with them is not seen.

What is installed is taken: ``tensorrt_cu13_bindings`` and ``tensorrt-rtx``, both in the extra [dev]. For other versions unpack
their wheels and name the folders, separated by colons, in TENSORRT_BINDINGS.
"""

import ast
import functools
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from standins import ROOT, fake_tensorrt, trt_bindings
from standins.builds import built

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

STANDINS = ROOT / "tests" / "standins"
BACKEND = ROOT / "backends" / "trt"
FOLDERS = {} if trt_bindings.why_not() else trt_bindings.folders()
HARMLESS = {
    # no result that could say so
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.set_flag",
    "IBuilderConfig.set_memory_pool_limit",
    "IExecutionContext.set_device_memory",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    # costs time
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.set_timing_cache",
    "ITimingCache.serialize",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.set_runtime_cache",
    # runs without CUDA graphs
    "IExecutionContext.is_stream_capturable",
}
"""Failures that nobody need be told of."""
OURS = {
    "allocate",
    "append",
    "builder",
    "clear",
    "count",
    "enqueue",
    "file",
    "log",
    "logger",
    "pop",
    "precision",
    "size",
}
OURS |= {"update"}
"""Attributes of our own objects that have the name of something in the bindings."""

if not FOLDERS:
    pytest.skip(
        trt_bindings.why_not() or "no bindings are installed: pip install tensorrt_cu13_bindings==10.16.1.11",
        allow_module_level=True,
    )


def run(*command, **environment):
    """What a Python process of its own writes, with the package and the stand-ins of this folder."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@functools.cache
def report(name):
    """What `trt_behind` reports, whichever of the run's processes asked first."""

    def write(folder):
        (folder / "report.json").write_text(run(STANDINS / "trt_behind.py", FOLDERS[name]), "utf-8")

    folder = built(("trt_behind", FOLDERS[name]), write)
    return json.loads((folder / "report.json").read_text("utf-8"))


@pytest.fixture(params=FOLDERS, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.mark.cases(1)
def test_the_version_is_known(name):
    assert name.endswith(f" {report(name)['described']['version']}")


def test_all_that_is_used_is_in_the_bindings_with_its_arguments(name):
    """The record, of what really passed through them, against the signatures that the bindings document."""
    used = report(name)["used"]
    assert len(used) > 60
    assert trt_bindings.problems(used, report(name)["described"]) == []


def test_the_record_is_complete(name):
    """Every attribute that is written in the backend and is in the bindings was used, but for those of our own objects."""
    described = report(name)["described"]
    known = {member for kind in ("classes", "enumerations") for owner in described[kind].values() for member in owner}
    used = {member for _, member, _ in report(name)["used"]}
    written = {
        node.attr
        for file in ("build", "engine", "messages", "network", "progress")
        for node in ast.walk(ast.parse((BACKEND / f"{file}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    if name.startswith("tensorrt-rtx"):
        of_the_other = {"create_timing_cache", "set_timing_cache"}
    else:
        of_the_other = {"create_runtime_config", "set_execution_context_allocation_strategy"}
    assert written & known - used - OURS == of_the_other


def test_every_failure_is_an_error_of_ours_or_harmless(name):
    """The bindings return None or False, or raise; a ``TypeError`` or ``AttributeError`` of theirs must not come through."""
    failures = report(name)["failures"]
    assert len(failures) > 20
    assert {call for call, outcome in failures.items() if outcome == "nothing"} <= HARMLESS
    wrong = {
        call: outcome
        for call, outcome in failures.items()
        if call not in HARMLESS and not outcome.startswith("EngineError: ")
    }
    assert wrong == {}


def test_our_logger_and_monitor_are_called_through_the_bindings(name):
    used = [tuple(one) for one in report(name)["used"]]
    assert ("ILogger", "log", 2) in used
    for hook, count in (("phase_start", 3), ("step_complete", 2), ("phase_finish", 1)):
        assert ("IProgressMonitor", hook, count) in used


def test_the_stand_in_has_nothing_that_the_bindings_have_not(name):
    described, wrong = report(name)["described"], []
    is_rtx = name.startswith("tensorrt-rtx")
    stand_in = fake_tensorrt.FakeTensorRT(None, rtx=is_rtx, version=described["version"])
    for title, found in {**vars(fake_tensorrt.FakeTensorRT), **vars(stand_in)}.items():
        if title in described["enumerations"] and hasattr(found, "__members__"):
            wrong += trt_bindings.problems([(title, member, "get") for member in found.__members__], described)
        elif hasattr(found, "__members__"):
            wrong.append(f"there is no {title}")
    flag = "STRONGLY_TYPED"
    assert (
        stand_in.NetworkDefinitionCreationFlag[flag] == described["enumerations"]["NetworkDefinitionCreationFlag"][flag]
    )
    compared = 0
    for title, found in vars(fake_tensorrt).items():
        if not isinstance(found, type) or found.__module__ != fake_tensorrt.__name__ or title == "FakeTensorRT":
            continue
        if hasattr(found, "__members__") or (title.startswith("Rtx") and not is_rtx):
            continue
        owner = title.replace("Rtx", "I")
        for member, value in vars(found).items():
            if member.startswith("_") or (member == "create_runtime_config" and not is_rtx):
                continue
            use = len(inspect.signature(value).parameters) - 1 if inspect.isfunction(value) else "get"
            wrong += trt_bindings.problems([(owner, member, use)], described)
            compared += 1
    assert wrong == []
    assert compared > 45


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (("IExecutionContext", "execute_async_v4", 1), "there is no IExecutionContext.execute_async_v4"),
        (("IExecutionContexts", "execute_async_v3", 1), "there is no IExecutionContexts.execute_async_v3"),
        (("IExecutionContext", "execute_async_v3", 2), "IExecutionContext.execute_async_v3 does not take 2 arguments"),
        (
            ("IExecutionContext", "set_device_memory", 1),
            "IExecutionContext.set_device_memory does not take 1 arguments",
        ),
        (("Builder", "create_network", 2), "Builder.create_network does not take 2 arguments"),
        (("ICudaEngine", "create_execution_context", 2), "create_execution_context does not take 2 arguments"),
        (("ICudaEngine", "num_io_tensors", "set"), "ICudaEngine.num_io_tensors cannot be set"),
        (("ICudaEngine", "num_io_tensors", 0), "ICudaEngine.num_io_tensors does not take 0 arguments"),
        (("ICudaEngine", "get_tensor_name", "get"), "ICudaEngine.get_tensor_name is a method"),
        (("LayerType", "ATTENTION", "get"), "LayerType.ATTENTION is no member"),
    ],
)
def test_what_is_not_there_is_noticed(name, use, problem):
    """Negative control of `problems`."""
    (found,) = trt_bindings.problems([use], report(name)["described"])
    assert problem in found


WRONG = {
    "network.num_layers": "2",
    "network.number_of_layers": "AttributeError .*has no attribute 'number_of_layers'",
    "builder.create_network(1, 2)": "TypeError create_network.*incompatible function arguments",
    "builder.create_network('1')": "TypeError create_network.*incompatible function arguments",
    "profile.set_shape('a', ['x'], ['x'], ['x'])": "TypeError set_shape.*incompatible function arguments",
    "trt.BuilderFlag.FP64": "AttributeError .*has no attribute 'FP64'",
    "trt.Bilder": "AttributeError .*has no attribute 'Bilder'",
    "network.num_inputs": "AssertionError the bindings made .* of 'two'",
}
"""Calls and what becomes of them, of a stand-in that takes any arguments and has two inputs in words."""
CALLS = """
import sys
from standins.fake_cuda import FakeCuda
from standins.fake_tensorrt import Builder, FakeTensorRT, INetworkDefinition
from standins.trt_behind import Behind
behind = Behind(sys.argv[1])
trt = behind.module(FakeTensorRT(FakeCuda(), rtx=behind.flavour == "tensorrt-rtx"))
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
builder = trt.Builder(Logger())
profile = builder.create_optimization_profile()
Builder.create_network = lambda self, *anything: INetworkDefinition()
INetworkDefinition.num_layers, INetworkDefinition.num_inputs = 2, "two"
network = builder.create_network(1)
for call in sys.argv[2:]:
    try:
        print(eval(call))
    except Exception as error:
        print(type(error).__name__, str(error).partition("\\n")[0])
"""


def test_what_the_bindings_do_not_take_is_noticed_behind_them(name):
    """Negative control of `trt_behind`."""
    said = run("-c", CALLS, FOLDERS[name], *WRONG).splitlines()
    for (call, expected), found in zip(WRONG.items(), said, strict=True):
        assert re.match(expected, found), call


@pytest.mark.long
def test_the_tests_of_the_backend_pass_behind_the_bindings(name, request):
    """Those of building, of the provider and of the step, without the slowest."""
    if (
        name != next(iter(FOLDERS))
        and request.config.getoption("--coupled-sampling-profile", default=None) != "nightly"
    ):
        pytest.skip("a long test: make test-long runs it behind every version")
    slow = "not (guide or killed or importing or random_calls or after_padding or tokens_of_the or wrong_noise)"
    files = [str(Path(__file__).with_name(f"test_trt_{part}.py")) for part in ("build", "provider", "step")]
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", slow, *files, TENSORRT_BEHIND=FOLDERS[name])
    assert " passed" in said.splitlines()[-1]
