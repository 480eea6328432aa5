"""Commands given an ONNX file or a folder of somebody else's in the place of a bundle."""

import json

import pytest

from standins.foreign_folders import genai_folder, optimum_folder, transformers_js_folder
from standins.grown_cache_graphs import VOCABULARY, optimum
from standins.quantised_graphs import quantised

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return transformers_js_folder(tmp_path_factory.mktemp("foreign") / "model")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """As most packages of npm: nothing but a dynamically quantised graph."""
    home = tmp_path_factory.mktemp("dynamic")
    return optimum_folder(
        home / "model", "onnx/model_quantized.onnx", lambda path: quantised(optimum(home / "float.onnx"), path)
    )


def test_inspect_says_what_it_is(command, folder):
    code, out, error = command("inspect", folder)
    assert (code, error) == (0, "")
    assert "graph:         onnx/model.onnx, opset 18, float32, 2 layers" in out
    assert "cache:         2 x 2 x (rows, 2, growing, 16)" in out
    assert "temperature 0.7, top_k 11, top_p 0.9" in out
    code, out, _ = command("inspect", folder / "onnx" / "model.onnx", "--json")
    assert json.loads(out)["window_graph"]["file"] == "onnx/model.onnx"


def test_generate_prints_a_text(command, folder, tmp_path):
    trace = tmp_path / "trace.json"
    code, out, _ = command("generate", folder, "--prompt", "w5 w6", "--length", 7, "--beside-ar", "--trace", trace)
    assert code == 0
    assert "scd-match: 1 sequences" in out
    (sequence,) = json.loads(trace.read_text())["sequences"]
    assert sequence["prompt"] == [1, 5, 6]
    code, _, _ = command("generate", folder, "--chat", "--prompt", "w5", "--length", 3, "--trace", trace)
    assert code == 0
    (sequence,) = json.loads(trace.read_text())["sequences"]
    assert sequence["prompt"] == [1, 0, 5]  # <s> user w5: the tokenizer knows no user


def test_compare_and_verify_take_it(command, folder):
    common = ("--prompt", "w5", "--length", 10, "--seed", 1)
    code, out, _ = command("compare", folder, *common, "--count", 3, "--methods", "scd-match", "--json")
    assert code == 0
    assert [row["identical_to_ar"] for row in json.loads(out)] == [True, True]
    sharp = ("--samples", 250, "--positions", 3, "--after", 1, "--drafting", "random")
    code, out, _ = command("verify", folder, *common, *sharp, "--methods", "scd-maximal", "--json")
    assert code == 0, out
    assert json.loads(out)[0]["verdict"] == "no difference seen"


def test_a_dynamically_quantised_model_is_refused_in_one_line_and_widened(command, dynamic):
    asked = ("generate", dynamic, "--prompt", "w5", "--length", 5)
    code, out, error = command(*asked)
    assert (code, out.strip(), error.count("\n")) == (2, "", 1)
    assert "the cause is DynamicQuantizeLinear (5 of them)" in error
    assert "add --widen" in error
    code, out, _ = command(*asked, "--widen", "--json")
    assert code == 0
    assert json.loads(out)["methods"][0]["changes"] == "9 quantised products widened to float32"
    for more, said in (((), "refused when it is to decode"), (("--widen",), "9 quantised products widened")):
        assert said in command("inspect", dynamic, *more)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "fashion", "--widen"), "is a bundle, whose activations are never quantised"),
        (("inspect", "{folder}", "--widen"), "no activations that are quantised per call"),
        (("generate", "{folder}", "--prompt", "w5", "--backend", "tensorrt"), "it runs with cpu only"),
        (("generate", "{folder}"), "give one with --prompt"),
        (("step-graphs", "{folder}", "{out}"), "is no bundle"),
        (("export", "{folder}", "{out}"), "holds ONNX graphs"),
        (("export", "{folder}/onnx/model.onnx", "{out}"), "is an ONNX graph"),
        (("inspect", "{folder}/onnx/other.onnx"), "no bundle"),
    ],
)
def test_what_cannot_be_is_one_line(command, folder, tmp_path, arguments, message):
    code, _, error = command(*(part.format(folder=folder, out=tmp_path / "out") for part in arguments))
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_a_genai_folder_opens_by_its_configuration(command, tmp_path):
    code, out, _ = command("inspect", genai_folder(tmp_path / "model"), "--json")
    assert code == 0
    assert json.loads(out)["vocab_size"] == VOCABULARY


def test_a_file_alone_is_opened_with_a_length_and_damage_is_said_first(tmp_path, command):
    alone, damaged = tmp_path / "alone.onnx", tmp_path / "damaged.onnx"
    optimum(alone)
    damaged.write_text("no graph")
    code, _, error = command("inspect", alone)
    assert (code, "--max-length" in error) == (2, True)
    code, _, error = command("inspect", damaged)
    assert (code, "cannot load" in error) == (2, True)
    code, shown, _ = command("inspect", alone, "--max-length", 9)
    assert (code, "9 per row" in shown) == (0, True)
    code, _, error = command("inspect", "fashion", "--max-length", 9)
    assert (code, "is a bundle, which says how many positions it has" in error) == (2, True)


def test_tables_cannot_be_fitted_to_it_and_that_is_said_at_once(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in ([], ["--out", "copy"]):
        code, _, error = command("fit-corrections", folder, "--prompt", "w5 w6", *where)
        assert code == 2
        assert "somebody else's" in error
    assert not list(tmp_path.iterdir())


def test_plain_corrections_learn_of_it_and_there_is_no_fitted_table(command, folder):
    asked = ["generate", folder, "--prompt", "w5 w6", "--length", 12, "--method", "scd-match", "--corrections"]
    (code, plain, _), (_, none, _) = command(*asked, "plain"), command(*asked, "none")
    assert code == 0
    assert "corrections: RunningAverages" in plain
    texts = [said.rpartition("scd-match: ")[0] for said in (plain, none)]
    assert texts[0] == texts[1] != ""  # acceptance by match: the same tokens
    code, _, error = command(*asked, "fitted")
    assert code == 2
    assert "has no table" in error
