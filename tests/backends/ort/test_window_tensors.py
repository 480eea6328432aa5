"""The one table of a window graph's tensors, against a graph and against what is allocated."""

import pytest

from coupled_sampling.backends.trt.build import least_memory
from coupled_sampling.backends.window_tensors import window_tensors
from coupled_sampling.bundles.opening import open_bundle
from standins.trt_bundles import Machine, write_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_bundle(tmp_path_factory.mktemp("tensors") / "toy"))


@pytest.mark.parametrize("rows_and_slots", [(3, 5), (1, 1)])
def test_the_table_is_that_of_the_graph(bundle, rows_and_slots):
    rows, slots = rows_and_slots
    graph, sizes = onnx.load(bundle.window_graph).graph, {"B": rows, "W": slots}
    expected = {}
    for values, is_input in ((graph.input, True), (graph.output, False)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            expected[value.name] = (is_input, tuple(sizes.get(dim.dim_param, dim.dim_value) for dim in dims))
    tensors = window_tensors(bundle.manifest)
    assert {name: (tensor.is_input, tensor.shape(rows, slots)) for name, tensor in tensors.items()} == expected


def test_memory_that_is_asked_for_beforehand_is_what_caches_take(bundle, tmp_path):
    provider = Machine().open(bundle, engines=tmp_path)
    taken = sum(m.size for name, m in provider._runner.memories.items() if name.startswith("past_key_values."))
    assert least_memory(bundle, provider.options)["caches"] == taken
    provider.close()
