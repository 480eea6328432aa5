"""Somebody else's decoder as a bundle: which file of a folder it is, what lies beside it, and what such a bundle cannot do."""

import json
import shutil

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import ConcatenatedProvider, Place, check_model, open_model, open_onnx
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.opset import read_opset
from coupled_sampling.bundles import write_manifest
from coupled_sampling.errors import BundleError, CheckpointError, InvalidArgument, OutputError, ProviderError
from coupled_sampling.export import open_checkpoint
from coupled_sampling.export.step_bundle import add_step_graphs
from standins import ROOT
from standins.foreign_folders import TEMPLATE, genai_folder, optimum_folder, transformers_js_folder, with_symbolic_sizes
from standins.grown_cache_graphs import HEADS, LENGTH, SIZE, VOCABULARY, genai, optimum

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

FOLDERS = {"optimum": optimum_folder, "transformers.js": transformers_js_folder, "genai": genai_folder}
GRAPHS = {"optimum": "model.onnx", "transformers.js": "onnx/model.onnx", "genai": "decoder.onnx"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("foreign")
    return {kind: write(home / kind) for kind, write in FOLDERS.items()}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_what_lies_beside_a_graph_is_used(folders, kind, by):
    path = folders[kind] if by == "folder" else folders[kind] / GRAPHS[kind]
    bundle = open_onnx(path)
    manifest, graph = bundle.manifest, bundle.manifest.window_graph
    assert (bundle.folder, bundle.window_graph) == (folders[kind], folders[kind] / GRAPHS[kind])
    assert (graph.layers, graph.kv_heads, graph.head_size, graph.max_length) == (2, HEADS, SIZE, LENGTH)
    assert (graph.caches, graph.dtype, graph.opset) == ("growing", "float32", {"genai": 21}.get(kind, 18))
    assert manifest.vocab_size == manifest.generated_tokens.count == VOCABULARY
    assert manifest.stop_tokens == (2, 3)  # that of a text, and that of a turn
    sampling = bundle.settings().sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 11, 0.9)
    assert bundle.tokenizer().encode("w5 w6") == [1, 5, 6]
    assert bundle.chat_template().render([{"role": "user", "content": "w5"}]) == "<s> user w5"
    assert (bundle.pixel_graph, bundle.step_graph("scd-match"), dict(manifest.files)) == (None, None, {})


@pytest.mark.parametrize("kind", FOLDERS)
def test_it_decodes_as_the_provider_does(folders, kind):
    with open_model(folders[kind], rows=2, method="scd-match") as model:
        assert str(model.runs).startswith("on CPUExecutionProvider, step: host")
        found = generate(model, [[1, 5], [1, 6]], length=9, window=4, seed=2).tokens
    with ConcatenatedProvider.open(folders[kind] / GRAPHS[kind], 2) as provider:
        expected = generate(provider, [[1, 5], [1, 6]], length=9, method="ar", seed=2).tokens
    np.testing.assert_array_equal(found, expected)


