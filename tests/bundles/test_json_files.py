"""Small files of strangers: what is refused before anybody believes it, and that the limit and the size are in the message."""

import json
import os
import resource
import subprocess
import sys

import pytest

from coupled_sampling.bundles import json_files
from coupled_sampling.bundles.json_files import (
    CONFIGURATION,
    INDEX_OF_SHARDS,
    MANIFEST_FILE,
    TOKENIZER,
    SmallFile,
    read_json_text,
    read_object,
    read_small,
    read_text,
)
from coupled_sampling.errors import BundleError, CheckpointError
from standins import ROOT

TINY = SmallFile("a note", 100, "write it again")


def refusal(path, *words, kind=TINY, read=read_object):
    with pytest.raises(CheckpointError) as caught:
        read(path, kind, CheckpointError)
    for word in (str(path), *words, kind.remedy):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_is_read_as_json_has_it(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"c": "é😀"}, "": {}}
    for ascii_only in (True, False):  # escaped, a character beyond 16 bits is two halves that belong together
        (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
        assert read_object(tmp_path / "a.json", TINY) == content


def test_a_file_may_have_as_many_bytes_as_its_kind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100)
    assert read_small(path, TINY) == b"x" * 100
    path.write_bytes(b"x" * 101)
    refusal(path, "101 bytes", "100 are the most", "of a note", read=read_small)
    with pytest.raises(BundleError, match="101 bytes of note"):
        read_small(path, TINY)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs files that do not say their size")  # noqa: PTH110
def test_a_file_that_does_not_say_its_size_has_the_same_limit(tmp_path):
    (tmp_path / "a").symlink_to("/proc/self/status")
    refusal(tmp_path / "a", "101 bytes", "100 are the most", read=read_small)


def test_what_is_no_regular_file_is_refused(tmp_path):
    refusal(tmp_path / "missing", "is missing, expected a note")
    refusal(tmp_path, "is a folder, a device or a pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    refusal(tmp_path / "null", "a device")
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    refusal(tmp_path / "loop", "cannot be read (Too many levels of symbolic links)")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refusal(tmp_path / "pipe", "a pipe")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' occurs twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' occurs twice"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[]", "holds a list, expected a JSON object: a configuration"),
        (b"3", "holds a int"),
        (b"9" * 5000, "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 deep"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 deep"),
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(tmp_path, content, word):
    (tmp_path / "a.json").write_bytes(content)
    refusal(tmp_path / "a.json", word, kind=CONFIGURATION)


def test_a_manifest_may_have_the_name_of_any_file(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "\\udcff"}')
    assert read_object(tmp_path / "a.json", MANIFEST_FILE) == {"name": "\udcff"}


def test_sixty_four_levels_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a":' * 64 + "1" + "}" * 64)
    assert read_object(tmp_path / "a.json", CONFIGURATION)


def test_a_text_that_another_library_parses_may_not_have_more_values_than_anything_real(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MOST_VALUES", 5)
    (tmp_path / "a.json").write_text("[1,2,3,4,5]")
    assert read_json_text(tmp_path / "a.json", TOKENIZER) == "[1,2,3,4,5]"
    (tmp_path / "a.json").write_text("[1,2,3,4,[]]")
    refusal(tmp_path / "a.json", "up to 6 values", "5 are the most", kind=TOKENIZER, read=read_json_text)
    (tmp_path / "a.json").write_text('{"a":[1,2,3,[]]}')
    refusal(tmp_path / "a.json", "up to 6 values", kind=TOKENIZER)
    assert read_text(tmp_path / "a.json", TOKENIZER) == '{"a":[1,2,3,[]]}'


def test_limits_are_above_what_real_models_have():
    """DeepSeek-V3's index has 9 MB, Gemma 3's tokenizer 33 MB, and Chameleon's configuration 2 MB."""
    assert INDEX_OF_SHARDS.most > 9e6
    assert TOKENIZER.most > 33e6
    assert CONFIGURATION.most > 2e6


def test_a_manifest_of_80_mb_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.write(b"{")
        file.truncate(80_000_000)
    program = "import sys; from coupled_sampling.cli import main; sys.exit(main(['inspect', '.']))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert f"80000000 bytes of manifest, and {MANIFEST_FILE.most} are the most" in done.stderr
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert grown == before or grown < 500_000  # kilobytes; Python and numpy have some 60,000
