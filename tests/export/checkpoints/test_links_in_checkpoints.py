"""What lies beside weights is understood and written anew: a link leads nothing into a bundle that is no tokenizer or template."""

import json
import os

import pytest

from coupled_sampling.bundles import ChatTemplate, Tokenizer
from coupled_sampling.bundles.beside import read_object, read_template, read_text
from coupled_sampling.errors import BundleError, CheckpointError
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.text import TextFiles, find_tokenizer, write_text_files
from standins import pieces
from standins.tokenizers_of_text import CORPUS, KINDS, begins_and_ends

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [export]")

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "private").write_text(SECRET)
    (tmp_path / "out").mkdir()
    made = tmp_path / "model"
    made.mkdir()
    return made


def write(home, **options):
    checkpoint = Checkpoint(home, "safetensors", {}, {}, lambda name: None)
    return write_text_files(checkpoint, home.parent / "out", **options)


def written(home):
    """All that was written, as text."""
    return "".join(path.read_text() for path in (home.parent / "out").iterdir())


@pytest.mark.parametrize("kind", [*KINDS, "with marks"])
def test_what_is_written_anew_makes_the_same_tokens(home, kind):
    inner = begins_and_ends(KINDS["byte_level"]()) if kind == "with marks" else KINDS[kind]()
    inner.save(str(home / "tokenizer.json"))
    assert write(home) == TextFiles("tokenizer.json")
    before, after = Tokenizer(home / "tokenizer.json"), Tokenizer(home.parent / "out" / "tokenizer.json")
    for text in [*CORPUS, "<s>the cat</s>", "  two  spaces\n\t", "\x00 \u202e"]:
        assert before._inner.encode(text).ids == after._inner.encode(text).ids
        assert before.encode(text) == after.encode(text)
        assert before.decode(before.encode(text)) == after.decode(before.encode(text))
    assert before.special_tokens == after.special_tokens


