"""The checks of windows that are trees, each a function of a `Probe` that fills a `Record`; run where a provider offers `Trees`.

A path of a tree is an ordinary run of tokens, and what the provider says of that run alone is what every slot on the path must say
beside all others. The same goes for what comes after: the state of the leading slots is that of a window without branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.contracts import Integers, Trees
from coupled_sampling.testing.contracts.probe import LogLaws, Probe, Record, Scored
from coupled_sampling.testing.contracts.provider_checks import ONE_ROW
from coupled_sampling.trees import Tree, chain

__all__ = ["tree_chain", "tree_columns", "tree_read_only", "tree_rows", "tree_state", "trees", "trees_refused"]

SHAPE = (-1, 0, 0, -1, 1, 2, 3, 4, -1)
"""Two leading slots, whose path goes on behind a sibling and a second root; a branch of each; padding. The first four will do."""
MOST_COLUMNS = 4096
"""Widest window that is forwarded to leave the columns."""


class _Window(NamedTuple):
    """A window of all rows."""

    tokens: Integers
    start: Integers
    parents: Integers

    def copy(self) -> _Window:
        return _Window(*(array.copy() for array in self))


class _Path(NamedTuple):
    """A path of a row's tree, and what is said of it alone."""

    row: int
    slots: Integers
    expected: LogLaws


def _first(probe: Probe) -> int:
    """The first position for trees, behind all prompts: what is beside a prompt means nothing to a provider that was told it."""
    return max(1, *(len(prompt) for prompt in probe.prompts))


def _shape(probe: Probe) -> Integers:
    """`SHAPE` as far as there is room for it."""
    return np.array(SHAPE[: probe.length - _first(probe)])


def _watched(probe: Probe) -> list[int]:
    return sorted({0, probe.rows - 1})


def _window(probe: Probe, start: Integers, parents: Integers) -> _Window:
    """Random tokens, and siblings that differ where tokens can."""
    tokens = probe.random.choice(probe.tokens, parents.shape)
    if probe.can_change_tokens:
        for row, own in enumerate(parents):
            for slot in range(1, len(own)):
                elder = np.flatnonzero(own[:slot] == own[slot])
                if elder.size and tokens[row, slot] == tokens[row, elder[-1]]:
                    tokens[row, slot] = probe.other_tokens(tokens[row, slot : slot + 1])[0]
    return _Window(tokens, start, parents)


def _paths(probe: Probe, sequences: Integers, window: _Window, rows: list[int] | None = None) -> list[_Path]:
    """All paths of the watched rows, from the state below the window to a slot that nothing follows."""
    tree, found = Tree.of(window.parents), []
    for row in _watched(probe) if rows is None else rows:
        for leaf in sorted({*range(window.tokens.shape[1])} - {*window.parents[row].tolist()}):
            slots = tree.path(row, leaf)
            alone = np.concatenate([sequences[row, : window.start[row]], window.tokens[row, slots]])
            found.append(_Path(row, slots, probe.alone(alone, row)))
    return found


def _compare(record: Record, laws: LogLaws, window: _Window, paths: list[_Path]) -> None:
    for row, slots, expected in paths:
        record.compare(Scored(laws[:, slots], window.start, slots), row, expected)


def tree_columns(probe: Probe, record: Record) -> None:
    """``max_columns`` is an integer, and no less than ``max_length``."""
    assert isinstance(probe.provider, Trees)
    record.doing = "reading max_columns"
    columns: Any = probe.provider.max_columns
    if isinstance(columns, bool) or not isinstance(columns, int | np.integer) or columns < probe.max_length:
        record.fail(f"it is {columns!r}, expected an integer, at least max_length, {probe.max_length}")


