"""Prompts as files of tokens: numbers, a prompt a line, or arrays."""

import json
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling.bundles import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.cli.prompts import Asked, find_prompts
from coupled_sampling.errors import InvalidArgument

FASHION = open_bundle("fashion")


def prompts(path, count=2):
    return find_prompts(FASHION, None, Asked(tokens_file=str(path)), count).tokens


def test_a_text_has_a_prompt_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("257, 1,2\n\n 258 3\n")
    assert prompts(tmp_path / "a.txt", 3) == [(257, 1, 2), (258, 3), (257, 1, 2)]


def test_an_array_of_two_axes_has_a_prompt_a_row_and_any_other_is_one(tmp_path):
    frames = np.arange(12, dtype=np.uint16)
    for shape, expected in (
        ((12,), [tuple(range(12))]),
        ((2, 6), [tuple(range(6)), tuple(range(6, 12))]),
        ((2, 2, 3), [tuple(range(12))]),
    ):
        np.save(tmp_path / "a.npy", frames.reshape(shape))
        assert prompts(tmp_path / "a.npy", len(expected)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1,x", "is no text of integers"),
        ("a.txt", b"\xff\xfe", "is no text of integers"),
        ("a.txt", b" \n", "is empty"),
        ("a.npy", b"1,2", "is no array"),
        ("a.npy", b"", "is no array"),
        ("a.npy", b"PK\x03\x04", "is no array.*several"),
        ("a.npy", np.array([1.5]), "holds float64, expected some integers"),
        ("a.npy", np.zeros((0, 3), int), "holds int64, expected some integers"),
        ("a.npy", np.array([{}]), "is no array"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InvalidArgument, match=message):
        prompts(path)


def test_a_file_that_never_ends_is_refused():
    with pytest.raises(InvalidArgument, match="tokens-file /dev/zero has more than"):
        prompts(Path("/dev/zero"))


def test_only_one_way_to_begin_is_taken(tmp_path):
    with pytest.raises(InvalidArgument, match="tokens and tokens-file are given"):
        Asked(tokens="1", tokens_file="a.npy")
    with pytest.raises(InvalidArgument, match="chat and tokens-file"):
        Asked(chat=True, tokens_file="a.npy")


def test_generate_takes_it(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("PIL")
    np.save(tmp_path / "a.npy", np.array([[257], [259]]))
    files = ["--trace", str(tmp_path / "trace.json"), "--out", str(tmp_path / "a.png")]
    command = ["generate", "fashion", "--count", "3", "--window", "64", "--method", "scd-match", *files]
    assert main([*command, "--tokens-file", str(tmp_path / "a.npy")]) == 0
    made = json.loads((tmp_path / "trace.json").read_text())["sequences"]
    assert [one["prompt"] for one in made] == [[257], [259], [257]]
    assert main([*command, "--tokens-file", str(tmp_path / "none.npy")]) == 2
    assert "none.npy" in capsys.readouterr().err
