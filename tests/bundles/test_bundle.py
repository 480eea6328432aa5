import dataclasses
import json
import shutil

import pytest

from coupled_sampling.bundles import opening as bundles
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.bundles.manifest import (
    CausalGraph,
    ConditionGraph,
    Defaults,
    FileRecord,
    GeneratedTokens,
    Grid,
    Manifest,
    PixelGraph,
    Prompt,
    StepGraph,
    TreeGraph,
    WindowGraph,
)
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import embedded_names, open_bundle
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError

WINDOW = WindowGraph("window.onnx", 24, "float32", 2, 2, 4, 16, 12, 8, True)


def a_manifest(**changes):
    files = {name: FileRecord("0" * 64, 3) for name in ("window.onnx", "pixels.onnx")}
    settings = {
        "name": "toy",
        "description": "A toy.",
        "files": files,
        "window_graph": WINDOW,
        "vocab_size": 7,
        "generated_tokens": GeneratedTokens(0, 5),
        "length": 6,
        "prompts": {"sneaker": Prompt((5,), ("shoe", "Trainer"), "Sneaker"), "bag": Prompt((5, 1), (), "Bag")},
        "defaults": Defaults("scd-gumbel", 4, "copy:2", top_k=3),
        "licence": "Apache-2.0",
        "provenance": {"data": {"name": "none"}, "bits": 1.5},
        "pixel_graph": PixelGraph("pixels.onnx", 4, 6, 1),
        "grid": Grid(2, 3),
        "unconditional_prompt": (6,),
    }
    return Manifest(**(settings | changes))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toy"
    path.mkdir()
    (path / "window.onnx").write_bytes(b"not a graph, but bytes to count")
    (path / "pixels.onnx").write_bytes(b"nor this")
    files = {name: file_record(path / name) for name in ("window.onnx", "pixels.onnx")}
    write_manifest(path, a_manifest(files=files))
    return path


def edit(folder, change):
    document = json.loads((folder / "manifest.json").read_text())
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document))


def test_what_is_written_is_what_is_read(folder):
    opened = open_bundle(folder)
    assert opened.manifest == a_manifest(files=opened.manifest.files)
    assert opened.window_graph == folder / "window.onnx"
    assert opened.pixel_graph == folder / "pixels.onnx"
    assert opened.manifest.defaults.sampling().top_k == 3


def test_optional_parts_may_be_absent_or_null(folder):
    for change in (
        lambda document: document.update(pixel_graph=None, grid=None, unconditional_prompt=None),
        lambda document: [document.pop(key) for key in ("pixel_graph", "grid", "unconditional_prompt")],
    ):
        edit(folder, change)
        manifest = open_bundle(folder).manifest
        assert (manifest.pixel_graph, manifest.grid, manifest.unconditional_prompt) == (None, None, None)
        assert open_bundle(folder).pixel_graph is None


def test_the_manifest_is_plain_json_with_format_and_version(folder):
    document = json.loads((folder / "manifest.json").read_text())
    assert document["format"] == "coupled-sampling-bundle"
    assert document["format_version"] == 8
    assert document["window_graph"]["cache_length"] == 16
    assert document["prompts"]["sneaker"] == {"tokens": [5], "aliases": ["shoe", "Trainer"], "title": "Sneaker"}


@pytest.mark.parametrize("name", ["sneaker", "SNEAKER", "shoe", "Shoe", "trainer"])
def test_prompts_are_found_by_name_or_alias_in_any_case(name):
    assert a_manifest().find_prompt(name) == (5,)


def test_an_unknown_prompt_lists_what_there_is():
    with pytest.raises(InvalidArgument, match=r"'hat'.*sneaker \(shoe, Trainer\), bag"):
        a_manifest().find_prompt("hat")


