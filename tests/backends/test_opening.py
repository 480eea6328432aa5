"""`open_model` and `Place`: every back end by its name, on stand-ins for CUDA, TensorRT and ``onnxruntime-gpu``.

Nothing ran on a GPU.
"""

import dataclasses
import doctest
import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from coupled_sampling import GuidedProvider, HostStep, generate
from coupled_sampling.backends import (
    BACKENDS,
    ConcatenatedProvider,
    OrtProvider,
    OrtStep,
    Place,
    check_model,
    open_model,
)
from coupled_sampling.backends import opening as opening_module
from coupled_sampling.backends import place as place_module
from coupled_sampling.backends.place import back_end
from coupled_sampling.backends.trt import TrtProvider, TrtStep
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import Closeable, LogitsProvider, Runs, SaysWhatRuns, what_runs
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.testing import TableProvider, random_table

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
gpu_machine = pytest.importorskip("standins.gpu_machine")
trt_bundles = pytest.importorskip("standins.trt_bundles")

RAN, CAPTURING = gpu_machine.RAN, gpu_machine.CAPTURING
GPU = ("cuda", "tensorrt", "tensorrt-rtx")
SETTINGS = {"length": 12, "window": 4, "drafting": "repeat", "seed": 5}
PROMPTS = [[8], [3, 1]]


@pytest.fixture
def bundle(tmp_path):
    return trt_bundles.write_bundle(tmp_path / "toy")


@pytest.fixture
def stepping(tmp_path):
    """A bundle with step graphs for ``scd-match``, TensorRT's among them, and for ``sjd``."""
    return trt_bundles.write_bundle(tmp_path / "stepping", steps=["scd-match", "sjd"])


@pytest.fixture
def machine(monkeypatch):
    with gpu_machine.gpu_machine(monkeypatch) as found:
        yield found


def tokens_of(model, **settings):
    return [row.tolist() for row in generate(model, PROMPTS, **SETTINGS, **settings).tokens]


def with_layout(bundle):
    opened = open_bundle(bundle)
    return dataclasses.replace(
        opened, manifest=dataclasses.replace(opened.manifest, layout=(Span(0, 4, 3), Span(4, 4, 3)))
    )


@pytest.mark.parametrize("backend", ["cpu", *GPU])
def test_a_provider_is_opened_by_name(machine, bundle, backend):
    with open_model(bundle, Place(backend), 2) as provider:
        assert isinstance(provider, LogitsProvider)
        gpu = {} if backend == "cpu" else {"device": 0, "cuda_graphs": backend in CAPTURING}
        assert provider.runs == Runs(RAN[backend], **gpu, step="host")
        assert provider.batch_size == 2
        tokens, start = np.random.default_rng(0).integers(0, 11, (2, 5)), np.zeros(2, np.int64)
        expected = OrtProvider.open(bundle, 2, threads=1).forward(tokens, start)
        np.testing.assert_allclose(provider.forward(tokens, start), expected, atol=2e-5)


@pytest.mark.parametrize("step", ["host", "kernels", "auto"])
@pytest.mark.parametrize("backend", GPU)
def test_a_step_is_opened_by_name(machine, bundle, backend, step):
    with open_model(bundle, Place(backend), 2, method="scd-gumbel", step=step) as model:
        where = "host" if step == "host" else "kernels"
        assert model.runs == Runs(RAN[backend], 0, backend in CAPTURING, where)
        assert check_model(bundle, Place(backend), 2, method="scd-gumbel", step=step) == where
        assert tokens_of(model) == tokens_of(OrtProvider.open(bundle, 2), method="scd-gumbel")
        assert machine.cuda.waits == [], "model and decision are on one stream, or the model is done"