def test_makers_that_do_not_sample_recommend_nothing(folders, tmp_path):
    folder = shutil.copytree(folders["optimum"], tmp_path / "greedy")
    settings = json.loads((folder / "generation_config.json").read_text())
    for said in (False, None):
        (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": said}))
        sampling = open_onnx(folder).settings().sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, None, 1.0)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e300}, {"temperature": -1}, {"top_k": 2.5}, {"top_p": 7}, {"min_p": 2}],
)
def test_settings_that_cannot_be_are_refused_by_name(folders, tmp_path, settings):
    folder = shutil.copytree(folders["optimum"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **settings}))
    with pytest.raises(BundleError, match=f"defaults.*{next(iter(settings))}|is no number in JSON"):
        open_onnx(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_settings_that_are_no_numbers_are_no_json(folders, tmp_path, number):
    folder = shutil.copytree(folders["optimum"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": number}))
    with pytest.raises(
        BundleError, match=r"generation_config\.json is not readable JSON \((NaN|Infinity) is no number"
    ):
        open_onnx(folder)


@pytest.mark.parametrize("names", [[{"name": ["a"], "template": 1}], [1, None], [], {"name": "default"}])
def test_a_template_that_is_none_is_none(folders, tmp_path, names):
    folder = shutil.copytree(folders["optimum"], tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": names}))
    assert open_onnx(folder).chat_template() is None


def test_of_several_variants_the_float_one_is_taken_and_the_others_are_named(folders, tmp_path):
    folder = shutil.copytree(folders["transformers.js"], tmp_path / "model")
    for name in ("model_q4.onnx", "model_fp16.onnx"):
        shutil.copyfile(folder / "onnx" / "model.onnx", folder / "onnx" / name)
    bundle = open_onnx(folder)
    assert bundle.window_graph.name == "model.onnx"
    assert ["model_fp16.onnx", "model_q4.onnx"] in bundle.manifest.provenance.values()
    assert open_onnx(folder / "onnx" / "model_q4.onnx").window_graph.name == "model_q4.onnx"
    (folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model_fp16\.onnx, model_q4\.onnx.*give the path of the one"):
        open_onnx(folder)
    (folder / "onnx" / "model_fp16.onnx").unlink()
    assert open_onnx(folder).window_graph.name == "model_q4.onnx"


def _name(folder, file):
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = file
    (folder / "genai_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "decoder.onnx").unlink(), r"decoder\.onnx is missing, genai_config\.json names it"),
        (lambda folder: (folder / "genai_config.json").write_text("{"), r"genai_config\.json is not readable JSON"),
        (lambda folder: (folder / "genai_config.json").write_text("{}"), "names no file as model.decoder.filename"),
        (lambda folder: _name(folder, "../decoder.onnx"), "expected a file in this folder or in one within it"),
        (lambda folder: _name(folder, "/etc/passwd"), "expected a file in this folder or in one within it"),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
            r"chat_template\.jinja is not readable as text in UTF-8.*download it again",
        ),
    ],
)
def test_a_broken_folder_is_refused_by_what_is_wrong(folders, tmp_path, change, message):
    folder = shutil.copytree(folders["genai"], tmp_path / "model")
    change(folder)
    with pytest.raises(BundleError, match=message):
        open_onnx(folder)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(BundleError, match="is no file and no folder"):
        open_onnx(tmp_path / "nothing")
    with pytest.raises(BundleError, match="has no ONNX file"):
        open_onnx(tmp_path)
    bundle = open_bundle("fashion")
    with pytest.raises(BundleError, match=r"is a graph of the bundle .*give the bundle's folder"):
        open_onnx(bundle.window_graph)


# Sizes of caches that have a name instead of a number.


@pytest.mark.parametrize("axes", [(3,), (1, 3)])
@pytest.mark.parametrize("style", [optimum, genai])
def test_sizes_of_caches_come_from_the_configuration(tmp_path, style, axes):
    path = with_symbolic_sizes(style(tmp_path / "model.onnx"), axes)
    decoder = {"head_size": SIZE, "num_key_value_heads": HEADS}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"context_length": LENGTH, "decoder": decoder}}))
    with ConcatenatedProvider.open(path) as model:
        assert {(cache.heads, cache.size) for cache in model.graph.caches} == {(HEADS, SIZE)}


def test_a_size_that_the_configuration_has_wrong_is_refused(tmp_path):
    path = with_symbolic_sizes(genai(tmp_path / "model.onnx"), (3,))
    (tmp_path / "config.json").write_text(json.dumps({"head_dim": 2 * SIZE, "n_positions": LENGTH}))
    with pytest.raises(ProviderError, match="cannot run a window of 3 tokens"):
        ConcatenatedProvider.open(path)


