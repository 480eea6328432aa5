"""The small inputs and outputs of a step graph: numpy arrays that are fed, and read, in every call.

What a graph keeps from call to call is in `coupled_sampling.backends.ort.step_state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.backends.ort.binding import TYPES, HostBinding
from coupled_sampling.backends.ort.provider import KV_STEP
from coupled_sampling.backends.ort.step_checks import StepGraphFacts
from coupled_sampling.backends.ort.step_inputs import (
    candidates,
    fill_race_noise,
    fill_uniforms,
    temperatures,
    warp_settings,
)
from coupled_sampling.backends.ort.step_state import Buffer
from coupled_sampling.contracts import Integers, Window
from coupled_sampling.trees import chain

__all__ = ["StepTensors"]


class StepTensors:
    """Those of one session.

    Attributes
    ----------
    inputs
        The names of the graph's inputs.
    """

    def __init__(self, session: Any, facts: StepGraphFacts, binding: HostBinding, columns: int) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.inputs = frozenset(value.name for value in inputs)
        self._buffers = {value.name: Buffer(TYPES[value.type]) for value in (*inputs, *outputs)}
        self._binding, self._facts, self._columns = binding, facts, columns
        self._nucleus, self._best = 1024, 1

    def out(self, name: str, *shape: int) -> NDArray[Any]:
        """What the graph wrote to the output ``name``."""
        return self._buffers[name].shaped(*shape)

    def put(self, name: str, values: Any, *shape: int) -> None:
        """Feed ``values`` as the input ``name``."""
        buffer = self._buffers[name].shaped(*shape)
        buffer[...] = values
        self._binding.bind_input(name, buffer)

    def put_tokens(self, tokens: Integers, start: Integers, parents: Integers | None = None) -> None:
        """What the window graph inside reads: of a guided graph, two rows for each."""
        self.put("input_ids", tokens, *tokens.shape)
        self.put("start", start, len(start))
        if self._facts.tree:
            self.put("parents", chain(*tokens.shape) if parents is None else parents, *tokens.shape)
        if "kv_length" in self.inputs:
            steps = -(-(int(start.max()) + tokens.shape[1]) // KV_STEP)
            self.put("kv_length", min(steps * KV_STEP, self._columns), 1)

    def put_counts(self, window: Window) -> None:
        """What slots of the window are, and the settings of its rows."""
        rows, _ = window.tokens.shape
        for name in ("known", "recycled", "fresh", "draws"):
            self.put(name, getattr(window, name), rows)
        self.put("temperature", temperatures(window), rows)
        if self._facts.tree:
            self._best = max(1, min(window.candidates, self._facts.vocab_size))
            self.put("branches", 0 if window.branches is None else window.branches, rows)
            self.put("best_count", self._best, 1)
        if self._facts.warped:
            for name, values in warp_settings(window, self._facts.vocab_size).items():
                self.put(name, values, rows)
            self.put_candidates(window)

    def put_candidates(self, window: Window) -> None:
        """How many of the largest logits are looked at."""
        self.put("candidates", candidates(window, self._facts.vocab_size, self._nucleus), 1)

    def put_more_candidates(self, window: Window) -> None:
        """More than before, from now on."""
        self._nucleus = min(4 * self._nucleus, self._facts.vocab_size)
        self.put_candidates(window)

    def put_uniforms(self, window: Window) -> None:
        """The uniforms of a window's slots."""
        drawn = self._buffers["uniforms"].shaped(*window.tokens.shape, 3)
        fill_uniforms(window, drawn)
        self._binding.bind_input("uniforms", drawn)

    def put_noise(self, window: Window, positions: Sequence[tuple[int, int]]) -> None:
        """The race noise of each row's ``positions`` (first, end); rows with fewer than others send padding behind theirs."""
        most = max(1, *(end - first for first, end in positions))
        noise = self._buffers["noise"].shaped(len(positions), most, self._facts.vocab_size)
        fill_race_noise(window, positions, noise)
        self._binding.bind_input("noise", noise)

    def shapes(self, rows: int, width: int) -> dict[str, tuple[int, ...]]:
        """The outputs that a call of so many rows and slots is told of its window."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("tokens", "highest_logits"), (rows, width))
        shapes["committed"] = (rows,)
        if self._facts.tree:
            shapes |= dict.fromkeys(("best_tokens", "best_scores"), (rows, width, self._best))
        return shapes

    def expect(self, rows: int, width: int) -> None:
        """Have all outputs written."""
        shapes = self.shapes(rows, width)
        if self._facts.warped:
            shapes["nucleus_short"] = (rows, width)
        for name, shape in shapes.items():
            self._binding.bind_output(name, self.out(name, *shape))

    def made(self, rows: int, width: int) -> dict[str, NDArray[Any]]:
        """What was written, by name; the next call writes over it."""
        return {name: self.out(name, *shape) for name, shape in self.shapes(rows, width).items()}
