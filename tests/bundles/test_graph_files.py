"""Every file that a graph of a bundle opens is listed in the manifest, wherever in the graph it is named."""

import json
import shutil

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import graph_files
from coupled_sampling.bundles.graph_files import check_graph_files, external_files
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.errors import BundleError

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")


def external(location, **more):
    """A tensor that lies in another file."""
    tensor = onnx.TensorProto(dims=[4], data_type=onnx.TensorProto.FLOAT, name="w", data_location=1)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def node(**attribute):
    made = onnx.NodeProto(op_type="Constant", name="location")
    made.attribute.add(name="value", **attribute)
    return made


def sparse(**halves):
    return onnx.SparseTensorProto(dims=[4], **halves)


def nested(tensor, depth):
    """A graph within a graph within a graph, with the tensor in the innermost."""
    graph = onnx.GraphProto(initializer=[tensor])
    for _ in range(depth):
        graph = onnx.GraphProto(node=[node(g=graph)])
    return graph


TENSOR = external("w.bin", offset=0, length=16)
PLACES = {
    "initializer": {"graph": onnx.GraphProto(initializer=[TENSOR])},
    "sparse values": {"graph": onnx.GraphProto(sparse_initializer=[sparse(values=TENSOR)])},
    "sparse indices": {"graph": onnx.GraphProto(sparse_initializer=[sparse(indices=TENSOR)])},
    "attribute": {"graph": onnx.GraphProto(node=[node(t=TENSOR)])},
    "one of several attributes": {"graph": onnx.GraphProto(node=[node(tensors=[onnx.TensorProto(), TENSOR])])},
    "sparse attribute": {"graph": onnx.GraphProto(node=[node(sparse_tensor=sparse(values=TENSOR))])},
    "sparse attributes": {"graph": onnx.GraphProto(node=[node(sparse_tensors=[sparse(indices=TENSOR)])])},
    "graph in a node": {"graph": nested(TENSOR, 1)},
    "twenty graphs deep": {"graph": nested(TENSOR, 20)},
    "graphs in a node": {"graph": onnx.GraphProto(node=[node(graphs=[nested(TENSOR, 0)])])},
    "function": {"functions": [onnx.FunctionProto(node=[node(t=TENSOR)])]},
    "default of a function": {"functions": [onnx.FunctionProto(attribute_proto=[{"name": "x", "t": TENSOR}])]},
    "training": {"training_info": [onnx.TrainingInfoProto(algorithm=nested(TENSOR, 0))]},
    "its beginning": {"training_info": [onnx.TrainingInfoProto(initialization=nested(TENSOR, 0))]},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_is_found_wherever_a_tensor_can_be(place, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(onnx.ModelProto(ir_version=10, **PLACES[place]).SerializeToString())
    assert external_files(tmp_path / "graph.onnx") == ["w.bin"]
    with pytest.raises(BundleError, match=r"graph\.onnx opens the file 'w\.bin', which the manifest does not list"):
        check_graph_files(tmp_path, "graph.onnx", ["graph.onnx", "other.bin"])
    check_graph_files(tmp_path, "graph.onnx", ["graph.onnx", "w.bin"])


def test_the_table_of_messages_is_that_of_onnx():
    """Every field that leads to external data, from ONNX's own description of itself."""
    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()
    leads = {"TensorProto": {13: "StringStringEntryProto"}}
    assert onnx.TensorProto.DESCRIPTOR.fields_by_number[13].name == "external_data"
    count = 0
    while count < len(leads):
        count = len(leads)
        for message in messages:
            fields = {f.number: f.message_type.name for f in message.fields if f.message_type is not None}
            if inside := {number: name for number, name in fields.items() if name in leads}:
                leads[message.name] = inside
    assert leads == graph_files._INSIDE


def test_a_word_at_any_place_of_a_large_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_files, "_CHUNK", 64)
    for padding in range(70):
        doc = "x" * padding
        model = onnx.ModelProto(doc_string=doc, graph=onnx.GraphProto(initializer=[TENSOR, external("v.bin"), TENSOR]))
        (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
        assert external_files(tmp_path / "graph.onnx") == ["w.bin", "v.bin"]


def test_what_is_no_location_is_none(tmp_path):
    tensor = external("w.bin")
    tensor.external_data[0].key = "checksum"
    tensor.raw_data = b"location" + TENSOR.SerializeToString()
    graph = onnx.GraphProto(name="location", doc_string=str(TENSOR), initializer=[tensor])
    model = onnx.ModelProto(graph=graph, metadata_props=[{"key": "location", "value": "elsewhere"}])
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "graph.onnx") == []


def test_the_value_may_come_before_its_key_and_the_last_one_counts(tmp_path):
    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    entry = field(2, b"first.bin") + field(2, b"w.bin") + field(1, b"location")
    graph = field(5, field(13, entry))
    (tmp_path / "graph.onnx").write_bytes(
        bytes([7 << 3 | 2 | 0x80, 0]) + bytes([len(graph)]) + graph
    )  # a tag in two bytes
    assert external_files(tmp_path / "graph.onnx") == ["w.bin"]


def test_a_damaged_graph_is_refused_in_one_line(tmp_path):
    path = tmp_path / "graph.onnx"
    whole = onnx.ModelProto(ir_version=10, **PLACES["twenty graphs deep"]).SerializeToString()
    for length in range(len(whole) - 30, len(whole)):
        path.write_bytes(whole[:length])
        if b"location" in whole[:length]:
            with pytest.raises(BundleError, match=r"graph\.onnx names files outside it and is no whole ONNX graph"):
                external_files(path)
    for damage in (
        b"\x3a\xff\xff\xff\xff\x0flocation",
        b"\x3b" + b"location",
        b"\x00location",
        b"\xff" * 12 + b"location",
    ):
        path.write_bytes(damage)
        with pytest.raises(BundleError, match="no whole ONNX graph"):
            external_files(path)
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[external("x")])).SerializeToString())
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleError, match="no whole ONNX graph"):
        external_files(path)


