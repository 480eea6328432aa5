"""The checks of a logits provider, each a function of a `Probe` that fills a `Record`.

Each forwards the same tokens in some other way than alone and in one go, and the contract says that nothing changes:
cut into windows, in other rows, at ragged positions, over what was there before, after a refused call.

What the contract alone cannot show: an absolute position that is wrong in the same way everywhere, and weights that
are not those of the model one had in mind. Pass a reference for these. A provider that never looks at a token is taken for
a model without memory, and noted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coupled_sampling.contracts import Integers, LogitsProvider, RequestObserver
from coupled_sampling.testing.contracts.probe import Probe, Record, Scored, log_laws, problem_of_logits

__all__ = [
    "attributes",
    "bounds_refused",
    "causal",
    "deterministic",
    "fewer_rows",
    "input_untouched",
    "own_token",
    "ragged_starts",
    "read_only",
    "reference",
    "rollback",
    "row_reuse",
    "rows_independent",
    "shape_and_type",
    "tokens_refused",
    "whole_length",
    "window_split",
]

ONE_ROW = "batch_size is 1, so there is nothing to see"
ONE_TOKEN = "there is one token only, so nothing can be changed"
MOST_POSITIONS = 1024
"""Longest ``max_length`` that is filled to the end."""


def attributes(provider: LogitsProvider, record: Record) -> None:
    """The attributes are positive integers. This one comes before all others, which need them."""
    record.doing = "reading the attributes"
    for name in ("vocab_size", "batch_size", "max_length", "max_window"):
        value = getattr(provider, name, None)
        if value is None and name == "max_window":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            record.fail(f"{name} is {value!r}, expected an integer >= 1")


def shape_and_type(probe: Probe, record: Record) -> None:
    """Floating (B, W, V), finite or -inf, for one row and for all, one slot and several."""
    for rows in sorted({1, probe.rows}):
        for width in sorted({1, min(3, probe.max_window)}):
            sequences = probe.sequences()[:rows]
            probe.restart(range(rows))
            record.doing = f"forwarding {rows} rows and {width} slots from position 0"
            logits = probe.provider.forward(sequences[:, :width].copy(), np.zeros(rows, np.int64))
            problem = problem_of_logits(logits, (rows, width, probe.vocab_size))
            if problem is not None:
                record.fail(problem)


def _changed_positions(probe: Probe) -> list[int]:
    """A few positions past the first prompt at which to change a token, the first and the next to last among them."""
    first, last = len(probe.prompt(0)), probe.length - 2
    return sorted({first, first + 1, (first + last) // 2, last - 1, last})


def own_token(probe: Probe, record: Record) -> None:
    """The logits of a slot depend on that slot's own token, if later logits do."""
    if not probe.can_change_tokens:
        record.notes.append(ONE_TOKEN)
        return
    own, later = 0.0, 0.0
    record.doing = "changing one token at a time and looking at the logits of its own slot and of later ones"
    for position in _changed_positions(probe):
        sequence = probe.sequences(one_prompt=True)[0]
        changed = sequence.copy()
        changed[position] = probe.other_tokens(changed[position : position + 1])[0]
        quiet = Record("", "", record.tolerance)
        differences = quiet.measure(probe.alone(changed), probe.alone(sequence)).max(axis=-1)
        own, later = max(own, float(differences[position])), max(later, float(differences[position + 1 :].max()))
    if own <= record.tolerance < later:
        record.fail(
            f"the token of slot j never changes the logits of slot j (at most {own:.3g}), only later ones (by {later:.3g})"
        )
    if max(own, later) <= record.tolerance:
        record.notes.append(
            f"no token ever changed any logits by more than {max(own, later):.3g}: either the model has no memory, or the "
            "provider goes on saying what it said first; most other checks can see nothing here"
        )
    elif max(own, later) < 10 * record.tolerance:
        record.notes.append(
            f"one token changes logits by {max(own, later):.3g} at most, less than ten tolerances: errors of that size pass"
        )


def causal(probe: Probe, record: Record) -> None:
    """Changing all tokens from some position on leaves the logits before it."""
    if not probe.can_change_tokens:
        record.notes.append(ONE_TOKEN)
        return
    for position in filter(None, _changed_positions(probe)):
        sequence = probe.sequences(one_prompt=True)[:1]
        expected = probe.alone(sequence[0])
        sequence[:, position:] = probe.other_tokens(sequence[:, position:])
        record.doing = f"changing all tokens from position {position} on in a window that begins at position 0"
        probe.restart([0], one_prompt=True)
        scored = probe.score(sequence, 0, probe.length)
        before = Scored(scored.laws[:, :position], scored.start, scored.slots[:position])
        record.compare(before, 0, expected)


