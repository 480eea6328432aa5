"""ONNX Runtime writes nothing to the terminal: its warnings have the names of a stranger's graph in them."""

import pytest

from coupled_sampling.backends.ort.session import open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_names_in_a_graph_reach_no_terminal(tmp_path, capfd):
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (make.make_tensor_value_info(name, kind, [1]) for name in "xy")
    unused = make.make_tensor("\x1b]0;owned\x07", kind, [1], [1.0])
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "graph", [x], [y], [unused])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    open_session(tmp_path / "graph.onnx")
    assert capfd.readouterr() == ("", "")
