"""``generate`` with a language model: prompts of every kind, text while it is made, and where it ends."""

import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.bundles import ChatTemplate, StopStrings, TextStream, file_record, write_manifest
from coupled_sampling.cli import main, task
from coupled_sampling.host_step import HostStep
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import KINDS, begins_and_ends, text_at_once

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def inner():
    return begins_and_ends(KINDS["byte_level"]())


@pytest.fixture(scope="module")
def bundle(inner, tmp_path_factory):
    """Its texts are any bytes, so characters come in pieces."""
    folder = tmp_path_factory.mktemp("text")
    settings = {"bos_token": "<s>", "chat_template": TEMPLATE}
    return write_text_bundle(folder, inner, tokenizer_config=settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without a tokenizer and without prompts by name."""
    return write_text_bundle(tmp_path_factory.mktemp("plain"), vocab_size=20)


@pytest.fixture
def prompt_of(command, tmp_path):
    """The tokens of the prompt, as the trace has them."""

    def call(*arguments):
        code, _, error = command("generate", *arguments, "--length", 1, "--trace", tmp_path / "trace.json")
        assert code == 0, error
        return json.loads((tmp_path / "trace.json").read_text())["sequences"][0]["prompt"]

    return call


def made(command, *arguments):
    code, said, error = command("generate", *arguments, "--json")
    assert code == 0, error
    return json.loads(said)


def test_special_tokens_are_the_tokenizers_own(bundle, inner, prompt_of):
    own = inner.encode("the cat").ids
    assert prompt_of(bundle, "--prompt", "the cat") == own[:-1]
    assert prompt_of(bundle, "--prompt", "the cat", "--raw") == own[1:-1]
    assert prompt_of(bundle, "--prompt", "<s>the cat") == own[:-1]


def test_a_message_is_put_as_the_chat_template_has_it(bundle, inner, prompt_of):
    def written(text):
        return inner.encode(text, add_special_tokens=False).ids

    assert prompt_of(bundle, "--chat", "--prompt", "the cat?") == written("<s>user: the cat?<|im_end|>assistant: ")
    asked = prompt_of(bundle, "--chat", "--system", "sat", "--prompt", "the cat?")
    assert asked == written("<s>system: sat<|im_end|>user: the cat?<|im_end|>assistant: ")
    assert asked.count(inner.token_to_id("<s>")) == 1


def test_a_template_that_writes_no_beginning_gets_none(bundle, inner, prompt_of, tmp_path):
    """What a template wrote is the whole prompt, as in transformers: models were tuned on that."""
    bare = shutil.copytree(bundle, tmp_path / "bare")
    ChatTemplate("{{ messages[0].content }}:").write(bare / "chat.json")
    manifest = open_bundle(bundle).manifest
    write_manifest(bare, replace(manifest, files={**manifest.files, "chat.json": file_record(bare / "chat.json")}))
    assert prompt_of(bare, "--chat", "--prompt", "the cat") == inner.encode("the cat:", add_special_tokens=False).ids


def test_a_prompt_comes_from_a_file_or_standard_input(bundle, inner, prompt_of, tmp_path, monkeypatch):
    expected = inner.encode("日本\n\nthe cat").ids[:-1]
    (tmp_path / "prompt.txt").write_bytes("日本\n\nthe cat\n".encode())
    assert prompt_of(bundle, "--prompt-file", tmp_path / "prompt.txt") == expected
    for option in ("--prompt", "--prompt-file"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("日本\n\nthe cat\n"))
        assert prompt_of(bundle, option, "-") == expected
    (tmp_path / "two.txt").write_text("the cat\n\n")
    assert prompt_of(bundle, "--prompt-file", tmp_path / "two.txt") == inner.encode("the cat\n").ids[:-1]


def test_tokens_are_taken_as_they_are(bundle, plain, prompt_of):
    assert prompt_of(bundle, "--tokens", "5, 6,7") == [5, 6, 7]
    assert prompt_of(plain, "--tokens", "19") == [19]


def test_a_text_is_one_and_its_defaults_are_texts(bundle, command):
    manifest = open_bundle(bundle).manifest
    assert (manifest.defaults.method, manifest.defaults.window, manifest.defaults.drafting) == ("scd-match", 4, "ngram")
    found = made(command, bundle, "--prompt", "the")
    assert len(found["texts"]) == 1
    assert [row["method"] for row in found["methods"]] == ["scd-match"]
    alone = made(command, bundle, "--prompt", "the", "--method", "ar")
    assert alone["texts"] == found["texts"]


def test_the_usual_length_fits_behind_a_long_prompt(bundle, command):
    tokens = ",".join(["7"] * 60)
    assert (
        made(command, bundle, "--tokens", tokens)["methods"][0]["tokens"] == 5
    )  # of 64 positions, the last is no input
    code, _, error = command("generate", bundle, "--tokens", tokens, "--length", 6)
    assert (code, error.count("\n")) == (2, 1)
    assert "at most 5 tokens" in error


@pytest.mark.parametrize("count", [1, 3])
def test_printed_texts_are_those_of_all_tokens_at_once(bundle, inner, command, tmp_path, count):
    arguments = [bundle, "--prompt", "the cat", "--count", count, "--batch-size", 2, "--length", 30]
    code, said, _ = command("generate", *arguments, "--trace", tmp_path / "trace.json")
    assert code == 0
    sequences = json.loads((tmp_path / "trace.json").read_text())["sequences"]
    texts = [text_at_once(inner, one["tokens"], after=one["prompt"])[0] for one in sequences]
    assert said.startswith("".join(f"{shown(text)}\n\n" for text in texts) + "scd-match: ")
    assert made(command, *arguments)["texts"] == texts


class Watched(io.StringIO):
    """Standard output that remembers what it showed at every flush."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def flush(self):
        self.shown.append(self.getvalue())


def test_text_is_shown_while_it_is_made_and_never_half_a_character(bundle, monkeypatch):
    out, steps = Watched(), []
    step = Decoder.step

    def counted(self):
        commits = step(self)
        steps.append(len(out.shown))
        return commits

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(Decoder, "step", counted)
    assert main(["generate", str(bundle), "--prompt", "the", "--length", "40", "--seed", "3"]) == 0
    assert steps[-1] > 5, "nothing was shown before the end"
    final = out.getvalue()
    assert all(final.startswith(shown) for shown in out.shown)
    while_made = [shown for shown in out.shown if "\n\nscd-match" not in shown][:-2]
    assert not any(shown.endswith("\ufffd") for shown in while_made)


def shown(text):
    """As it is printed: control characters would reach the terminal."""
    tame = {ord(one): one for one in "\t\n"}
    controls = {code: f"\\x{code:02x}" for code in [*range(32), *range(0x7F, 0xA0)]}
    return text.translate(controls | {ord("\r"): "\\r"} | tame)


def piece(text):
    """Two characters from the middle of ``text``."""
    return next(text[i : i + 2] for i in range(6, len(text) - 2) if "\ufffd" not in text[i : i + 2])


def test_text_ends_before_the_first_stop_string(bundle, inner, command, tmp_path):
    arguments = [bundle, "--prompt", "the cat", "--length", 40]
    whole = made(command, *arguments)["texts"][0]
    stop = piece(whole)
    for method in ("ar", "scd-match"):
        found = made(command, *arguments, "--method", method, "--stop", stop, "--stop", "nowhere")
        assert found["texts"] == [whole[: whole.index(stop)]]
        assert found["methods"][0]["tokens"] < 40
    _, said, _ = command("generate", *arguments, "--stop", stop, "--trace", tmp_path / "trace.json")
    assert said.startswith(shown(whole[: whole.index(stop)]) + "\n\nscd-match: ")
    (sequence,) = json.loads((tmp_path / "trace.json").read_text())["sequences"]
    text, count, _ = text_at_once(inner, sequence["tokens"], [stop], sequence["prompt"])
    assert (text, count) == (whole[: whole.index(stop)], len(sequence["tokens"]))


def test_the_same_in_python(bundle, command):
    """Settings, prompt, stop strings and text by the calls that the command line is made of."""
    opened = open_bundle(bundle)
    tokenizer, settings = opened.tokenizer(), opened.settings(length=40)
    prompt = tokenizer.encode("the cat")
    asked = [bundle, "--prompt", "the cat", "--length", 40]
    stop = [piece(made(command, *asked)["texts"][0])]
    rule, stream, text = StopStrings(tokenizer, stop, prompt), TextStream(tokenizer, stop, prompt), ""
    with open_model(opened, **settings.model) as model:
        decoder = Decoder(model, **settings.decoder)
        decoder.add(settings.request(prompt, stop_rule=rule))
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                text += stream.feed(commit.tokens)
    assert commit.reason == "stop"
    assert stream.stopped == stop[0]
    assert made(command, *asked, "--stop", stop[0])["texts"] == [text + stream.finish()]


def test_without_a_tokenizer_tokens_are_printed(plain, command, tmp_path):
    arguments = [plain, "--tokens", "1,2,3", "--count", 2, "--batch-size", 2, "--length", 9]
    tokens = made(command, *arguments)["tokens"]
    assert [len(row) for row in tokens] == [9, 9]
    _, said, _ = command("generate", *arguments)
    first, second, _ = said.split("\n\n")
    assert [json.loads(f"[{text}]") for text in (first, second)] == tokens


def test_ar_beside_a_text_is_compared_and_not_printed(bundle, command):
    code, said, _ = command("generate", bundle, "--prompt", "the", "--length", 12, "--beside-ar")
    assert code == 0
    text, figures = said.split("\n\n")[0], said.split("\n\n")[-1].splitlines()
    assert [line.split(":")[0] for line in figures] == ["ar", "scd-match"]
    (exact,) = made(command, bundle, "--prompt", "the", "--length", 12)["texts"]
    assert shown(exact) == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "continues text: give one with --prompt"),
        (["--prompt", "a", "--tokens", "1"], "prompt and tokens are given"),
        (["--prompt", "a", "--prompt-file", "b"], "prompt and prompt-file are given"),
        (["--tokens", "1", "--chat"], "chat and tokens are given"),
        (["--prompt", "a", "--chat", "--raw"], "chat and raw are given"),
        (["--prompt", "a", "--system", "b"], "add --chat"),
        (["--tokens", "1,x"], "tokens is '1,x', expected integers"),
        (["--tokens", "100000"], "prompt token 0 is 100000"),
        (["--prompt-file", "no/such/file"], "no/such/file"),
        (["--prompt", "a", "--stop", ""], "stop has ''"),
        (["--prompt", "a", "--stop", "x</s>"], "holds the special token '</s>'"),
        (["--prompt", "a", "--count", "0"], "count is 0"),
        (["--prompt", "", "--raw"], "at least one token"),
    ],
)
def test_what_cannot_work_is_one_line(bundle, command, arguments, words):
    code, said, error = command("generate", bundle, *arguments)
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert words in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "has no tokenizer, and no prompts by name: give tokens with --tokens 1,2,3"),
        (["--prompt", "the cat"], "has no tokenizer, and no prompts by name: give tokens with --tokens 1,2,3"),
        (["--prompt", "the cat", "--chat"], "has no tokenizer"),
        (["--prompt", "the cat", "--raw"], "has no tokenizer"),
        (["--tokens", "1", "--stop", "x"], "has no tokenizer"),
    ],
)
def test_a_bundle_without_a_tokenizer_says_so(plain, command, arguments, words):
    code, said, error = command("generate", plain, *arguments)
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert words in error
    assert "expected one of" not in error