def test_an_unknown_model_lists_the_embedded_ones(tmp_path, monkeypatch, folder):
    models = tmp_path / "models"
    shutil.copytree(folder, models / "toy")
    (models / "not-a-model").mkdir()
    monkeypatch.setattr(bundles, "MODELS", models)
    assert embedded_names() == ("toy",)
    assert open_bundle("toy").folder == models / "toy"
    with pytest.raises(BundleError, match=r"'nothing-here'.*found nothing.*toy"):
        open_bundle("nothing-here")


def test_an_embedded_name_wins_and_a_path_reaches_the_folder_of_that_name(tmp_path, monkeypatch, folder):
    models = tmp_path / "models"
    shutil.copytree(folder, models / "toy")
    monkeypatch.setattr(bundles, "MODELS", models)
    monkeypatch.chdir(tmp_path)
    assert open_bundle("toy").folder == models / "toy"
    assert open_bundle("./toy").folder.resolve() == folder.resolve()
    assert open_bundle(folder.relative_to(tmp_path)).folder.resolve() == folder.resolve()


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(BundleError, match="found a file"):
        open_bundle(folder / "manifest.json")


def test_a_folder_without_a_manifest_is_no_bundle(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_bundle(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="not readable"):
        open_bundle(folder)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "gguf"}'])
def test_a_foreign_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"no bundle of this library|expected a JSON object"):
        open_bundle(folder)


def test_a_graph_for_trees_is_optional_and_bundles_before_format_6_have_none(folder):
    edit(folder, lambda document: [document.update(format_version=5), document.pop("tree_graph")])
    opened = open_bundle(folder)
    assert (opened.manifest.tree_graph, opened.tree_graph) == (None, None)

    def added(document):
        document["tree_graph"] = {"file": "tree.onnx", "cache_length": 64}

    edit(folder, added)
    with pytest.raises(BundleError, match=r"tree_graph\.file is 'tree\.onnx', expected a file that is listed"):
        open_bundle(folder)
    (folder / "tree.onnx").write_bytes(b"the same with branches")
    edit(folder, lambda document: document["files"].update({"tree.onnx": vars(file_record(folder / "tree.onnx"))}))
    opened = open_bundle(folder)
    assert opened.manifest.tree_graph == TreeGraph("tree.onnx", 64)
    assert opened.tree_graph == folder / "tree.onnx"


def test_a_graph_for_trees_has_a_column_for_each_position():
    files = a_manifest().files
    assert a_manifest(tree_graph=TreeGraph("window.onnx", WINDOW.max_length)).files == files
    with pytest.raises(BundleError, match=r"tree_graph\.cache_length is 11, expected at least max_length, 12"):
        a_manifest(tree_graph=TreeGraph("window.onnx", 11))


def test_a_graph_without_masks_is_optional_and_bundles_before_format_8_have_none(folder):
    edit(folder, lambda document: [document.update(format_version=7), document.pop("causal_graph")])
    opened = open_bundle(folder)
    assert (opened.manifest.causal_graph, opened.causal_graph) == (None, None)
    (folder / "causal.onnx").write_bytes(b"the same without masks")
    record = vars(file_record(folder / "causal.onnx"))

    def added(document):
        document["causal_graph"] = {"file": "causal.onnx", "heads": 2 * WINDOW.kv_heads}
        document["files"]["causal.onnx"] = record

    edit(folder, added)
    opened = open_bundle(folder)
    assert opened.manifest.causal_graph == CausalGraph("causal.onnx", 2 * WINDOW.kv_heads)
    assert opened.causal_graph == folder / "causal.onnx"


@pytest.mark.parametrize(
    ("graph", "changes", "message"),
    [
        (CausalGraph("causal.onnx", 2), {}, "causal_graph.file is 'causal.onnx', expected a file that is listed"),
        (CausalGraph("window.onnx", 3), {}, "causal_graph.heads is 3, expected a multiple of window_graph.kv_heads, 2"),
        (
            CausalGraph("window.onnx", 2),
            {"condition_graph": ConditionGraph("pixels.onnx", 3, 4), "step_graphs": ()},
            "causal_graph is .*expected none beside condition_graph",
        ),
    ],
)
def test_a_graph_without_masks_that_cannot_be_is_refused(graph, changes, message):
    with pytest.raises(BundleError, match=message):
        a_manifest(causal_graph=graph, **changes)
    with pytest.raises(BundleError, match=r"causal_graph\.heads is 0, expected an integer >= 1"):
        CausalGraph("causal.onnx", 0)


