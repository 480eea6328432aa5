"""How much longer a tokenizer may make a text: what it asks for is added up before it is used.

A file of the ``tokenizers`` library is a program of small steps, and a stranger's may have a step that doubles every letter forty
times. The library does as it is told, and where memory ends it ends the process, not only the call. So the steps of a file are
looked at once it is read: how many times as long each of them can make a text, and how much it adds to one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from coupled_sampling.arguments import shown

__all__ = ["find_endless"]

MOST_TIMES = 2**10
"""How many times as long as it was a text may become; real tokenizers have three or four steps that double one at most."""

MOST_ADDED = 2**16
"""Letters and tokens that steps put into a text or around it."""

_BYTES_AS_LETTERS, _CHARACTERS_TAKEN_APART = 4, 16
"""Most letters for one: a byte is a letter of two bytes; a table of compatible characters has 18 for a single one."""

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def find_endless(tokenizer: Any) -> str:
    """What is wrong with a ``tokenizers.Tokenizer`` that can make a short text endless, in words; empty if it cannot."""
    for name in _PARTS:
        part = getattr(tokenizer, name)
        # The library gives the parts of a tokenizer as JSON where they are to be pickled.
        steps = list(_steps(json.loads(part.__getstate__()))) if part is not None else []
        times, added = math.prod(map(_times, steps)), sum(map(_added, steps))
        if times > MOST_TIMES or added > MOST_ADDED:
            return (
                f"has a {name} that makes texts up to {shown(times)} times as long and adds {added} letters or tokens, "
                f"expected at most {MOST_TIMES} times and {MOST_ADDED}"
            )
    return ""


def _steps(found: Any) -> Iterator[Mapping[str, Any]]:
    """Every step, those in sequences as well."""
    waiting = [found]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if "type" in node:
                yield node
            waiting += node.values()


def _times(step: Mapping[str, Any]) -> int:
    """How many times as long a text can become by a step."""
    if step["type"] == "Replace":
        content, pattern = len(step["content"]), step["pattern"]
        text = pattern.get("String")
        # An expression can match a single letter, and the nothing beside it.
        return content + 1 if not text else max(1, math.ceil(content / len(text)))
    if step["type"] == "TemplateProcessing":
        return max(1, sum("Sequence" in piece for piece in step["single"]))
    return {"ByteLevel": _BYTES_AS_LETTERS, "Precompiled": _CHARACTERS_TAKEN_APART}.get(step["type"], 1)


def _added(step: Mapping[str, Any]) -> int:
    """What a step has to put into a text."""
    if step["type"] == "TemplateProcessing":
        sizes = {name: len(special["ids"]) for name, special in step["special_tokens"].items()}
        named = [piece["SpecialToken"]["id"] for piece in step["single"] if "SpecialToken" in piece]
        return sum(sizes.get(name, 0) for name in named)
    return sum(len(step.get(key) or "") for key in ("content", "prepend"))