def test_a_bundle_without_a_chat_template_says_so(tmp_path, command):
    bundle = write_text_bundle(tmp_path, KINDS["words"]())
    code, _, error = command("generate", bundle, "--chat", "--prompt", "the")
    assert code == 2
    assert "has no chat template" in error


def test_bytes_that_are_no_text_are_refused(bundle, command, tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    code, _, error = command("generate", bundle, "--prompt-file", tmp_path / "latin.txt")
    assert (code, error.count("\n")) == (2, 1)
    assert "UTF-8" in error


def test_a_picture_takes_no_stop_strings(command):
    code, _, error = command("generate", "--stop", "x", "--count", 1)
    assert code == 2
    assert "stop is 'x', a text" in error


class Poisoned:
    """Its first row has no law from position 6 on."""

    vocab_size, batch_size, max_length = 20, 2, 64

    def forward(self, tokens, start):
        logits = np.zeros((*tokens.shape, self.vocab_size))
        logits[0, start[0] + np.arange(tokens.shape[1]) >= 5] = np.nan
        return logits


@pytest.mark.parametrize("method", ["ar", "scd-match"])
def test_a_sequence_that_fails_is_one_line_and_the_others_are_printed(plain, command, monkeypatch, method):
    monkeypatch.setattr(task, "open_model", lambda *_, method, **__: HostStep(Poisoned(), method))
    arguments = ["--tokens", "1,2", "--length", 12, "--count", 2, "--batch-size", 2, "--method", method]
    code, said, error = command("generate", plain, *arguments)
    assert code == 2
    assert (error.count("\n"), error.startswith("coupled-sampling: error: request 0: ")) == (1, True)
    failed, whole, rest = said.split("\n\n")
    assert (len(failed.split(",")), len(whole.split(",")), rest) == (4, 12, "")


def test_a_picture_that_fails_is_one_line_and_no_file(command, monkeypatch, tmp_path):
    class Bad(Poisoned):
        vocab_size, max_length = 267, 300

    monkeypatch.setattr(task, "open_model", lambda *_, method, **__: HostStep(Bad(), method))
    code, _, error = command("generate", "--count", 1, "--out", tmp_path / "grid.png")
    assert (code, error.count("\n")) == (2, 1)
    assert "request 0" in error
    assert not list(tmp_path.iterdir())


def test_verify_and_compare_take_the_same_prompts(bundle, command):
    arguments = ["--prompt", "the cat", "--length", 6, "--methods", "scd-match", "--count", 2]
    code, said, error = command("compare", bundle, *arguments, "--json")
    assert code == 0, error
    assert [row["identical_to_ar"] for row in json.loads(said)] == [True, True]


def test_inspect_says_what_a_bundle_has_for_text(bundle, plain, command):
    said = {name: command("inspect", folder)[1] for name, folder in (("text", bundle), ("plain", plain))}
    assert "text:          tokenizer.json, chat template: chat.json" in said["text"]
    assert "text:          no tokenizer: prompts are names or tokens" in said["plain"]
    assert "prompts:       none by name" in said["plain"]


def test_a_picture_is_not_asked_of_a_text(bundle, command, tmp_path):
    code, _, error = command("generate", bundle, "--prompt", "a", "--out", tmp_path / "a.png")
    assert (code, error.count("\n")) == (2, 1)
    assert "makes no pictures" in error
