"""Step graphs in bundles: written, found by the command line, and refused where they cannot be."""

import dataclasses
import json
import shutil

import pytest

from coupled_sampling.bundles.manifest import TreeGraph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from coupled_sampling.export import add_step_graphs
from coupled_sampling.export.graphs import checked_apart
from coupled_sampling.export.graphs.decision import STEP_METHODS
from standins.toy_bundles import toy_gpt, write_toy_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def plain(tmp_path):
    """`fashion` as exporters wrote it before step graphs: weights inside the window graph, format 1."""
    embedded, folder = open_bundle("fashion"), tmp_path / "plain"
    folder.mkdir()
    onnx.save(onnx.load(embedded.window_graph), folder / "window.onnx")
    shutil.copy(embedded.pixel_graph, folder)
    document = json.loads((embedded.folder / "manifest.json").read_text())
    document |= {"format_version": 1, "files": {}}
    del document["step_graphs"], document["corrections"], document["tree_graph"], document["causal_graph"]
    for path in folder.iterdir():
        record = file_record(path)
        document["files"][path.name] = {"sha256": record.sha256, "bytes": record.bytes}
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def test_weights_are_stored_once_and_the_source_is_left_alone(plain, tmp_path):
    before = {path.name: path.read_bytes() for path in plain.iterdir()}
    made = add_step_graphs(plain, tmp_path / "made")
    assert {path.name: path.read_bytes() for path in plain.iterdir()} == before
    sizes = {name: record.bytes for name, record in made.manifest.files.items()}
    assert sizes.pop("weights.bin") > 11e6
    assert max(sizes.values()) < 120_000
    assert {graph.method for graph in made.manifest.step_graphs} == set(STEP_METHODS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "plain"]


def test_what_was_made_is_the_embedded_bundle(plain, tmp_path):
    """So the files in the repository are those that the code in it writes."""
    made = add_step_graphs(plain, tmp_path / "made").manifest
    embedded = open_bundle("fashion").manifest
    assert tuple(graph for graph in made.step_graphs if graph.noise == "ring") == embedded.step_graphs
    tables = {embedded.corrections.file, embedded.corrections.network}
    for_tensorrt = {"step-scd-match-tensorrt.onnx", "step-scd-match-tree-tensorrt.onnx"}
    assert set(made.files) | tables == {*embedded.files, *for_tensorrt}
    for graph in embedded.step_graphs:
        ours, theirs = (
            onnx.load(f / graph.file, load_external_data=False)
            for f in (tmp_path / "made", open_bundle("fashion").folder)
        )
        assert [node.op_type for node in ours.graph.node] == [node.op_type for node in theirs.graph.node]
    assert (made.tree_graph, made.causal_graph) == (embedded.tree_graph, embedded.causal_graph)
    ours, theirs = tmp_path / "made" / made.causal_graph.file, open_bundle("fashion").causal_graph
    assert ours.read_bytes() == theirs.read_bytes()
    assert (tmp_path / "made" / made.tree_graph.file).read_bytes() == open_bundle("fashion").tree_graph.read_bytes()


def test_the_leanest_graph_that_can_is_chosen(plain, tmp_path):
    made = add_step_graphs(plain, tmp_path / "made", ["sjd"])
    assert made.step_graph("sjd").name == "step-sjd.onnx"
    assert made.step_graph("sjd", warped=True).name == "step-sjd-warped.onnx"
    assert made.step_graph("sjd", guided=True).name == "step-sjd-warped-guided.onnx"
    assert made.step_graph("ar") is None


def test_scd_match_has_a_graph_for_tensorrt_that_is_chosen_only_if_asked_for(plain, tmp_path):
    made = add_step_graphs(plain, tmp_path / "made", ["scd-match", "scd-gumbel"])
    assert made.step_graph("scd-match").name == "step-scd-match.onnx"
    assert made.step_graph("scd-match", noise="window").name == "step-scd-match-tensorrt.onnx"
    assert made.step_graph("scd-gumbel", noise="window") is None
    for_tensorrt = [str(graph) for graph in made.manifest.step_graphs if graph.noise == "window"]
    assert for_tensorrt == ["scd-match for TensorRT", "scd-match for trees for TensorRT"]
    model = onnx.load(made.folder / "step-scd-match-tensorrt.onnx", load_external_data=False)
    assert {entry.key: entry.value for entry in model.metadata_props}["noise"] == "window"


def test_a_window_graph_of_another_writing_gets_no_graph_for_trees_and_keeps_the_one_it_has(tmp_path):
    def of_another(model):
        model.ClearField("metadata_props")

    plain = write_toy_bundle(tmp_path / "plain", toy_gpt(12), max_window=12, change=of_another)
    made = add_step_graphs(plain, tmp_path / "made", ["ar"])
    assert (made.tree_graph, made.manifest.tree_graph) == (None, None)
    content = (plain / "window.onnx").read_bytes()  # any graph will do
    (made.folder / "branches.onnx").write_bytes(content)
    files = {**made.manifest.files, "branches.onnx": file_record(made.folder / "branches.onnx")}
    tree = TreeGraph("branches.onnx", 20)
    write_manifest(made.folder, dataclasses.replace(made.manifest, files=files, tree_graph=tree))
    again = add_step_graphs(made.folder, tmp_path / "again", ["ar"])
    assert (again.manifest.tree_graph, again.tree_graph.read_bytes()) == (tree, content)


