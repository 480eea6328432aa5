"""Tokenizers whose steps make a text longer and longer: refused before they are given one."""

import json
import subprocess
import sys

import pytest

from coupled_sampling.bundles import Tokenizer, text_growth
from coupled_sampling.errors import BundleError
from standins.tokenizers_of_text import KINDS

pytest.importorskip("tokenizers", reason="needs the extra [text]")

DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DOUBLES_BY_NOTHING = {"type": "Replace", "pattern": {"Regex": "b*"}, "content": "a"}
SAME = {"type": "Replace", "pattern": {"String": "ab"}, "content": "xy"}
PIECE, MARK = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "m", "type_id": 0}}
SPECIAL = {"m": {"id": "m", "ids": [1] * 50, "tokens": ["m"] * 50}}


def template(*single):
    pair = [PIECE, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": list(single), "pair": pair, "special_tokens": SPECIAL}


def listed(name, steps):
    return {"type": "Sequence", name: steps}


def opened(tmp_path, **parts):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(KINDS["byte_level"]().to_str()) | parts))
    return Tokenizer(path)


CASES = {
    "doubling": ("normalizer", lambda n: listed("normalizers", [DOUBLES] * n)),
    "doubling by nothing": ("normalizer", lambda n: listed("normalizers", [DOUBLES_BY_NOTHING] * n)),
    "in each other": ("normalizer", lambda n: listed("normalizers", [listed("normalizers", [DOUBLES] * n)])),
    "of bytes": ("normalizer", lambda n: listed("normalizers", [{"type": "ByteLevel"}] * (n // 2))),
    "decoding": ("decoder", lambda n: listed("decoders", [DOUBLES] * n)),
    "texts twice": ("post_processor", lambda n: listed("processors", [template(PIECE, PIECE)] * n)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_that_is_doubled_often_is_refused(name, tmp_path):
    part, make = CASES[name]
    opened(tmp_path, **{part: make(2)})
    with pytest.raises(
        BundleError, match=f"a {part} that makes texts up to 4096 times as long .* take another tokenizer"
    ):
        opened(tmp_path, **{part: make(12)})


def test_what_is_as_long_as_before_may_come_often(tmp_path):
    assert opened(tmp_path, normalizer=listed("normalizers", [SAME] * 60)).encode("a")


@pytest.mark.parametrize(
    ("part", "made"),
    [
        ("normalizer", {"type": "Prepend", "prepend": "a" * 150}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a" * 50}, "content": "a" * 150}),
        ("post_processor", template(MARK, PIECE, MARK, MARK)),
    ],
)
def test_a_text_that_is_put_into_every_text_has_a_limit(part, made, tmp_path, monkeypatch):
    monkeypatch.setattr(text_growth, "MOST_ADDED", 150)
    opened(tmp_path, **{part: made})
    monkeypatch.setattr(text_growth, "MOST_ADDED", 149)
    with pytest.raises(BundleError, match="adds 150 letters or tokens, expected at most 1024 times and 149"):
        opened(tmp_path, **{part: made})


def test_padding_without_end_is_not_done_for_the_trial_either(tmp_path):
    # The library would end the process, so it is another one.
    opened(tmp_path)
    path = tmp_path / "tokenizer.json"
    padding = {"strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding": padding}))
    program = (
        "import sys; from coupled_sampling.bundles import Tokenizer; print(len(Tokenizer(sys.argv[1]).encode('a b')))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr[-1000:]
