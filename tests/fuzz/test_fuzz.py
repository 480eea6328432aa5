"""Fifty damaged files for every reader; ``make fuzz`` tries ten thousand. See `trial` for what is right."""

import subprocess
import sys
from pathlib import Path

import pytest

for package in ("onnx", "onnxruntime", "safetensors", "gguf", "tokenizers", "jinja2"):
    pytest.importorskip(package, reason="needs the extras [cpu,export,text]")

COUNT = 50
HERE = Path(__file__).parent
NAMES = ("archive", "manifest", "config", "corrections", "gguf", "safetensors", "graph", "tokenizer")


@pytest.mark.cases(4)
@pytest.mark.skipif(sys.platform == "win32", reason="workers are forked")
@pytest.mark.parametrize("reader", NAMES)
def test_damaged_files_are_refused_in_one_line_or_work(reader):
    # In a process of its own: a test run has threads, which do not survive a fork.
    command = [sys.executable, str(HERE / "run.py"), "--count", str(COUNT), "--only", reader]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    counts = done.stdout.split("inputs:")[1]
    assert f"{COUNT} inputs" in done.stdout
    # Damage that is always seen at once would try nothing, and damage that is never seen neither.
    assert "accepted" in counts, counts
    assert "refused" in counts, counts
