"""A step that counts its decisions on recycled drafts, and else does what the step within does.

What a step offers beyond the contract is asked by Protocols, so a recorder of a step that reads prompts by itself is of a class of
its own: without it every continuation of a long beginning would go through the model from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.contracts import (
    CoupledStep,
    Forks,
    Integers,
    Outcome,
    PromptReader,
    Runs,
    TreeSteps,
    Window,
)
from coupled_sampling.corrections import Corrector
from coupled_sampling.draws import Noise
from coupled_sampling.methods import Method
from coupled_sampling.requests import Request

__all__ = ["Recorder", "recording"]


class Recorder:
    """A step that counts, for every sequence, the decisions made on recycled drafts."""

    def __init__(self, inner: CoupledStep) -> None:
        self.inner = inner
        self.decided = 0

    @property
    def method(self) -> Method:
        return self.inner.method

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def batch_size(self) -> int:
        return self.inner.batch_size

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    @property
    def max_window(self) -> int:
        return self.inner.max_window

    @property
    def runs(self) -> Runs:
        return self.inner.runs

    def close(self) -> None:
        self.inner.close()

    @property
    def noise(self) -> Noise:
        return self.inner.noise

    def takes(self, request: Request) -> str | None:
        return self.inner.takes(request)

    def begin(self, row: int, request: Request) -> None:
        self.inner.begin(row, request)

    @property
    def refuses_branches(self) -> str | None:
        if isinstance(self.inner, TreeSteps):
            return self.inner.refuses_branches
        return f"a {type(self.inner).__name__} does not do them; use HostStep"

    @property
    def max_columns(self) -> int:
        return self.inner.max_columns if isinstance(self.inner, TreeSteps) else self.max_length

    @property
    def corrections(self) -> Corrector | None:
        return self.inner.corrections if isinstance(self.inner, TreeSteps) else None

    def step(self, window: Window) -> Outcome:
        outcome = self.inner.step(window)
        self.decided += int(np.minimum(outcome.committed, window.recycled)[window.draws].sum())
        return outcome


class _ReadingRecorder(Recorder):
    """Of a step that reads prompts."""

    def __init__(self, inner: CoupledStep, reader: PromptReader) -> None:
        super().__init__(inner)
        self.reader = reader

    @property
    def prompt_chunk(self) -> int:
        return self.reader.prompt_chunk

    @property
    def touches_all(self) -> bool:
        return self.reader.touches_all

    @property
    def keeps_prefixes(self) -> bool:
        return self.reader.keeps_prefixes

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        self.reader.read(tokens, start, rows)

    @property
    def forks(self) -> bool:
        return isinstance(self.inner, Forks) and self.inner.forks

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        assert isinstance(self.inner, Forks), "who forks asks first whether it can be done"
        self.inner.fork(source, targets, length)


def recording(step: CoupledStep) -> Recorder:
    """A recorder of ``step``, which reads prompts if ``step`` does."""
    return _ReadingRecorder(step, step) if isinstance(step, PromptReader) else Recorder(step)