def test_step_graphs_of_format_2_are_read_as_they_were(folder):
    """Their records do not say where noise comes from, which is a ring."""
    (folder / "step.onnx").write_bytes(b"a step")

    def old(document):
        record = file_record(folder / "step.onnx")
        document["format_version"] = 2
        document["files"]["step.onnx"] = {"sha256": record.sha256, "bytes": record.bytes}
        document["step_graphs"] = [{"file": "step.onnx", "method": "scd-match", "warped": False, "guided": False}]

    edit(folder, old)
    opened = open_bundle(folder)
    assert [graph.noise for graph in opened.manifest.step_graphs] == ["ring"]
    assert opened.step_graph("scd-match").name == "step.onnx"
    assert opened.step_graph("scd-match", noise="window") is None


def test_a_step_graph_has_noise_of_a_kind_that_is_known():
    with pytest.raises(BundleError, match="step_graphs: noise is 'queue', expected 'ring' or 'window'"):
        StepGraph("step.onnx", "scd-match", noise="queue")


def test_a_fill_token_is_optional_and_bundles_before_format_5_have_none(folder):
    edit(folder, lambda document: document.update(fill_token=3))
    assert open_bundle(folder).manifest.fill_token == 3
    edit(folder, lambda document: [document.update(format_version=4), document.pop("fill_token")])
    assert open_bundle(folder).manifest.fill_token is None


@pytest.mark.parametrize(
    ("token", "changes", "message"),
    [
        (5, {}, "fill_token is 5, expected one of generated_tokens, 5 from 0 on"),
        (-1, {}, "fill_token is -1"),
        (0, {"layout": (Span(1, 2, 2), Span(0, 5, 4)), "grid": None}, "what layout.0. lets begin, 2 from 1 on"),
        (3, {"layout": (Span(1, 2, 2), Span(0, 5, 4)), "grid": None}, "what layout.0. lets begin, 2 from 1 on"),
        (True, {}, "fill_token is True"),
    ],
)
def test_a_fill_token_that_cannot_come_first_is_refused(token, changes, message):
    manifest = a_manifest(**changes)
    assert dataclasses.replace(manifest, fill_token=2).fill_token == 2
    with pytest.raises((BundleError, InvalidArgument), match=message):
        dataclasses.replace(manifest, fill_token=token)


def test_a_newer_format_asks_for_an_upgrade(folder):
    edit(folder, lambda document: document.update(format_version=9, something_new=1))
    with pytest.raises(BundleError, match=r"format_version is 9.*up to 8.*upgrade"):
        open_bundle(folder)


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_a_format_version_that_is_none_is_refused(folder, version):
    edit(folder, lambda document: document.update(format_version=version))
    with pytest.raises(BundleError, match="format_version is"):
        open_bundle(folder)


def test_a_missing_file_is_named(folder):
    (folder / "pixels.onnx").unlink()
    with pytest.raises(BundleError, match=r"pixels\.onnx is missing"):
        open_bundle(folder)