@pytest.mark.parametrize("backend", ["cpu", *GPU])
def test_a_step_graph_is_opened_by_name(machine, stepping, backend):
    with open_model(stepping, Place(backend, max_window=4), 2, method="scd-match", step="graph") as model:
        gpu = {} if backend == "cpu" else {"device": 0, "cuda_graphs": backend in CAPTURING}
        assert model.runs == Runs(RAN[backend], **gpu, step="graph")
        assert tokens_of(model) == tokens_of(OrtProvider.open(stepping, 2), method="scd-match")


@pytest.mark.parametrize("step", ["host", "graph"])
def test_guidance_runs_two_rows_for_each(step):
    prompts, settings = [[258], [259]], {"length": 20, "window": 8, "seed": 1}
    with open_model("fashion", Place(threads=1), 2, method="sjd", step=step, guidance=2.0, corrections="none") as model:
        assert (model.batch_size, model.runs.step) == (2, step)
        found = generate(model, prompts, **settings).tokens
    with open_model("fashion", Place(threads=1), 2, guidance=2.0) as provider:
        assert isinstance(provider, GuidedProvider)
        assert (provider.batch_size, provider.provider.batch_size) == (2, 4)
        expected = generate(provider, prompts, method="sjd", **settings).tokens
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]


def test_auto_is_the_step_graph_on_the_cpu_where_there_is_one_and_kernels_on_a_gpu(machine, stepping, bundle):
    assert check_model(stepping, method="sjd") == "graph"
    assert check_model(stepping, method="scd-gumbel") == check_model(bundle, method="sjd") == "host"
    assert check_model(stepping, method="sjd", warped=True) == "graph"
    for backend in GPU:
        assert check_model(stepping, Place(backend), method="sjd") == "kernels"
        assert check_model(with_layout(stepping), Place(backend), method="sjd") == "host"
    assert check_model(with_layout(stepping), method="sjd") == "host"
    assert check_model(bundle) == "host"


# What is closed gives everything back.


@pytest.mark.cases(3)
@pytest.mark.parametrize("step", ["provider", "host", "kernels", "graph"])
@pytest.mark.parametrize("backend", GPU)
def test_nothing_is_kept_on_the_gpu_by_what_was_closed(machine, stepping, backend, step):
    wanted = {} if step == "provider" else {"method": "scd-match", "step": step}
    model = open_model(stepping, Place(backend), 2, **wanted)
    tokens_of(model, **({} if wanted else {"method": "scd-match"}))
    assert machine.cuda.live()
    model.close()
    gc.collect()
    assert machine.cuda.live() == []
    assert machine.onnxruntime.memory == {}
    model.close()
    assert model.runs.execution_provider == RAN[backend], "it still says what it ran on"


@pytest.mark.parametrize("settings", [{}, {"method": "sjd", "step": "host"}, {"method": "sjd", "step": "graph"}])
def test_what_was_closed_says_so(stepping, settings):
    model = open_model(stepping, **settings)
    with model:
        pass
    with pytest.raises(ProviderError, match="was closed and cannot run any more; open the model again"):
        generate(model, [[8]], length=4, window=2)


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_step_that_cannot_be_made_leaves_no_provider_behind(machine, bundle, backend, monkeypatch):
    def fail(capability, threads):
        raise MissingDependency("no compiler")

    monkeypatch.setattr("coupled_sampling.backends.cuda.pinned_launcher.compile_kernels", fail)
    with pytest.raises(MissingDependency, match="no compiler"):
        open_model(bundle, Place(backend), method="sjd")
    gc.collect()
    assert machine.cuda.live() == []


def test_steps_and_guidance_forward_what_runs_and_close_what_they_are_made_of():
    class Provider(TableProvider):
        closed, runs = 0, Runs("abacus", 3)

        def close(self):
            self.closed += 1

    provider = Provider(random_table(0, 4), 4, 2, 20)
    step = HostStep(GuidedProvider(provider, 2.0, [1]), "sjd")
    assert isinstance(step, Closeable)
    assert str(step.runs) == "on abacus (GPU 3), step: host"
    assert step.runs.record() == {
        "execution_provider": "abacus",
        "device": 3,
        "cuda_graphs": False,
        "step": "host",
        "changes": "",
        "corrections": "",
        "window_graph": "",
    }
    with step:
        pass
    assert provider.closed == 1