@pytest.mark.parametrize("limit", ["_MOST_WORDS", "_MOST_FIELDS"])
def test_a_graph_of_endless_names_or_fields_is_refused(tmp_path, monkeypatch, limit):
    path = tmp_path / "graph.onnx"
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[TENSOR] * 10)).SerializeToString())
    monkeypatch.setattr(graph_files, limit, 9)
    with pytest.raises(BundleError, match="more than 9"):
        external_files(path)


@pytest.mark.parametrize("location", ["../w.bin", "/w.bin", "./window.onnx", "", "WINDOW.ONNX", "*/_ORT_MEM_ADDR_/*"])
def test_only_listed_names_are_opened(tmp_path, location):
    (tmp_path / "window.onnx").write_bytes(
        onnx.ModelProto(graph=onnx.GraphProto(initializer=[external(location)])).SerializeToString()
    )
    with pytest.raises(BundleError, match="which the manifest does not list"):
        check_graph_files(tmp_path, "window.onnx", ["window.onnx"])


def test_weights_lie_in_the_folder_or_where_the_graph_lies(tmp_path):
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    (cache / "1").write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[TENSOR])).SerializeToString())
    (cache / "2").write_bytes(bytes(16))
    (home / "w.bin").symlink_to("../cache/2")
    shutil.copyfile(cache / "1", home / "graph.onnx")
    with pytest.raises(BundleError, match=r"w\.bin is a link to another place, and graph\.onnx opens it"):
        check_graph_files(home, "graph.onnx", ["w.bin"])
    (home / "graph.onnx").unlink()
    (home / "graph.onnx").symlink_to("../cache/1")
    check_graph_files(home, "graph.onnx", ["w.bin"])


def test_graphs_in_the_format_of_onnx_runtime_are_refused(tmp_path):
    with pytest.raises(BundleError, match="ONNX Runtime's own format"):
        check_graph_files(tmp_path, "window.ORT", [])


@pytest.mark.parametrize("role", ["window_graph", "pixel_graph", "tree_graph", "step_graphs"])
def test_a_bundle_with_weights_that_are_not_listed_is_not_opened(tmp_path, role):
    folder = tmp_path / "bundle"
    shutil.copytree(open_bundle("fashion").folder, folder)
    document = json.loads((folder / "manifest.json").read_text())
    record = document[role][3] if role == "step_graphs" else document[role]
    path = folder / record["file"]
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(external("more.bin"))
    (folder / "more.bin").write_bytes(bytes(16))
    onnx.save(model, path)
    document["files"][path.name] = vars(file_record(path))
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=rf"{path.name} opens the file 'more\.bin'"):
        open_bundle(folder)
    document["files"]["more.bin"] = vars(file_record(folder / "more.bin"))
    (folder / "manifest.json").write_text(json.dumps(document))
    assert open_bundle(folder).manifest.name == "fashion"