@pytest.mark.parametrize(
    "content", [SECRET, '{"key": "' + SECRET + '"}', "{" + SECRET, f'["{SECRET}"]', "", "\xff\xfe"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_link_to_a_private_file_is_refused_and_says_nothing_of_it(home, name, content):
    (home.parent / "private").write_bytes(content.encode("latin-1"))
    (home / name).symlink_to("../private")
    with pytest.raises(CheckpointError, match=name) as caught:
        write(home)
    seen = str(caught.value), str(caught.value.__cause__), str(caught.value.__context__)
    assert not any("BEGIN" in text or "KEY" in text for text in seen)
    assert written(home) == ""


def test_a_tokenizer_is_taken_wherever_it_lies(home):
    KINDS["words"]().save(str(home.parent / "elsewhere"))
    (home / "tokenizer.json").symlink_to("../elsewhere")
    assert write(home) == TextFiles("tokenizer.json")
    assert not (home.parent / "out" / "tokenizer.json").is_symlink()


def test_files_of_the_cache_of_hugging_face_are_links_and_are_taken(tmp_path):
    store, home = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    store.mkdir(parents=True)
    home.mkdir(parents=True)
    KINDS["words"]().save(str(store / "11"))
    (store / "22").write_text("{{ bos_token }}")
    (store / "33").write_text(json.dumps({"bos_token": "<s>"}))
    for name, blob in (("tokenizer.json", "11"), ("chat_template.jinja", "22"), ("tokenizer_config.json", "33")):
        (home / name).symlink_to(f"../../blobs/{blob}")
    (tmp_path / "out").mkdir()
    found = write_text_files(Checkpoint(home, "safetensors", {}, {}, lambda name: None), tmp_path / "out")
    assert found == TextFiles("tokenizer.json", "chat.json")
    assert ChatTemplate.read(tmp_path / "out" / "chat.json") == ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"})
    (tmp_path / "models--a--b" / "private").write_text(SECRET)
    (home / "chat_template.jinja").unlink()
    (home / "chat_template.jinja").symlink_to("../../private")
    with pytest.raises(CheckpointError, match="is a link to a file elsewhere"):
        read_template(home, CheckpointError)


def test_a_template_that_leads_away_is_refused_before_it_is_read(home):
    KINDS["words"]().save(str(home / "tokenizer.json"))
    (home / "chat_template.jinja").symlink_to("../private")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is a link to a file elsewhere"):
        write(home)
    assert written(home) == ""
    (home / "chat_template.jinja").unlink()
    (home / "own").write_text("own")
    (home / "chat_template.jinja").symlink_to("own")
    assert write(home).chat_template == "chat.json"


def test_of_other_files_only_what_a_tokenizer_has_is_taken(home):
    KINDS["words"]().save(str(home / "tokenizer.json"))
    private = {"access_token": SECRET, "bos_token": "<s>", "image_token": "cat", "chat_template": "x", "key": SECRET}
    (home.parent / "private").write_text(json.dumps(private))
    (home / "tokenizer_config.json").symlink_to("../private")
    write(home)
    template = ChatTemplate.read(home.parent / "out" / "chat.json")
    assert template == ChatTemplate("x", {"bos_token": "<s>", "image_token": "cat"})
    assert SECRET not in written(home)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"],
)
@pytest.mark.parametrize("kind", ["nothing", "loop", "folder", "pipe"])
def test_what_is_no_file_is_named(home, name, kind):
    if name != "tokenizer.json":
        KINDS["words"]().save(str(home / "tokenizer.json"))
    if name == "tokenizer.model":
        (home / "tokenizer.json").unlink()
    if kind == "folder":
        (home / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(home / name)
    else:
        (home / name).symlink_to(name if kind == "loop" else "gone")
    with pytest.raises(CheckpointError, match=name):
        write(home)


def test_json_that_cannot_be_read_is_not_quoted(home):
    for content in (b"{" + SECRET.encode(), SECRET.encode(), b"[" * 100_000, b"\xff" + SECRET.encode(), b"[1]"):
        (home / "x.json").write_bytes(content)
        with pytest.raises(BundleError, match=r"x\.json") as caught:
            read_object(home / "x.json")
        assert "BEGIN" not in str(caught.value)
    assert read_object(home / "y.json") == {}
    assert read_text(home / "y.json") is None


def test_sentencepiece_files_are_taken_where_there_is_no_other(home):
    columns = pieces.vocabulary()
    (home / "tokenizer.model").write_bytes(pieces.model_file(*columns))
    assert write(home) == TextFiles("tokenizer.json")
    made = Tokenizer(home.parent / "out" / "tokenizer.json")
    assert made.encode("the cat") == [1, *pieces.encode("the cat", *columns)]
    (home / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert find_tokenizer(home).encode("the cat").ids == pieces.encode("the cat", *columns)
    KINDS["words"]().save(str(home / "tokenizer.json"))
    write(home)
    assert Tokenizer(home.parent / "out" / "tokenizer.json").encode("the cat") == [4, 5]


def test_a_tokenizer_that_is_given_is_taken_instead(home):
    KINDS["words"]().save(str(home / "tokenizer.json"))
    (home / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own", "bos_token": "<s>"}))
    other = home.parent / "other"
    other.mkdir()
    KINDS["wordpiece"]().save(str(other / "words.json"))
    (other / "tokenizer.model").write_bytes(pieces.model_file(*pieces.vocabulary()))

    def made(**options):
        return write(home, **options), Tokenizer(home.parent / "out" / "tokenizer.json").encode("cat")

    assert made(given=other / "words.json") == (TextFiles("tokenizer.json", "chat.json"), [5])
    assert made(given=other)[1] == [1, *pieces.encode("cat", *pieces.vocabulary())]
    assert ChatTemplate.read(home.parent / "out" / "chat.json").source == "own"
    (other / "chat_template.jinja").write_text("other")
    made(given=other)
    assert ChatTemplate.read(home.parent / "out" / "chat.json").source == "other"
    assert made(given=other / "words.json", vocab_size=18)[1] == [5]
    with pytest.raises(CheckpointError, match=r"has a token 17, but the model has 17 tokens"):
        write(home, given=other / "words.json", vocab_size=17)
    with pytest.raises(CheckpointError, match="a folder without"):
        write(home, given=home.parent / "out" / "..")
    with pytest.raises(CheckpointError, match="is no file"):
        write(home, given=home / "gone")