def test_a_truncated_file_is_named_with_both_sizes(folder):
    (folder / "window.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"window\.onnx has 11 bytes, expected 31"):
        open_bundle(folder)


def test_a_damaged_file_of_the_right_size_is_named(folder):
    path = folder / "window.onnx"
    path.write_bytes(b"N" + path.read_bytes()[1:])
    with pytest.raises(BundleError, match=r"window\.onnx has SHA-256 .* damaged"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "path", [("name",), ("window_graph", "layers"), ("defaults", "method"), ("prompts", "bag", "title")]
)
def test_a_missing_field_is_named_by_its_path(folder, path):
    def drop(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    edit(folder, drop)
    with pytest.raises(BundleError, match=rf"{path[-1]} is missing"):
        open_bundle(folder)


def test_an_unknown_field_is_refused_rather_than_ignored(folder):
    edit(folder, lambda document: document["defaults"].update(temprature=0.5))
    with pytest.raises(BundleError, match=r"defaults\.temprature is unknown"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        (None, "name", 3, "name is 3, expected a text"),
        (None, "vocab_size", "7", "vocab_size is '7', expected an integer"),
        (None, "vocab_size", True, "vocab_size is True, expected an integer"),
        (None, "prompts", [], r"prompts is \[\], expected an object"),
        (None, "unconditional_prompt", 6, "unconditional_prompt is 6, expected a list"),
        (None, "unconditional_prompt", [6, "x"], r"unconditional_prompt\[1\] is 'x'"),
        ("window_graph", "layers", 1.5, r"window_graph\.layers is 1\.5, expected an integer"),
        ("window_graph", "has_kv_length", 1, r"window_graph\.has_kv_length is 1, expected true or false"),
        ("defaults", "temperature", "hot", r"defaults\.temperature is 'hot', expected a number"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(folder, section, field, value, message):
    edit(folder, lambda document: (document[section] if section else document).update({field: value}))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_whole_numbers_are_accepted_where_numbers_are_wanted(folder):
    edit(folder, lambda document: document["defaults"].update(temperature=2))
    assert open_bundle(folder).manifest.defaults.temperature == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name is"),
        ({"files": {}}, r"window_graph\.file is 'window\.onnx', expected a file that is listed"),
        ({"files": {"../window.onnx": FileRecord("0" * 64, 1)}}, "plain file name"),
        ({"files": {"a\\b": FileRecord("0" * 64, 1)}}, "plain file name"),
        ({"files": {"manifest.json": FileRecord("0" * 64, 1)}}, "plain file name"),
        ({"files": {"window.onnx": FileRecord("0" * 63, 1)}}, "64 lower-case hex digits"),
        ({"files": {"window.onnx": FileRecord("0" * 64, -1)}}, "a size >= 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"generated_tokens": GeneratedTokens(3, 5)}, "generated_tokens is"),
        ({"generated_tokens": GeneratedTokens(0, 0)}, "generated_tokens is"),
        ({"length": 0}, "length is 0"),
        ({"grid": Grid(2, 2)}, "that make the 6 generated positions"),
        ({"layout": (Span(0, 4, 5),)}, "layout is 5, expected spans that cover length, 6"),
        ({"layout": (Span(0, 99, 6),)}, r"layout\[0\] is .* inside generated_tokens"),
        ({"stop_tokens": (99,)}, "stop_tokens is 99"),
        ({"stop_tokens": (1,), "grid": Grid(2, 3)}, "none that can be generated before the end of a picture"),
        (
            {"stop_tokens": (3,), "grid": None, "layout": (Span(0, 3, 4), Span(3, 1, 2))},
            "none that can be generated before the end",
        ),
        ({"tokenizer": "t.json"}, "tokenizer is 't.json', expected a file that is listed"),
        ({"prompts": {"bag": Prompt((7,), (), "Bag")}}, r"prompts\['bag'\]\.tokens is \(7,\)"),
        ({"prompts": {"bag": Prompt((), (), "Bag")}}, r"prompts\['bag'\]\.tokens is \(\)"),
        ({"prompts": {"bag": Prompt((1,) * 8, (), "Bag")}}, "at most 7 tokens"),
        ({"unconditional_prompt": (-1,)}, "unconditional_prompt is"),
        ({"prompts": {"a": Prompt((1,), ("X",), ""), "b": Prompt((1,), ("x",), "")}}, "'a' does not have"),
        ({"prompts": {"a": Prompt((1,), (), ""), "b": Prompt((1,), ("A",), "")}}, "'a' does not have"),
    ],
)
def test_a_manifest_that_contradicts_itself_cannot_be_made(changes, message):
    with pytest.raises(BundleError, match=message):
        a_manifest(**changes)


def test_a_picture_may_end_with_a_token_that_would_end_it():
    a_manifest(stop_tokens=(3,), grid=None, layout=(Span(0, 3, 5), Span(3, 1)))
    a_manifest(stop_tokens=(5,))  # is never generated
    a_manifest(stop_tokens=(1,), grid=None, pixel_graph=None)  # a text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, r"window_graph\.layers"),
        ({"max_length": 17}, r"window_graph\.max_length is 17, expected at most cache_length, 16"),
        ({"max_window": 13}, r"window_graph\.max_window is 13, expected at most max_length, 12"),
        ({"prompt_chunk": 0}, r"window_graph\.prompt_chunk is 0, expected an integer from 1 to max_window, 8"),
        ({"prompt_chunk": 13}, r"window_graph\.prompt_chunk is 13"),
    ],
)
def test_a_window_graph_that_cannot_be_is_refused(change, message):
    with pytest.raises(BundleError, match=message):
        dataclasses.replace(WINDOW, **change)


def test_a_bundle_that_says_nothing_of_prompts_reads_them_as_wide_as_it_can():
    """As bundles do that were written before there was such a field."""
    assert WINDOW.prompt_chunk is None
    wide = dataclasses.replace(WINDOW, cache_length=999, max_length=999, max_window=999)
    told = dataclasses.replace(wide, prompt_chunk=700)
    assert [a_manifest(window_graph=graph).prompt_chunk for graph in (WINDOW, wide, told)] == [8, 256, 700]
    chunks = [a_manifest(window_graph=wide, vocab_size=size).prompt_chunk for size in (2**17, 2**18, 2**22)]
    assert chunks == [256, 128, 32]  # no more memory for logits than needs be


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"window": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"guidance": float("nan")},
        {"guidance_interval": "9:3"},
    ],
)
def test_defaults_that_cannot_work_are_refused(change):
    with pytest.raises(BundleError, match="defaults"):
        dataclasses.replace(Defaults("ar", 1, "random"), **change)