def test_a_provider_that_does_not_say_what_runs_it_gives_its_class():
    table = TableProvider(random_table(0, 4), 4, 1, 20)
    assert not isinstance(table, SaysWhatRuns)
    assert what_runs(table) == HostStep(table).runs == Runs("TableProvider")
    HostStep(table).close()  # there is nothing to close


# What cannot work is refused before anything is opened.


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"backend": "gpu"}, "backend is 'gpu', expected one of cpu, cuda, tensorrt, tensorrt-rtx"),
        ({"max_window": 0}, "max_window is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"backend": "tensorrt-rtx", "threads": 1}, "threads is 1, but backend 'tensorrt-rtx' runs nothing on the CPU"),
        ({"backend": "cuda", "engines": "x"}, "engines is 'x', but backend 'cuda' builds none; leave it out"),
        ({"backend": "cuda", "device": -1}, "device is -1, expected the number of a GPU, from 0"),
        ({"backend": "cuda", "device": True}, "device is True, expected an integer"),
        ({"device": 0}, "device is 0, but backend 'cpu' runs on no GPU; .* choose one of cuda, tensorrt, tensorrt-rtx"),
        ({"backend": "cuda", "cuda_graphs": "yes"}, "cuda_graphs is 'yes', expected True or False"),
        (
            {"backend": "ort", "provider": "webgpu", "cuda_graphs": True},
            "backend 'ort' has no CUDA graphs; leave it out",
        ),
        (
            {"cuda_graphs": False},
            "cuda_graphs is False, but backend 'cpu' has no CUDA graphs; .* choose one of cuda, tensorrt",
        ),
    ],
)
def test_a_place_that_cannot_be_is_refused_when_it_is_made(settings, match):
    with pytest.raises(InvalidArgument, match=match):
        Place(**settings)


def test_a_place_is_checked_once_and_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Place().device = 0


