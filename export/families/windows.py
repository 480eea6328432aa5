"""Sliding windows as configurations describe them: which layers have one, and what a layer's attention then sees.

A layer of the type ``sliding_attention`` attends to the last ``sliding_window`` positions, its own included; one of
``full_attention`` to all. A window that is at least as long as the longest sequence has no effect, and is written as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coupled_sampling.arguments import is_whole
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.graphs.description import LayerKind
from coupled_sampling.export.graphs.rotary import Rotary

__all__ = ["FULL", "SLIDING", "attention_choices", "effective_window", "kinds_of", "take_layer_types", "take_window"]

FULL, SLIDING = "full_attention", "sliding_attention"


def take_layer_types(reader: ConfigReader, layers: int, usual: Sequence[str]) -> tuple[str, ...]:
    """The type of every layer, `FULL` or `SLIDING`; ``usual`` is what a missing key means.

    Raises
    ------
    CheckpointError
        There are more or fewer than ``layers``, or one is of another type.
    """
    found = reader.take("layer_types", list(usual))
    if not isinstance(found, list | tuple) or len(found) != layers or any(one not in (FULL, SLIDING) for one in found):
        raise reader.refusal("layer_types", found, f"{layers} times {FULL!r} or {SLIDING!r}")
    return tuple(found)


def take_window(reader: ConfigReader, default: Any = ...) -> int | None:
    """``sliding_window``, null for none; ``default`` is what a missing key means."""
    window = reader.take("sliding_window", default)
    if window is not None and (not is_whole(window) or window < 1):
        raise reader.refusal("sliding_window", window, "an integer >= 1, or null")
    return None if window is None else int(window)


def effective_window(window: int | None, positions: int) -> int:
    """The window as a description says it, 0 for one without effect."""
    return 0 if window is None or window >= positions else window


def attention_choices(kinds: Sequence[LayerKind]) -> dict[str, Any]:
    """Parameters of a description: one choice for all layers where they are alike, else one for each."""
    if len(set(kinds)) > 1:
        return {"layer_kinds": tuple(kinds)}
    return {"rotary": kinds[0].rotary, "attention_window": kinds[0].window}


def kinds_of(types: Sequence[str], window: int, rotary: Rotary) -> tuple[LayerKind, ...]:
    """Layers that turn alike and differ in their window."""
    return tuple(LayerKind(window if one == SLIDING else 0, rotary) for one in types)
