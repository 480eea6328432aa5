"""From a checkpoint to a bundle to text, by the command line; whole or not at all, and refused in one line."""

import json
import os

import numpy as np
import pytest

from coupled_sampling import METHODS, generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.hidden import REPLACED, hidden_path
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.errors import CheckpointError, InvalidArgument, OutputError
from coupled_sampling.export import ExportSettings, Storage, bundles, check, export_checkpoint
from coupled_sampling.testing import check_provider
from standins.opening import on_cpu

save_file = pytest.importorskip("safetensors.numpy").save_file
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WORDS = ["<end>", "the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "."]
WIDTH, LAYERS, HIDDEN, POSITIONS = 32, 2, 64, 48
CONFIG = {
    "model_type": "llama",
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}


def tensors():
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(WORDS), WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in [
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", WIDTH // 2, WIDTH),
            ("self_attn.v_proj", WIDTH // 2, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", HIDDEN, WIDTH),
            ("mlp.up_proj", HIDDEN, WIDTH),
            ("mlp.down_proj", WIDTH, HIDDEN),
        ]:
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (WIDTH,)
    return {
        name: random.normal(1 if len(shape) == 1 else 0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "little-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=".")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_export_then_generate_text(source, tmp_path, capsys):
    out = tmp_path / "bundle"
    code, said, _ = run(capsys, "export", source, out, "--check", "--window", "1,8", "--licence", "MIT")
    assert code == 0
    assert "wrote" in said
    assert "checked" in said
    assert names(tmp_path) == ["bundle"]
    manifest = open_bundle(out).manifest
    graph = manifest.window_graph  # prompts are read in wider calls than windows are
    assert graph.max_window == graph.prompt_chunk == min(256, graph.max_length) > 8
    assert manifest.stop_tokens == (0,)
    assert manifest.licence == "MIT"
    assert manifest.provenance["buckets"] == {"window": [1, 8, graph.prompt_chunk]}
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    texts = {}
    for method in ("ar", "scd-match", "scd-gumbel"):
        arguments = ["--prompt", "the cat sat", "--count", "3", "--length", "12", "--window", "6", "--method", method]
        code, said, _ = run(capsys, "generate", out, "--json", "--drafting", "ngram:2", *arguments)
        assert code == 0
        texts[method] = json.loads(said)["texts"]
        assert len(texts[method]) == 3
        assert all(set(text.split()) <= set(WORDS) - {"<end>"} for text in texts[method])
    assert texts["ar"] == texts["scd-match"]


@pytest.mark.parametrize(
    ("weights", "form"),
    [
        *((weights, "auto") for weights in ("float32", "float16", "bfloat16", "int8", "int4")),
        ("int8", "standard"),
        ("int4", "standard"),
    ],
)
def test_every_storage_gives_a_provider_that_keeps_the_contract(source, tmp_path, weights, form):
    """Also where activations might be rounded: one position's law must not depend on the window it was scored in."""
    settings = ExportSettings(storage=Storage(weights, form=form), windows=(1, 16))
    done = export_checkpoint(source, tmp_path / "b", settings, check=on_cpu)
    limits = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2, "int8": 0.3, "int4": 3.0}
    assert done.largest_difference < limits[weights]
    check_provider(OrtProvider.open(tmp_path / "b", batch_size=2, threads=1), tolerance=1e-4, length=24)


@pytest.mark.parametrize(("options", "form"), [([], "nbits"), (["--form", "standard"], "standard")])
def test_the_form_of_quantised_products_is_chosen_and_recorded(source, tmp_path, capsys, options, form):
    out = tmp_path / "bundle"
    assert run(capsys, "export", source, out, "--quantize", "int4", "--check", *options)[0] == 0
    manifest = open_bundle(out).manifest
    assert manifest.provenance["storage"] == {"weights": "int4", "compute": "float32", "form": form}
    assert manifest.window_graph.domains == (("com.microsoft",) if form == "nbits" else ())
    code, _, error = run(capsys, "export", source, out, "--form", "nbits", "--force")
    assert (code, error.count("\n")) == (2, 1)
    assert "expected weights 'int8' or 'int4'" in error


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], {"weights": "bfloat16", "compute": "bfloat16"}),
        (["--quantize", "int8"], {"weights": "int8", "compute": "bfloat16", "form": "nbits"}),
    ],
)
def test_the_type_of_the_arithmetic_is_chosen_and_recorded(source, tmp_path, capsys, options, kept):
    """Weights follow it where nothing is said of them."""
    out = tmp_path / "bundle"
    assert run(capsys, "export", source, out, "--compute", "bfloat16", *options)[0] == 0
    manifest = open_bundle(out).manifest
    assert manifest.provenance["storage"] == kept
    assert manifest.window_graph.dtype == "bfloat16"


