"""Texts on standard output, while they are made and one after the other; without a tokenizer, their tokens as numbers."""

from __future__ import annotations

from typing import TextIO

from coupled_sampling.bundles.text import NumberStream, TextStream, Tokenizer
from coupled_sampling.cli.output import write
from coupled_sampling.cli.task import Task
from coupled_sampling.decoding import Commit

__all__ = ["Texts"]


class Texts:
    """The texts of a task.

    Parameters
    ----------
    task
        What is decoded.
    method
        Whose texts they are, where several methods run.
    out
        Where to write them while they are made; None writes nothing. What is made at the same time waits for its turn.
    """

    def __init__(self, task: Task, method: str, out: TextIO | None) -> None:
        count = len(task.prompts)
        self._method, self._out = method, out
        self._streams = [_stream(task.tokenizer, task) for _ in range(count)]
        self._ended = [False] * count
        self._next = 0
        self.texts = [""] * count
        """What was made so far."""

    def watch(self, method: str, commit: Commit) -> None:
        """Add the text of a commit, and write what has its turn."""
        if method != self._method:
            return
        i = commit.handle
        text = self._streams[i].feed(commit.tokens)
        if commit.finished:
            text += self._streams[i].finish()
            self._ended[i] = True
        self.texts[i] += text
        if i == self._next:
            self._write(text)
        while self._next < len(self.texts) and self._ended[self._next]:
            self._write("\n\n")
            self._next += 1
            if self._next < len(self.texts):
                self._write(self.texts[self._next])

    def _write(self, text: str) -> None:
        if self._out is not None and text:
            write(text, self._out)


def _stream(tokenizer: Tokenizer | None, task: Task) -> TextStream | NumberStream:
    return NumberStream() if tokenizer is None else TextStream(tokenizer, task.stop, task.after)
