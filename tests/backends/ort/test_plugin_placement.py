"""Which nodes of the shipped graphs plugins of ONNX Runtime take, against the record that `plugin_placement` writes."""

import json
import re

import pytest

from coupled_sampling.backends.ort.cuda_session import SHAPE_OPERATORS
from coupled_sampling.backends.ort.plugins import PLUGINS
from standins import ROOT
from standins.plugin_placement import GRAPHS, RECORD, counted, unknown

pytest.importorskip("onnx")

PLACED = json.loads(RECORD.read_text())
AGAIN = "place the graphs again: make test-plugins says how"
SOON = ("fashion/window.onnx", "moving/step-scd-match.onnx")
"""The others have hardly any node of another kind."""


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize(
    "label", [label if label in SOON else pytest.param(label, marks=pytest.mark.long) for label in GRAPHS]
)
def test_every_node_was_placed(name, label):
    assert unknown(PLACED[name], label, counted(GRAPHS[label], PLUGINS[name])) == [], AGAIN


@pytest.mark.parametrize("name", PLACED)
def test_only_arithmetic_on_shapes_is_left_to_the_cpu(name):
    assert set(PLACED[name]["on_cpu"]) == set(GRAPHS)
    assert all(set(found) <= SHAPE_OPERATORS for found in PLACED[name]["on_cpu"].values())


def test_a_node_that_was_never_placed_is_noticed():
    assert unknown(PLACED["webgpu"], "fashion/window.onnx", ["Gemm(double, double, double)"]) != []


def test_the_guide_says_which_versions_were_asked():
    guide = (ROOT / "docs" / "plugin-providers.md").read_text()
    for name, record in PLACED.items():
        assert f"{PLUGINS[name].package} {record['version']}" in guide


def test_the_guide_says_what_is_left_to_the_cpu():
    guide = (ROOT / "docs" / "plugin-providers.md").read_text()
    rows = re.findall(r"^\| (`[^|]+onnx`) \| (.+?) \| (.+?) \|$", guide, re.MULTILINE)
    said = {}
    for files, *places in rows:
        for file in re.findall(r"`([\w.-]+)`", files):
            found = [{kind: int(n) for n, kind in re.findall(r"(\d+) (\w+)", place)} for place in places]
            said[file] = dict(zip(("webgpu", "openvino"), found, strict=True))
    for label in GRAPHS:
        assert said[label.split("/")[1]] == {name: record["on_cpu"][label] for name, record in PLACED.items()}