def test_progress_is_told_of_every_byte(source, tmp_path):
    told = []
    export_checkpoint(source, tmp_path / "b", progress=lambda count, total: told.append((count, total)))
    total = sum(tensor.nbytes for tensor in tensors().values())
    assert {expected for _, expected in told} == {total}
    assert sum(count for count, _ in told) >= total


def test_an_existing_bundle_is_kept_unless_forced(source, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert run(capsys, "export", source, out)[0] == 0
    before = (out / "manifest.json").read_text()
    code, _, error = run(capsys, "export", source, out, "--dtype", "float16")
    assert (code, error.count("\n")) == (2, 1)
    assert "--force" in error
    assert (out / "manifest.json").read_text() == before
    assert run(capsys, "export", source, out, "--dtype", "float16", "--force")[0] == 0
    assert (out / "manifest.json").read_text() != before
    assert names(tmp_path) == ["bundle"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    code, _, error = run(capsys, "export", source, tmp_path / "mine", "--force")
    assert code == 2
    assert "no bundle" in error
    assert names(tmp_path / "mine") == ["letter.txt"]


def test_files_that_are_not_of_the_bundle_stop_a_replacement(source, tmp_path, capsys):
    out = tmp_path / "bundle"
    export_checkpoint(source, out)
    (out / "thesis.txt").write_text("years")
    for command in (["export", source, out], ["step-graphs", out, out]):
        code, _, error = run(capsys, *command, "--force")
        assert (code, error.count("\n")) == (2, 1)
        assert "does not list thesis.txt" in error
    assert "thesis.txt" in names(out)
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("force", [False, True])
def test_a_bundle_that_somebody_makes_meanwhile_is_left_alone(source, tmp_path, monkeypatch, force):
    out, other, write = tmp_path / "bundle", tmp_path / "other", bundles.write_manifest
    export_checkpoint(source, other, ExportSettings(name="theirs"))

    def meanwhile(*arguments):
        other.rename(out)
        return write(*arguments)

    monkeypatch.setattr(bundles, "write_manifest", meanwhile)
    with pytest.raises(OutputError, match="somebody else made it meanwhile"):
        export_checkpoint(source, out, ExportSettings(force=force))
    assert names(tmp_path) == ["bundle"]
    assert open_bundle(out).manifest.name == "theirs"


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_what_a_killed_export_left_is_mentioned_and_removed_on_demand(source, tmp_path, capsys):
    out = tmp_path / "bundle"
    export_checkpoint(source, out)
    aside, half = hidden_path(out, REPLACED), hidden_path(out)
    out.rename(aside)
    half.mkdir()
    code, _, error = run(capsys, "export", source, out)
    assert (code, error.count("note: a run that was killed left")) == (0, 2)
    assert f"{aside}; to put it back, as it is the bundle that was to be replaced: coup" in error
    assert f"{half}; to remove it: coupled-sampling export {source} {out} --clean" in error
    out.rename(tmp_path / "moved")
    code, _, error = run(capsys, "export", source, out, "--clean")
    assert code == 2  # the old bundle is back
    assert f"put back {out}" in error
    assert f"removed {half}" in error
    assert names(tmp_path) == ["bundle", "moved"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError("disk full"), CheckpointError("bad")])
def test_whatever_goes_wrong_nothing_half_written_remains(source, tmp_path, monkeypatch, fault):
    out = tmp_path / "bundle"
    export_checkpoint(source, out)
    before = (out / "manifest.json").read_bytes()

    def fails(*_):
        raise fault

    monkeypatch.setattr(bundles, "write_manifest", fails)
    expected = OutputError if isinstance(fault, OSError) else fault if isinstance(fault, type) else type(fault)
    with pytest.raises(expected):
        export_checkpoint(source, out, ExportSettings(force=True))
    assert names(tmp_path) == ["bundle"]
    assert (out / "manifest.json").read_bytes() == before


def test_a_graph_that_is_not_the_reference_is_not_given_a_name(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        check, "reference_logits", lambda *_, **__: np.random.default_rng(0).normal(size=(8, len(WORDS)))
    )
    with pytest.raises(CheckpointError, match="differ from the reference"):
        export_checkpoint(source, tmp_path / "b", check=on_cpu)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "lama"], "family is 'lama', expected auto or one of llama"),
        (["--window", "1,x"], "window is '1,x', expected integers"),
        (["--window", "64"], "more than the 48 positions"),
        (["--max-length", "64"], "48"),
        (["--quantize", "int4", "--dtype", "float16"], "give one of them"),
        (
            ["--compute", "float16", "--dtype", "bfloat16"],
            "compute is 'float16' and weights 'bfloat16', expected weights",
        ),
        (["--compute", "bfloat16", "--check"], "leave out --check, or check an export with --dtype bfloat16 alone"),
        (["--window", "0"], "windows is (0,), expected one or more integers >= 1"),
        (["--block", "33", "--quantize", "int8"], "block is 33"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(source, tmp_path, capsys, arguments, message):
    code, _, error = run(capsys, "export", source, tmp_path / "b", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert names(tmp_path) == []


def test_checkpoints_that_cannot_be_exported_are_refused_by_name(source, tmp_path):
    wrong = {
        "rope_dampening": ({"rope_dampening": 2.0}, {}, "rope_dampening = 2.0"),
        "missing": ({}, {"model.norm.weight": None}, "model.norm.weight"),
        "shape": ({}, {"model.norm.weight": np.ones(3, np.float32)}, r"model\.norm\.weight.*3"),
        "other": ({"model_type": "mamba"}, {}, "model_type is 'mamba'"),
    }
    for name, (config, changed, message) in wrong.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        kept = {key: value for key, value in (tensors() | changed).items() if value is not None}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            export_checkpoint(folder, tmp_path / "out")
    assert "out" not in names(tmp_path)


def test_a_text_model_asks_for_a_text(source, tmp_path, capsys):
    out = tmp_path / "bundle"
    export_checkpoint(source, out)
    for arguments, message in [
        ([], "give one with --prompt"),
        (["--prompt", ""], "at least one token"),
        (["--prompt", "the cat", "--length", "0"], "length"),
    ]:
        code, _, error = run(capsys, "generate", out, *arguments)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_an_exported_model(source, tmp_path, method):
    export_checkpoint(source, tmp_path / "b")
    tokens = generate(
        OrtProvider.open(tmp_path / "b", batch_size=2),
        [[1, 2], [5]],
        length=20,
        method=method,
        window=8,
        drafting="ngram:2",
    ).tokens
    assert [len(row) for row in tokens] == [20, 20]


def test_lengths_and_settings_are_checked(source, tmp_path):
    with pytest.raises(InvalidArgument, match="length is 0"):
        ExportSettings(length=0)
    with pytest.raises(InvalidArgument, match="prompt_chunk is 0"):
        ExportSettings(prompt_chunk=0)
    export_checkpoint(source, tmp_path / "b", ExportSettings(max_length=33, windows=(4,), prompt_chunk=16))
    graph = open_bundle(tmp_path / "b").manifest.window_graph
    assert (graph.max_length, graph.max_window, graph.prompt_chunk) == (33, 16, 16)
    export_checkpoint(source, tmp_path / "c", ExportSettings(max_length=33, windows=(4, 20), prompt_chunk=16))
    graph = open_bundle(tmp_path / "c").manifest.window_graph
    assert (graph.max_window, graph.prompt_chunk) == (20, 16)
