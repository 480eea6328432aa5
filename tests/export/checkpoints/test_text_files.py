"""What a checkpoint says about text gets into the bundle: tokenizer, chat template, special tokens, and what ends a turn."""

import json

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import ChatTemplate
from coupled_sampling.errors import BundleError, CheckpointError, InvalidArgument
from coupled_sampling.export import ExportSettings
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.text import TextFiles, write_text_files
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import KINDS

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [export]")
pytest.importorskip("safetensors", reason="needs the extra [export]")
pytest.importorskip("onnx", reason="needs the extra [export]")


def read_from(folder, tmp_path):
    """What is written for the folder of a checkpoint, and its template."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    found = write_text_files(Checkpoint(folder, "safetensors", {}, {}, lambda name: None), out)
    return found, None if found.chat_template is None else ChatTemplate.read(out / found.chat_template)


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    KINDS["words"]().save(str(home / "tokenizer.json"))
    return home


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_template_stands_in_one_of_three_places(folder, tmp_path):
    assert read_from(folder, tmp_path) == (TextFiles("tokenizer.json"), None)
    settings = {"chat_template": "settings", "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    write(folder, tokenizer_config={**settings, "add_bos_token": True, "unk_token": None, "model_max_length": 64})
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    assert read_from(folder, tmp_path)[1] == ChatTemplate("settings", special)
    write(folder, chat_template={"chat_template": "json"})
    assert read_from(folder, tmp_path)[1] == ChatTemplate("json", special)
    (folder / "chat_template.jinja").write_text("jinja")
    assert read_from(folder, tmp_path)[1] == ChatTemplate("jinja", special)


def test_of_several_templates_the_default_one_is_taken(folder, tmp_path):
    named = [{"name": "tools", "template": "tools"}, {"name": "default", "template": "usual"}]
    write(folder, tokenizer_config={"chat_template": named}, special_tokens_map={"pad_token": "<pad>"})
    assert read_from(folder, tmp_path)[1] == ChatTemplate("usual", {"pad_token": "<pad>"})
    write(folder, tokenizer_config={"chat_template": named[:1]})
    assert read_from(folder, tmp_path)[1] is None


def test_a_template_without_a_tokenizer_is_of_no_use(folder, tmp_path):
    write(folder, tokenizer_config={"chat_template": "x"}, generation_config={"eos_token_id": [3, 5]})
    (folder / "tokenizer.json").unlink()
    assert read_from(folder, tmp_path) == (TextFiles(stop_tokens=(3, 5)), None)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_named(folder, tmp_path, content):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        read_from(folder, tmp_path)


def test_gguf_has_all_of_it_in_its_metadata(tmp_path):
    tokens = ["<s>", "</s>", "<|eot|>", "h", "e", "he"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.chat_template": "{{ bos_token }}",
    }
    checkpoint = Checkpoint(tmp_path / "x.gguf", "gguf", {}, {}, lambda name: None, metadata)
    assert write_text_files(checkpoint, tmp_path) == TextFiles("tokenizer.json", "chat.json", (2,))
    template = ChatTemplate.read(tmp_path / "chat.json")
    assert template == ChatTemplate("{{ bos_token }}", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "other").mkdir()
    bare = Checkpoint(tmp_path / "x.gguf", "gguf", {}, {}, lambda name: None, {"general.architecture": "llama"})
    assert write_text_files(bare, tmp_path / "other") == TextFiles()


def test_a_bundle_has_the_files_and_every_token_that_ends_a_turn(tmp_path):
    settings = {"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": "<s>"}
    folder = write_text_bundle(
        tmp_path,
        KINDS["words"](),
        config={"eos_token_id": 2},
        tokenizer_config=settings,
        generation_config={"eos_token_id": [3, 2, 100_000]},
    )
    bundle = open_bundle(folder)
    assert bundle.manifest.stop_tokens == (2, 3)
    assert set(bundle.manifest.files) == {
        "window.onnx",
        "window-causal.onnx",
        "window-tree.onnx",
        "weights.bin",
        "tokenizer.json",
        "chat.json",
    }
    assert bundle.tokenizer().encode("the cat") == [4, 5]
    pytest.importorskip("jinja2")
    assert bundle.chat_template().render([{"role": "user", "content": "cat"}]) == "<s>cat"


def test_a_bundle_without_them_has_none(tmp_path):
    bundle = open_bundle(write_text_bundle(tmp_path, vocab_size=20))
    assert (bundle.tokenizer(), bundle.chat_template(), bundle.manifest.prompts) == (None, None, {})
    with pytest.raises(InvalidArgument, match="has no prompts by name; give tokens instead"):
        bundle.manifest.find_prompt("the cat")


@pytest.mark.parametrize(("positions", "length"), [(64, 49), (32, 17), (16, 9), (4, 3), (2, 2), (1, 1)])
def test_the_usual_length_leaves_room_for_a_prompt(tmp_path, positions, length):
    settings = ExportSettings(windows=(1,), max_length=positions)
    manifest = open_bundle(write_text_bundle(tmp_path, KINDS["words"](), settings=settings)).manifest
    assert manifest.length == length
    assert length < positions or positions < 3


def test_a_length_that_never_fits_is_refused_before_the_bundle_is_made(tmp_path):
    settings = ExportSettings(windows=(1,), max_length=32, length=33)
    with pytest.raises(InvalidArgument, match="length is 33, more than the 32 positions"):
        write_text_bundle(tmp_path, KINDS["words"](), settings=settings)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_manifest_whose_length_never_fits_is_refused():
    manifest = open_bundle("fashion").manifest
    with pytest.raises(BundleError, match="length is 197, expected at most max_length, 196"):
        type(manifest)(**{**vars(manifest), "length": 197, "prompts": {}, "unconditional_prompt": None, "grid": None})