def rollback(probe: Probe, record: Record) -> None:
    """The last write wins: going back and forwarding other tokens forgets what was there."""
    final = np.repeat(probe.sequences(one_prompt=True)[:1], probe.rows, axis=0)
    first = len(probe.prompt(0))
    back = max(1, first + (probe.length - first) // 3)
    middle = back + max(1, (probe.length - back) // 2)
    expected = probe.alone(final[0])
    junk = final.copy()
    if probe.can_change_tokens:
        junk[:, back:] = probe.other_tokens(junk[:, back:])
    other = probe.sequences(one_prompt=True)
    junk[1:, back:] = other[1:, back:]  # every row has another past, so rows that keep theirs differ
    probe.restart(range(probe.rows), one_prompt=True)
    record.doing = f"forwarding {probe.length} tokens, going back to position {back} and forwarding others"
    probe.score(junk, 0, probe.length)
    runs = [probe.score(final, back, middle - back), probe.score(final, middle, probe.length - middle)]
    runs.append(probe.score(final, probe.length - 1, 1))
    probe.score(junk, 0, probe.length)
    runs.append(probe.score(final, max(0, back - 1), probe.length - max(0, back - 1), [1, 1]))
    for scored in runs:
        for row in probe.watched:
            record.compare(scored, row, expected)


def window_split(probe: Probe, record: Record) -> None:
    """Windows of any widths, overlapping or not, give the logits of one long window."""
    sequence = probe.sequences(one_prompt=True)[:1]
    expected = probe.alone(sequence[0])
    count = probe.length
    random = probe.random.integers(1, 6, count).tolist()
    for name, widths in {
        "of 1 token": [1] * count,
        "of 2 tokens": [2] * count,
        "of 3 tokens, then of all the rest": [3],
        "of random widths from 1 to 5": random,
    }.items():
        probe.restart([0], one_prompt=True)
        record.doing = f"forwarding {count} tokens in windows {name}"
        record.compare(probe.score(sequence, 0, count, widths), 0, expected)
    width = min(4, probe.max_window)
    probe.restart([0], one_prompt=True)
    record.doing = f"forwarding windows of {width} tokens that each repeat the last token of the one before"
    for start in range(0, count - width + 1, max(1, width - 1)):
        record.compare(probe.score(sequence, start, width), 0, expected)


def deterministic(probe: Probe, record: Record) -> None:
    """The same call again gives the same logits."""
    sequences, last = probe.sequences(), probe.length - 1
    probe.restart(range(probe.rows))
    record.doing = "forwarding the same tokens twice"
    first = probe.score(sequences, 0, probe.length)
    again = [probe.score(sequences, last, 1) for _ in range(3)] + [probe.score(sequences, 0, probe.length)]
    for scored in again:
        for row in probe.watched:
            record.compare(scored, row, first.laws[row])


def ragged_starts(probe: Probe, record: Record) -> None:
    """Rows at different starts give what they give alone."""
    if probe.rows == 1:
        record.notes.append(ONE_ROW)
        return
    sequences, half = probe.sequences(), probe.length // 2
    expected = probe.all_alone(sequences)
    count = max(1, (probe.length - half) // 2)
    lower = probe.random.integers(0, half, probe.rows)
    for name, ahead in (
        ("the first row ahead", np.arange(probe.rows) == 0),
        ("the first row behind", np.arange(probe.rows) > 0),
    ):
        start = np.where(ahead, half, lower)
        probe.restart(range(probe.rows))
        probe.score(sequences, 0, half)
        record.doing = f"forwarding {count} tokens from different starts, {name}"
        runs = [probe.score(sequences, start, count)]
        record.doing += ", and then the next"
        runs.append(probe.score(sequences, start + count, probe.length - half - count))
        for scored in runs:
            for row in probe.watched:
                record.compare(scored, row, expected[row])


def rows_independent(probe: Probe, record: Record) -> None:
    """Other tokens in one row leave the logits of the others."""
    if probe.rows == 1 or not probe.can_change_tokens:
        record.notes.append(ONE_ROW if probe.rows == 1 else ONE_TOKEN)
        return
    sequences, half = probe.sequences(), probe.length // 2
    probe.restart(range(probe.rows))
    undisturbed = probe.score(sequences, 0, probe.length)
    for disturbed in sorted({0, probe.rows - 1}):
        others, first = sequences.copy(), len(probe.prompt(disturbed))
        others[disturbed, first:] = probe.other_tokens(others[disturbed, first:])
        probe.restart(range(probe.rows))
        record.doing = f"changing the tokens of row {disturbed} only"
        for scored in (probe.score(others, 0, half), probe.score(others, half, probe.length - half)):
            for row in probe.watched:
                if row != disturbed:
                    record.compare(scored, row, undisturbed.laws[row])


def row_reuse(probe: Probe, record: Record) -> None:
    """A row that starts another sequence forgets the one before and leaves the others where they are."""
    old, new, half = probe.sequences(), probe.sequences(), probe.length // 2
    expected, anew = probe.all_alone(old), probe.alone(new[0])
    probe.restart(range(probe.rows))
    probe.score(old, 0, half)
    probe.restart([0])
    mixed, start = old.copy(), np.full(probe.rows, half)
    mixed[0], start[0] = new[0], 0
    record.doing = "starting another sequence in row 0 while the other rows go on"
    scored = probe.score(mixed, start, probe.length - half)
    for row in probe.watched:
        record.compare(scored, row, expected[row] if row else anew)
    if probe.conditions is not None and len(probe.conditions) > 1:
        _other_condition(probe, record, probe.conditions[1])


def _other_condition(probe: Probe, record: Record, other: object) -> None:
    """The same tokens in row 0 under its own condition, under another one, and under its own again."""
    sequence, own = probe.sequences(one_prompt=True)[:1], probe.request(0)
    assert isinstance(probe.provider, RequestObserver)
    runs = []
    for condition in (own.condition, other, own.condition):
        probe.provider.begin(0, replace(own, condition=condition))
        runs.append(probe.score(sequence, 0, probe.length))
    record.doing = "starting the same sequence in row 0 with another request.condition"
    if Record("", "", record.tolerance).measure(runs[1].laws, runs[0].laws).max() <= record.tolerance:
        record.fail("the logits are those of the condition before: it is never looked at, or the first one is kept")
    record.doing += ", and with the first one again"
    record.compare(runs[2], 0, runs[0].laws[0])


def fewer_rows(probe: Probe, record: Record) -> None:
    """A call for the first rows only gives theirs, and the others keep their state."""
    if probe.rows == 1:
        record.notes.append(ONE_ROW)
        return
    for rows in sorted({1, probe.rows - 1}):
        old, new, half = probe.sequences(), probe.sequences(), probe.length // 2
        mixed = np.concatenate([new[:rows], old[rows:]])
        expected = probe.all_alone(mixed)
        probe.restart(range(probe.rows))
        probe.score(old, 0, half)
        probe.restart(range(rows))
        record.doing = f"forwarding the first {rows} of {probe.rows} rows, then all"
        runs = [probe.score(mixed[:rows], 0, half), probe.score(mixed, half, probe.length - half)]
        for scored in runs:
            for row in probe.watched:
                if row < len(scored.laws):
                    record.compare(scored, row, expected[row])


def input_untouched(probe: Probe, record: Record) -> None:
    """The caller's arrays are not written to, and not relied on after the call."""
    sequences, half = probe.sequences(), min(probe.length // 2, probe.max_window)
    expected = probe.all_alone(sequences)
    probe.restart(range(probe.rows))
    tokens, start = sequences[:, :half].copy(), np.zeros(probe.rows, np.int64)
    record.doing = f"forwarding {half} tokens"
    probe.provider.forward(tokens, start)
    if (tokens != sequences[:, :half]).any() or start.any():
        record.fail(f"the call wrote into the caller's {'start' if start.any() else 'tokens'}")
    record.doing = f"forwarding {half} tokens, using their array for something else, and forwarding the next tokens"
    tokens[:], start[:] = tokens[:, ::-1].copy(), 1
    scored = probe.score(sequences, half, probe.length - half)
    for row in probe.watched:
        record.compare(scored, row, expected[row])


def read_only(probe: Probe, record: Record) -> None:
    """Arrays that cannot be written to, which a decoding loop hands over, give the same."""
    sequences, half = probe.sequences(), probe.length // 2
    expected = probe.all_alone(sequences)
    probe.restart(range(probe.rows))
    record.doing = "forwarding read-only tokens and start"
    for scored in (
        probe.score(sequences, 0, half, frozen=True),
        probe.score(sequences, half, probe.length - half, frozen=True),
    ):
        for row in probe.watched:
            record.compare(scored, row, expected[row])


def _refuses(probe: Probe, record: Record, calls: dict[str, tuple[Integers, Integers]]) -> None:
    """Each of ``calls`` raises, and leaves the state as it was."""
    sequences, half = probe.sequences(), probe.length // 2
    expected = probe.all_alone(sequences)
    probe.restart(range(probe.rows))
    record.doing = f"forwarding {half} tokens"
    probe.score(sequences, 0, half)
    accepted = []
    for name, (tokens, start) in calls.items():
        try:
            probe.provider.forward(tokens, start)
        except Exception:
            continue
        accepted.append(name)
    if accepted:
        record.doing = "calling forward out of bounds"
        record.fail(f"no exception for {'; '.join(accepted)}")
        return
    record.doing = f"going on after {len(calls)} refused calls ({'; '.join(calls)})"
    scored = probe.score(sequences, half, probe.length - half)
    for row in probe.watched:
        record.compare(scored, row, expected[row])


def bounds_refused(probe: Probe, record: Record) -> None:
    """Rows, slots and positions that do not exist are refused."""
    width, rows = min(2, probe.max_window), probe.rows
    tokens = probe.sequences()[:, :width]

    def last_row_at(start: int) -> tuple[Integers, Integers]:
        begin = np.zeros(rows, np.int64)
        begin[-1] = start
        return tokens.copy(), begin

    calls = {
        "start -1": last_row_at(-1),
        "a window that ends one position beyond max_length": last_row_at(probe.max_length - width + 1),
        "a window that begins at max_length": last_row_at(probe.max_length),
        "one row more than batch_size": (np.repeat(tokens[:1], rows + 1, axis=0), np.zeros(rows + 1, np.int64)),
    }
    if probe.max_window < probe.max_length:
        wide = np.full((rows, probe.max_window + 1), probe.tokens[0], np.int64)
        calls["one slot more than max_window"] = (wide, np.zeros(rows, np.int64))
    _refuses(probe, record, calls)


def tokens_refused(probe: Probe, record: Record) -> None:
    """Tokens outside the vocabulary are refused."""
    width = min(2, probe.max_window)
    calls = {}
    for token in (probe.vocab_size, -1):
        tokens = probe.sequences()[:, :width].copy()
        tokens[-1, -1] = token
        calls[f"token {token} of a vocabulary of {probe.vocab_size}"] = (tokens, np.zeros(probe.rows, np.int64))
    _refuses(probe, record, calls)


def whole_length(probe: Probe, record: Record) -> None:
    """All ``max_length`` positions can be used."""
    if probe.max_length > MOST_POSITIONS:
        record.notes.append(
            f"max_length is {probe.max_length}; only providers up to {MOST_POSITIONS} are filled to the end"
        )
        return
    sequence = np.concatenate([probe.prompt(0), probe.random.choice(probe.tokens, probe.max_length)])[
        : probe.max_length
    ]
    probe.restart([0], one_prompt=True)
    record.doing = f"filling row 0 to max_length, {probe.max_length}"
    whole = probe.score(sequence[None], 0, probe.max_length)
    record.doing += ", then forwarding its last positions again"
    for width in sorted({1, min(3, probe.max_window)}):
        record.compare(probe.score(sequence[None], probe.max_length - width, width), 0, whole.laws[0])


def reference(probe: Probe, record: Record) -> None:
    """The logits are those of the reference, at every position."""
    if probe.reference is None:
        record.notes.append(
            "none was given: an absolute position that is wrong in the same way everywhere, or wrong weights, go unseen"
        )
        return
    for row in probe.watched:
        sequences = probe.sequences()
        record.doing = "asking the reference"
        told = () if probe.conditions is None else (probe.request(row).condition,)
        expected = log_laws(probe.reference(sequences[row].copy(), *told))
        probe.restart(range(probe.rows))
        record.doing = "forwarding what the reference was asked"
        record.compare(probe.score(sequences, 0, probe.length, [1, 2]), row, expected)