def test_inspect_says_whether_there_is_a_graph_for_trees(plain, capsys):
    said = []
    for model in ("fashion", str(plain)):
        assert main(["inspect", model]) == 0
        said += [line.split(maxsplit=2)[2] for line in capsys.readouterr().out.splitlines() if line.startswith("tree")]
    assert said == ["window-tree.onnx, 480 columns", "none"]


def test_graphs_of_other_methods_stay_and_a_bundle_may_be_replaced(plain, tmp_path):
    add_step_graphs(plain, tmp_path / "made", ["sjd"])
    with pytest.raises(OutputError, match="it exists"):
        add_step_graphs(tmp_path / "made", tmp_path / "made", ["ar"])
    made = add_step_graphs(tmp_path / "made", tmp_path / "made", ["ar"], force=True)
    assert {graph.method for graph in made.manifest.step_graphs} == {"sjd", "ar"}
    again = add_step_graphs(made, tmp_path / "made", ["ar"], force=True)
    assert len(again.manifest.step_graphs) == len(made.manifest.step_graphs)


@pytest.mark.parametrize(
    ("methods", "message"),
    [(["speculative"], "has no step graph; expected some of ar"), ([], "methods is empty"), (["x"], "method is 'x'")],
)
def test_methods_without_a_graph_are_refused_and_nothing_is_left(plain, tmp_path, methods, message):
    with pytest.raises(InvalidArgument, match=message):
        add_step_graphs(plain, tmp_path / "made", methods)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_folder_that_is_no_bundle_is_never_replaced(plain, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="it is no bundle"):
        add_step_graphs(plain, tmp_path / "mine", force=True)


def figures(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_command_line_uses_the_graph_by_itself_and_says_when_it_cannot(plain, tmp_path, capsys, monkeypatch):
    assert main(["step-graphs", str(plain), str(tmp_path / "made"), "--methods", "scd-gumbel"]) == 0
    assert "step-scd-gumbel-warped.onnx" in capsys.readouterr().out
    settings = ["--count", "1", "--prompt", "bag", "--out", str(tmp_path / "p.png"), "--method"]
    trace = ["--trace", str(tmp_path / "t.json")]
    tokens = {}
    for step in ("graph", "host", "auto"):
        figures(capsys, "generate", str(tmp_path / "made"), *settings, "scd-gumbel", "--step", step, *trace)
        tokens[step] = json.loads((tmp_path / "t.json").read_text())["sequences"][0]["tokens"]
    assert tokens["graph"] == tokens["host"] == tokens["auto"]

    def refuse(*arguments, **named):
        raise InvalidArgument("opened a step graph")

    monkeypatch.setattr("coupled_sampling.backends.ort.cpu.step_of_bundle", refuse)
    auto = ["generate", str(tmp_path / "made"), *settings]
    assert main([*auto, "scd-gumbel"]) == 2
    assert "opened a step graph" in capsys.readouterr().err
    assert main([*auto, "scd-gumbel", "--step", "host"]) == 0
    assert main([*auto, "sjd"]) == 0
    assert main([*auto, "sjd", "--step", "graph"]) == 2
    assert "no step graph for sjd, it has scd-gumbel, scd-gumbel warped" in capsys.readouterr().err


def test_guided_generation_by_graph_is_that_of_the_host(tmp_path, capsys):
    made = []
    for step in ("graph", "host"):
        figures(capsys, "generate", "--count", "2", "--guidance", "1.5", "--top-k", "40", "--step", step,
                "--out", str(tmp_path / "p.png"), "--trace", str(tmp_path / "t.json"))  # fmt: skip
        made.append([s["tokens"] for s in json.loads((tmp_path / "t.json").read_text())["sequences"]])
    assert made[0] == made[1]


def damaged(folder, content):
    (folder / "window.onnx").write_bytes(content)
    document, record = json.loads((folder / "manifest.json").read_text()), file_record(folder / "window.onnx")
    document["files"]["window.onnx"] = {"sha256": record.sha256, "bytes": record.bytes}
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    "spoil", [lambda whole: whole[: len(whole) // 2], lambda whole: b"\xff" + whole, lambda whole: b"x" * 99]
)
def test_a_graph_that_is_none_is_refused_in_one_line(plain, tmp_path, capsys, spoil):
    damaged(plain, spoil((plain / "window.onnx").read_bytes()))
    assert main(["step-graphs", str(plain), str(tmp_path / "made")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "window.onnx is no ONNX graph" in said
    assert not (tmp_path / "made").exists()


def test_what_onnx_says_of_a_wrong_graph_is_one_line(plain, tmp_path):
    model = onnx.load(plain / "window.onnx")
    model.graph.node[5].op_type = "Mystery\nof two lines"
    with pytest.raises(BundleError, match=r"no valid ONNX graph: .*Mystery of two lines") as caught:
        add_step_graphs(damaged(plain, model.SerializeToString()), tmp_path / "made", ["ar"])
    assert "\n" not in str(caught.value)


def test_a_graph_that_brings_the_checker_down_brings_nothing_else_down(plain, tmp_path, monkeypatch):
    """As some graphs do, another in every version of onnx: here the checker is one that always falls."""
    monkeypatch.setattr(checked_apart, "_PROGRAM", "import os; os.abort()")
    with pytest.raises(BundleError, match=r"window\.onnx, step-ar\.onnx.*ends with -6"):
        add_step_graphs(plain, tmp_path / "made", ["ar"])
    assert not (tmp_path / "made").exists()