def test_a_pixel_graph_without_pixels_is_refused():
    with pytest.raises(BundleError, match=r"pixel_graph\.width is 0"):
        PixelGraph("pixels.onnx", 1, 0, 1)


def test_writing_replaces_the_manifest_and_leaves_nothing_else(folder):
    files = open_bundle(folder).manifest.files
    write_manifest(folder, a_manifest(files=files, name="renamed"))
    assert open_bundle(folder).manifest.name == "renamed"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "pixels.onnx", "window.onnx"]


def test_a_write_that_fails_leaves_the_old_manifest(folder, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    before = (folder / "manifest.json").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_manifest(folder, a_manifest())
    assert (folder / "manifest.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


def test_writing_into_no_folder_says_so(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_manifest(tmp_path / "absent", a_manifest())


def test_sizes_that_would_keep_a_reader_busy_are_refused():
    with pytest.raises(BundleError, match=r"window_graph\.layers is 10001, expected at most 10000"):
        dataclasses.replace(WINDOW, layers=10_001)
    endless = dataclasses.replace(WINDOW, cache_length=2**40, max_length=2**40)
    spans = (Span(0, 5, 2**40 - 3), Span(1, 1, 3))
    with pytest.raises(BundleError, match=rf"that make the {2**40 - 3} generated positions"):
        a_manifest(window_graph=endless, length=2**40, layout=spans)


def test_integers_beyond_any_size_are_refused(folder):
    edit(folder, lambda document: document["window_graph"].update(max_window=2**60))
    with pytest.raises(BundleError, match=r"window_graph\.max_window is .*at most 9007199254740992"):
        open_bundle(folder)