@pytest.mark.parametrize(
    ("place", "settings", "match"),
    [
        ("cpu", {}, "place is 'cpu', expected a Place, such as"),
        (Place(), {"rows": 0}, "rows is 0"),
        (Place(), {"method": "magic"}, "method is 'magic'"),
        (Place(), {"method": "sjd", "step": "gpu"}, "step is 'gpu', expected one of auto, host, graph, kernels"),
        (Place(), {"step": "graph"}, "step is 'graph', but method is None"),
        (Place("cuda"), {"step": "kernels"}, "step is 'kernels', but method is None"),
        (
            Place(),
            {"method": "sjd", "step": "kernels"},
            "step is 'kernels', but backend is 'cpu', .*choose one of cuda",
        ),
        (Place(), {"guidance": float("nan")}, "guidance is nan, expected a finite number"),
        (Place(), {"guidance": 2.0}, "guidance is 2.0, but the bundle toy has no unconditional prompt"),
        (Place("cuda"), {"method": "sjd", "guidance": 2.0}, "no unconditional prompt"),
        (Place(), {"method": "sjd", "step": "graph"}, "no step graph for sjd, it has none; make one with"),
        (
            Place("cuda", cuda_graphs=True),
            {"method": "sjd", "step": "graph"},
            "step graphs of bundles are not captured",
        ),
        (Place("tensorrt"), {"method": "sjd", "step": "graph"}, "method is 'sjd', expected 'scd-match'"),
        (Place("tensorrt"), {"method": "scd-match", "step": "graph", "warped": True}, "warped is True"),
        (Place("tensorrt"), {"method": "scd-match", "step": "graph"}, "no step graph for TensorRT; make one with"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_anything_is(machine, bundle, place, settings, match):
    for refuse in (open_model, check_model):
        with pytest.raises(InvalidArgument, match=match):
            refuse(bundle, place, **settings)
    assert machine.onnxruntime.sessions == []
    assert machine.tensorrt.built == 0


@pytest.mark.parametrize("step", ["graph", "kernels"])
@pytest.mark.parametrize("backend", GPU)
def test_a_layout_needs_the_host(machine, stepping, backend, step):
    with pytest.raises(
        InvalidArgument, match=f"step is '{step}', but the bundle toy has a layout, which needs the host"
    ):
        open_model(with_layout(stepping), Place(backend), method="scd-match", step=step)


@pytest.mark.parametrize("step", ["graph", "kernels"])
def test_what_kernels_need_is_looked_for_before_an_engine_is_built(machine, stepping, monkeypatch, step):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    for refuse in (open_model, check_model):
        with pytest.raises(MissingDependency, match="CUDA kernels need"):
            refuse(stepping, Place("tensorrt"), method="scd-match", step=step)
    assert machine.tensorrt.built == 0


def test_caches_of_an_unknown_type_are_refused_before_anything_is_opened(machine, bundle):
    opened = open_bundle(bundle)
    quarter = dataclasses.replace(opened.manifest.window_graph, dtype="float8e4m3fn")
    spoiled = dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, window_graph=quarter))
    message = "dtype is 'float8e4m3fn', expected one of 'float32', 'float16', 'bfloat16' on CUDAExecutionProvider"
    with pytest.raises(BundleError, match=message):
        open_model(spoiled, Place("cuda"))
    assert machine.onnxruntime.sessions == []


def test_no_class_that_opens_on_one_device_is_a_class_for_another():
    """An opener that is inherited answers with the wrong thing. (Nobody can name the classes that opening itself chooses.)"""
    for kind in (OrtProvider, OrtStep, TrtProvider, TrtStep, ConcatenatedProvider):
        others = [found for found in kind.__subclasses__() if found.__module__.startswith("coupled_sampling")]
        assert all(found.__module__ == kind.__module__ and found.__name__.startswith("_") for found in others)


# Adding a back end.


def test_a_back_end_is_a_module_and_a_line(monkeypatch, bundle):
    class Abacus(TableProvider):
        runs = Runs("abacus")

        def close(self):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def takes(wanted):
        return "an abacus is not warped" if wanted.warped else None

    module = SimpleNamespace(
        SETTINGS={"threads"}, STEPS=("host",), KERNELS=(), TREES=(), takes=takes,
        open=lambda wanted: Abacus(random_table(0, 11), 11, wanted.model_rows, 40),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "abacus", module)
    monkeypatch.setitem(place_module._MODULES, "abacus", "abacus")
    place = Place("abacus", threads=2)
    with pytest.raises(InvalidArgument, match="device is 1, but backend 'abacus' runs on no GPU"):
        Place("abacus", device=1)
    with pytest.raises(InvalidArgument, match=r"step is 'graph', but backend is 'abacus', .*choose one of cpu, cuda"):
        open_model(bundle, place, method="sjd", step="graph")
    with pytest.raises(InvalidArgument, match="an abacus is not warped"):
        open_model(bundle, place, method="sjd", warped=True)
    with open_model(bundle, place, 2, method="sjd") as model:
        assert str(model.runs) == "on abacus, step: host"
        assert [len(row) for row in tokens_of(model)] == [12, 12]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_has_what_a_back_end_has(backend):
    found = back_end(backend)
    assert "host" in found.STEPS
    assert set(found.KERNELS) <= set(found.STEPS) <= {"host", "graph", "kernels"}
    assert set(found.TREES) <= set(found.STEPS)
    assert set(found.SETTINGS) <= {field.name for field in dataclasses.fields(Place)}
    assert callable(found.takes)
    assert callable(found.open)


@pytest.mark.parametrize("module", [opening_module, place_module])
def test_the_examples_run(module):
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
