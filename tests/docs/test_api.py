"""The reference lists exactly what is public, and every public function and class has an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from typing import Any

import pytest

import coupled_sampling
from standins import ROOT

PLACES_OF_THEIR_OWN = {"coupled_sampling.cli": "the command line documents itself: docs/command-line.md"}
"""Packages that the reference need not list."""

NEEDED = {
    "coupled_sampling.backends": ("onnx", "onnxruntime"),
    "coupled_sampling.export": ("onnx", "ml_dtypes"),
    "coupled_sampling.export.checkpoints": ("safetensors", "gguf", "tokenizers"),
    "coupled_sampling.export.families": ("safetensors",),
    "coupled_sampling.export.torch.module.WindowCache": ("torch.onnx.ops",),
    "coupled_sampling.export.torch.module.export_module": ("torch.onnx.ops", "onnxscript", "onnxruntime"),
    "coupled_sampling.bundles.text": ("tokenizers",),
    "coupled_sampling.bundles.Tokenizer": ("tokenizers",),
    "coupled_sampling.bundles.TextStream": ("tokenizers",),
    "coupled_sampling.bundles.StopStrings": ("tokenizers",),
    "coupled_sampling.bundles.ChatTemplate": ("jinja2",),
    "coupled_sampling.bundles.DecodingSettings": ("onnxruntime",),
    "coupled_sampling.grammars": ("llguidance", "tokenizers"),
    "coupled_sampling.testing": ("scipy",),
    "coupled_sampling.testing.strategies": ("hypothesis",),
    "coupled_sampling.testing.tree_strategies": ("hypothesis",),
    "coupled_sampling.testing.plugin": ("hypothesis",),
    "coupled_sampling.serving": ("onnxruntime",),
    "coupled_sampling.serving.http": ("fastapi", "httpx", "prometheus_client"),
}
"""Packages of extras that examples need, by module or by entry."""

ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def _documented() -> list[str]:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [entry for page in pages for entry in ENTRY.findall(page.read_text())]


IMPORT = re.compile(r"^from (coupled_sampling[\w.]*) import ([\w, ]+)", re.MULTILINE)


def _place_and_name(entry: str) -> tuple[str, str]:
    place, _, name = entry.rpartition(".")
    return place, name


def _packages() -> list[str]:
    """Packages that say what is public in them."""
    found = [coupled_sampling.__name__]
    found += [
        module.name for module in pkgutil.walk_packages(coupled_sampling.__path__, "coupled_sampling.") if module.ispkg
    ]
    return [
        name for name in found if hasattr(importlib.import_module(name), "__all__") and name not in PLACES_OF_THEIR_OWN
    ]


DOCUMENTED = _documented()
PLACES = sorted({_place_and_name(entry)[0] for entry in DOCUMENTED} - set(PLACES_OF_THEIR_OWN))


def _public() -> dict[str, Any]:
    """Every documented object, by its entry."""
    return {
        entry: getattr(importlib.import_module(place), name)
        for entry in DOCUMENTED
        for place, name in [_place_and_name(entry)]
    }


def test_every_entry_of_the_reference_is_a_public_name():
    wrong = [
        entry
        for entry in DOCUMENTED
        for place, name in [_place_and_name(entry)]
        if name not in importlib.import_module(place).__all__
    ]
    assert wrong == []


@pytest.mark.parametrize("place", sorted({*PLACES, *_packages()}))
def test_every_public_name_is_in_the_reference(place):
    module = importlib.import_module(place)
    by_name: dict[str, list[Any]] = {}
    for entry, value in _public().items():
        by_name.setdefault(_place_and_name(entry)[1], []).append(value)
    missing = [
        name for name in module.__all__ if not any(getattr(module, name) is value for value in by_name.get(name, ()))
    ]
    assert missing == [], f"list them in docs/reference, or take them out of {place}.__all__"


def test_nothing_is_documented_twice():
    assert len(DOCUMENTED) == len(set(DOCUMENTED))
    kinds = [value for value in _public().values() if inspect.isclass(value) or inspect.isfunction(value)]
    assert len({id(value) for value in kinds}) == len(kinds)


def test_guides_import_public_names_only():
    guides = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    imported = [
        (guide.name, f"{place}.{name.strip()}")
        for guide in guides
        for place, names in IMPORT.findall(guide.read_text())
        for name in names.split(",")
    ]
    assert len(imported) > 20
    assert [(guide, entry) for guide, entry in imported if entry not in DOCUMENTED] == []


def _is_behind(module: str, places: Any) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _to_show() -> dict[str, Any]:
    """Public functions and classes but errors, by entry; errors are shown by the functions that raise them."""
    return {
        entry: value
        for entry, value in _public().items()
        if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, BaseException))
        if value.__module__.startswith("coupled_sampling")
    }


def _examples(value: Any, entry: str) -> doctest.DocTest | None:
    """The ``>>>`` lines in the section Examples of a docstring."""
    text = inspect.cleandoc(value.__doc__ or "")
    _, section, examples = text.partition("\nExamples\n--------\n")
    names = dict(vars(sys.modules[value.__module__]))  # as doctest has it: a module's examples know its own names
    found = doctest.DocTestParser().get_doctest(examples, names, entry, None, 0)
    return found if section and found.examples else None


@pytest.mark.parametrize("entry", sorted(_to_show()))
def test_a_public_name_has_an_example_that_runs(entry, monkeypatch, tmp_path):
    value = _to_show()[entry]
    for place, packages in NEEDED.items():
        for package in packages if place == entry or _is_behind(value.__module__, [place]) else ():
            pytest.importorskip(package, reason=f"the example of {entry} needs {package}")
    test = _examples(value, entry)
    assert test is not None, f"{entry} has no section Examples with >>> in its docstring"
    monkeypatch.chdir(tmp_path)
    written: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=written.append, clear_globs=False)
    assert outcome.attempted
    assert not outcome.failed, "".join(written)