@pytest.mark.parametrize("style", [optimum, genai])
@pytest.mark.parametrize("axes", [(1,), (3,)])
def test_sizes_that_nothing_says_are_found_by_trying(tmp_path, style, axes):
    path = with_symbolic_sizes(style(tmp_path / "model.onnx"), axes)
    with ConcatenatedProvider.open(path, max_length=LENGTH) as model:
        assert {(cache.heads, cache.size) for cache in model.graph.caches} == {(HEADS, SIZE)}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_key_value_heads": 3, "head_dim": 5}, (3, 5)),
        ({"num_attention_heads": 4, "hidden_size": 32}, (4, 8)),
        ({"n_head": 4, "n_embd": 40}, (4, 10)),
        ({"text_config": {"num_key_value_heads": 1, "head_dim": 7}}, (1, 7)),
        ({"num_key_value_heads": "3", "head_dim": True}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_configurations_say_sizes_in_several_ways(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Configuration.beside(tmp_path / "model.onnx").cache_sizes() == expected


# What such a bundle cannot do, for the true reason; and the errors elsewhere that name this route.


def test_only_the_cpu_and_the_host_take_it(folders):
    bundle = open_onnx(folders["optimum"])
    with pytest.raises(
        InvalidArgument, match=r"backend is 'tensorrt', but optimum is an ONNX file of somebody else's.*cpu only"
    ):
        check_model(bundle, Place("tensorrt"), method="sjd")
    with pytest.raises(InvalidArgument, match=r"step is 'graph', but optimum is an ONNX file.*host only"):
        open_model(bundle, method="sjd", step="graph")
    with pytest.raises(InvalidArgument, match="has no unconditional prompt"):
        open_model(bundle, guidance=2.0)
    assert check_model(bundle, method="sjd") == "host"


def test_it_is_never_written_as_a_bundle(folders, tmp_path):
    with pytest.raises(OutputError, match=r"an ONNX file of somebody else's.*coupled-sampling export"):
        write_manifest(tmp_path, open_onnx(folders["optimum"]).manifest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["folder", "file"])
def test_errors_elsewhere_name_this_route(folders, tmp_path, by):
    path = folders["transformers.js"] if by == "folder" else folders["transformers.js"] / "onnx" / "model.onnx"
    with pytest.raises(BundleError, match=r"ONNX.*open_onnx, or by the commands inspect"):
        open_bundle(path)
    with pytest.raises(CheckpointError, match=r"ONNX.*inspect, generate, compare and verify take it as it is"):
        open_checkpoint(path)
    with pytest.raises(BundleError, match="is no bundle"):
        add_step_graphs(path, tmp_path / "out", ["sjd"])


def test_a_manifest_of_another_program_does_not_hide_the_model(folders, tmp_path):
    """A web page's, for instance."""
    folder = shutil.copytree(folders["transformers.js"], tmp_path / "page")
    (folder / "manifest.json").write_text('{"name": "a page"}')
    assert open_model(folder).vocab_size == VOCABULARY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": LENGTH + 1}, "expected at most"),
        ({"tolerance": 0.3}, "tolerance"),
        ({"tolerance": "small"}, "tolerance is 'small'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(folders, arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        open_onnx(folders["optimum"], **arguments)


def test_caches_grow_with_what_is_decoded(tmp_path):
    """So that a model with a million positions opens: none of its sequences is as long."""
    with ConcatenatedProvider.open(genai(tmp_path / "model.onnx"), 2, max_length=10**9, threads=1) as model:
        assert max(cache.shape[2] for cache in model._caches) == 256
    optimum_like = optimum(tmp_path / "long.onnx", positions="columns")
    with ConcatenatedProvider.open(optimum_like, max_length=10**9, threads=1) as model:
        model._caches._held = [cache[:, :, :8].copy() for cache in model._caches]
        tokens = np.arange(40)[None] % VOCABULARY
        parts = [model.forward(tokens[:, at : at + 5], np.array([at])).copy() for at in range(0, 40, 5)]
        whole = model.forward(tokens, np.zeros(1, np.int64))
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-4)


@pytest.mark.parametrize("opset", [17, 18, 300])
def test_the_operator_set_is_read_from_the_file(tmp_path, opset):
    graph = onnx.helper.make_graph([], "g", [], [])
    sets = [onnx.helper.make_opsetid("com.microsoft", 1), onnx.helper.make_opsetid("", opset)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=sets), tmp_path / "m.onnx")
    assert read_opset(tmp_path / "m.onnx") == opset


@pytest.mark.parametrize("content", [b"", b"\xff" * 30, b"\x3a\xff\xff\x01", b"\x08"])
def test_what_is_no_protobuf_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        read_opset(tmp_path / "m.onnx")


def test_the_template_is_the_folders(folders):
    assert open_onnx(folders["genai"]).chat_template().source == TEMPLATE


def test_the_documented_way_works(folders):
    page = ROOT.joinpath("docs", "other-peoples-onnx.md").read_text(encoding="utf-8")
    code = page.split("```py\n")[1].split("```")[0]
    assert '"model/onnx"' in code
    scope = {"texts": ["w5 w6", "w7"]}
    exec(code.replace('"model/onnx"', repr(str(folders["transformers.js"] / "onnx"))), scope)
    assert all(2 in tokens or 3 in tokens or len(tokens) == 40 for tokens in scope["tokens"])
    assert scope["bundle"].folder == folders["transformers.js"]