def _shapes(probe: Probe) -> Iterator[tuple[str, Integers, Integers]]:
    """What is forwarded, the starts (rows,), and the parents (rows, W)."""
    first, shape, rows = _first(probe), _shape(probe), probe.rows
    last = probe.length - len(shape)
    yield f"a tree, parents {shape.tolist()}", np.full(rows, (first + last) // 2), np.tile(shape, (rows, 1))
    mixed = probe.random.integers(-1, np.arange(len(shape)).clip(1), (rows, len(shape)))
    mixed[:, 0] = -1
    if rows > 1:
        mixed[0] = chain(1, len(shape))[0]
    yield "trees of other shapes, at starts of their own", probe.random.integers(first, last + 1, rows), mixed
    if probe.length == probe.max_length:
        assert isinstance(probe.provider, Trees)
        deepest = int(Tree.of(shape[None]).depth.max())
        end = min(probe.max_length - 1 - deepest, int(probe.provider.max_columns) - len(shape))
        yield "a tree at the end of the model's memory", np.full(rows, end), np.tile(shape, (rows, 1))


def trees(probe: Probe, record: Record) -> None:
    """A slot sees its path and nothing beside it."""
    for name, start, parents in _shapes(probe):
        sequences = probe.sequences()
        window = _window(probe, start, parents)
        paths = _paths(probe, sequences, window)
        probe.restart(range(probe.rows))
        probe.score(sequences, 0, int(start.max()))
        record.doing = f"forwarding {name}"
        _compare(record, probe.forward(window.tokens, start, parents=parents), window, paths)


def tree_chain(probe: Probe, record: Record) -> None:
    """Windows whose slots each follow the one before are those of ``forward``."""
    sequences = probe.sequences()
    expected = probe.all_alone(sequences)
    probe.restart(range(probe.rows))
    half = probe.length // 2
    width = max(1, half // 2)
    record.doing = f"forwarding {half} tokens by forward_tree, {width} at once, each behind the one before"
    runs = []
    for first in range(0, half, width):
        own = sequences[:, first : first + width]
        start = np.full(probe.rows, first)
        laws = probe.forward(own, start, parents=chain(*own.shape))
        runs.append(Scored(laws, start, np.arange(own.shape[1])))
    done = int(runs[-1].start[0]) + runs[-1].laws.shape[1]
    record.doing += ", and the rest by forward"
    runs.append(probe.score(sequences, done, probe.length - done))
    for scored in runs:
        for row in probe.watched:
            record.compare(scored, row, expected[row])


def tree_state(probe: Probe, record: Record) -> None:
    """Behind a tree the sequence goes on anywhere up to its leading slots, with trees and without; what was beside is gone."""
    first, shape = _first(probe), _shape(probe)
    leading = int(Tree.of(shape[None]).leading()[0])
    sequences = probe.sequences()
    expected = probe.all_alone(sequences)
    start = np.full(probe.rows, (first + probe.length - len(shape)) // 2)
    wide = _window(probe, start, np.tile(shape, (probe.rows, 1)))
    wide.tokens[:, :leading] = sequences[:, start[0] : start[0] + leading]
    later = _window(probe, start + 1, np.tile(shape[:3], (probe.rows, 1)))
    paths = _paths(probe, sequences, later)
    rest = probe.length - int(start[0])
    for ahead in (leading, 1, 0, -min(2, int(start[0]))):
        probe.restart(range(probe.rows))
        probe.score(sequences, 0, int(start[0]))
        probe.forward(*wide[:2], parents=wide.parents)
        record.doing = (
            f"forwarding a tree with {leading} leading slots, and going on at the {_ordinal(ahead)} of its positions"
        )
        begin = start + ahead
        scored = probe.score(sequences, begin, rest - ahead, [1, 2])
        for row in probe.watched:
            record.compare(scored, row, expected[row])
    probe.restart(range(probe.rows))
    probe.score(sequences, 0, int(start[0]))
    probe.forward(*wide[:2], parents=wide.parents)
    record.doing = "forwarding a tree, and at its second position a smaller one"
    _compare(record, probe.forward(*later[:2], parents=later.parents), later, paths)


def _ordinal(ahead: int) -> str:
    return {0: "first", 1: "second", 2: "third"}.get(ahead, f"{-ahead}th before the first")


def tree_rows(probe: Probe, record: Record) -> None:
    """A tree of some rows leaves the others alone."""
    if probe.rows == 1:
        record.notes.append(ONE_ROW)
        return
    sequences, last = probe.sequences(), probe.rows - 1
    expected = probe.all_alone(sequences)
    start = np.full(probe.rows, _first(probe))
    window = _window(probe, start, np.tile(_shape(probe), (probe.rows, 1)))
    paths = _paths(probe, sequences, window, [last])
    probe.restart(range(probe.rows))
    half = probe.length // 2
    probe.score(sequences, 0, half)
    record.doing = f"forwarding a tree in row {last} alone"
    own = _Window(*(array[last:] for array in window))
    laws = probe.forward(*own[:2], parents=own.parents, rows=range(last, last + 1))
    _compare(record, np.repeat(laws, probe.rows, axis=0), window, paths)
    record.doing += ", then going on in the others"
    begin = np.where(np.arange(probe.rows) == last, start, half)
    scored = probe.score(sequences, begin, probe.length - max(half, int(start[0])))
    for row in probe.watched:
        record.compare(scored, row, expected[row])


def tree_read_only(probe: Probe, record: Record) -> None:
    """Arguments are left alone, and those that cannot be written to do as well."""
    sequences, start = probe.sequences(), np.full(probe.rows, _first(probe))
    window = _window(probe, start, np.tile(_shape(probe), (probe.rows, 1)))
    paths = _paths(probe, sequences, window, [0])
    probe.restart(range(probe.rows))
    probe.score(sequences, 0, int(start[0]))
    record.doing = "forwarding a tree"
    given = window.copy()
    assert isinstance(probe.provider, Trees)
    probe.provider.forward_tree(*given, range(probe.rows))
    for name, now, before in zip(given._fields, given, window, strict=True):
        if (now != before).any():
            record.fail(f"the call wrote into the caller's {name}")
    record.doing = "forwarding a tree of read-only arrays"
    _compare(record, probe.forward(*window[:2], parents=window.parents, frozen=True), window, paths)


def trees_refused(probe: Probe, record: Record) -> None:
    """Parents that make no tree, and trees that leave the model's memory, are refused and change nothing."""
    assert isinstance(probe.provider, Trees)
    sequences, half, rows = probe.sequences(), probe.length // 2, probe.rows
    expected = probe.all_alone(sequences)
    probe.restart(range(rows))
    probe.score(sequences, 0, half)

    def call(*parents: int, at: int = 0, width: int | None = None) -> Callable[[], object]:
        own = np.tile(np.array(parents, np.int64), (rows, 1))
        tokens = np.full((rows, len(parents) if width is None else width), probe.tokens[0])
        begin = np.zeros(rows, np.int64)
        begin[-1] = at
        assert isinstance(probe.provider, Trees)
        forward = probe.provider.forward_tree
        return lambda: forward(tokens, begin, own, range(rows))

    calls = {
        "a slot that is its own parent": call(-1, 1),
        "a parent behind its slot": call(-1, 2, 0),
        "a parent of -2": call(-1, -2),
        "fewer parents than slots": call(-1, 0, width=3),
        "start -1": call(-1, -1, at=-1),
        "a path beyond max_length": call(-1, 0, at=probe.max_length - 1),
    }
    wide = int(probe.provider.max_columns) - probe.max_length + 2
    if wide <= MOST_COLUMNS:
        calls["more slots than columns"] = call(*[-1] * wide, at=probe.max_length - 1)
    accepted = []
    for name, forward in calls.items():
        try:
            forward()
        except Exception:
            continue
        accepted.append(name)
    record.doing = "calling forward_tree out of bounds"
    if accepted:
        record.fail(f"no exception for {'; '.join(accepted)}")
        return
    record.doing = f"going on after {len(calls)} refused calls of forward_tree"
    scored = probe.score(sequences, half, probe.length - half)
    for row in probe.watched:
        record.compare(scored, row, expected[row])
