"""The checks of what a logits provider may offer besides ``forward``, each a function of a `Probe` that fills a `Record`.

They are run where the offer is there: requests told by ``begin``, prompts in chunks, ranges of rows, forks. As in
`coupled_sampling.testing.contracts.provider_checks` the provider is its own yardstick: an offer is another way to come to the same
state, and what follows on it must be what the sequence alone says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coupled_sampling.contracts import Forks, LogitsProvider, ReadsPrompts, RequestObserver, Selective
from coupled_sampling.testing.contracts.probe import Probe, Record
from coupled_sampling.testing.contracts.provider_checks import ONE_ROW

__all__ = ["begin", "can_fork", "fork", "prompt_chunk", "row_ranges", "row_ranges_refused", "takes"]


def can_fork(provider: LogitsProvider) -> bool:
    """Whether it says so: a wrapper can where what it wraps can."""
    return isinstance(provider, Forks) and provider.forks


def begin(probe: Probe, record: Record) -> None:
    """It takes a `Request`, for every row, and leaves its prompt as it is."""
    assert isinstance(probe.provider, RequestObserver)
    for row in range(probe.rows):
        request = probe.request(row)
        record.doing = f"calling begin({row}, request) with a prompt of {len(request.prompt)} tokens"
        try:
            probe.provider.begin(row, request)
        except Exception as error:  # a provider may raise anything
            record.fail(f"{type(error).__name__}: {error}")
            return
        if not np.array_equal(request.prompt, probe.prompt(row)):
            record.fail("the call wrote into request.prompt")


def takes(probe: Probe, record: Record) -> None:
    """It answers with None or a reason, and raises nothing."""
    assert isinstance(probe.provider, Selective)
    for row in range(min(probe.rows, len(probe.prompts))):
        record.doing = f"asking takes(request) with a prompt of {len(probe.prompt(row))} tokens and length 1"
        reason: Any = probe.provider.takes(probe.request(row))
        if reason is not None and not isinstance(reason, str):
            record.fail(f"it returned {reason!r}, expected None or a reason in words")
        elif reason is not None:
            record.notes.append(f"a request that asks for nothing special is refused: {reason}")


def prompt_chunk(probe: Probe, record: Record) -> None:
    """Its width is one that ``forward`` takes, and prompts read in such chunks are read rightly."""
    assert isinstance(probe.provider, ReadsPrompts)
    record.doing = "reading prompt_chunk"
    chunk: Any = probe.provider.prompt_chunk
    if isinstance(chunk, bool) or not isinstance(chunk, int | np.integer) or not 1 <= chunk <= probe.max_window:
        record.fail(f"it is {chunk!r}, expected an integer from 1 to max_window, {probe.max_window}")
        return
    sequences = probe.sequences()
    expected = probe.all_alone(sequences)
    probe.restart(range(probe.rows))
    record.doing = f"forwarding {probe.length} tokens in chunks of {chunk}, and the last one again"
    count = probe.length
    for scored in (probe.score(sequences, 0, count, [int(chunk)] * count), probe.score(sequences, count - 1, 1)):
        for row in probe.watched:
            record.compare(scored, row, expected[row])


def row_ranges(probe: Probe, record: Record) -> None:
    """``forward_rows`` gives what ``forward`` gives, and the other rows keep their state."""
    for rows in sorted({(0, 1), (probe.rows - 1, probe.rows), (probe.rows // 2, probe.rows), (0, probe.rows)}):
        chosen = range(*rows)
        old, new, half = probe.sequences(), probe.sequences(), probe.length // 2
        mixed = old.copy()
        mixed[chosen.start : chosen.stop] = new[chosen.start : chosen.stop]
        expected = probe.all_alone(mixed)
        probe.restart(range(probe.rows))
        probe.score(old, 0, half)
        probe.restart(chosen)
        record.doing = f"forwarding new sequences in rows {chosen.start} to {chosen.stop - 1} alone"
        part = probe.score(mixed[chosen.start : chosen.stop], 0, half, [2], rows=chosen)
        for row in probe.watched:
            if row in chosen:
                record.compare(part, row - chosen.start, expected[row])
        record.doing += f", then all {probe.rows} rows"
        scored = probe.score(mixed, half, probe.length - half)
        for row in probe.watched:
            record.compare(scored, row, expected[row])


def row_ranges_refused(probe: Probe, record: Record) -> None:
    """Rows that do not exist, and numbers of rows that are not those of the tokens, are refused."""
    provider: Any = probe.provider
    tokens, start = probe.sequences()[:1, :1].copy(), np.zeros(1, np.int64)
    calls = {
        "a row past the last": range(probe.rows, probe.rows + 1),
        "a row before the first": range(-1, 0),
        "two rows for the tokens of one": range(2),
    }
    accepted = []
    for name, rows in calls.items():
        try:
            provider.forward_rows(tokens.copy(), start.copy(), rows)
        except Exception:
            continue
        accepted.append(name)
    record.doing = "calling forward_rows out of bounds"
    if accepted:
        record.fail(f"no exception for {'; '.join(accepted)}")


def fork(probe: Probe, record: Record) -> None:
    """Targets go on from the source's state below ``length``; all rows are independent afterwards, and others untouched."""
    if probe.rows == 1:
        record.notes.append(ONE_ROW)
        return
    half, prompt = probe.length // 2, len(probe.prompt(0))
    for source, length in ((0, half), (probe.rows - 1, min(half, max(prompt, half - 3, 1)))):
        others = [row for row in range(probe.rows) if row != source]
        _fork(probe, record, source, others[: max(1, len(others) - 1)], length)  # of three rows, one is left out


def _fork(probe: Probe, record: Record, source: int, targets: list[int], length: int) -> None:
    assert isinstance(probe.provider, Forks)
    half = probe.length // 2
    old, new = probe.sequences(one_prompt=True), probe.sequences(one_prompt=True)
    start, going_on = np.full(probe.rows, half), old.copy()
    # The source goes on with other tokens from below ``length``: a state that is shared instead of copied is seen.
    start[source] = min(half, len(probe.prompt(0)))
    going_on[source, start[source] :] = new[source, start[source] :]
    for target in targets:
        start[target] = length
        going_on[target, :length], going_on[target, length:] = old[source, :length], new[target, length:]
    expected = probe.all_alone(going_on, one_prompt=True)
    probe.restart(range(probe.rows), one_prompt=True)
    probe.score(old, 0, half)
    record.doing = (
        f"forking {length} positions of row {source} to rows {targets}, then going on with tokens of its own in every row, in row "
        f"{source} from position {start[source]} on"
    )
    probe.provider.fork(source, targets, length)
    scored = probe.score(going_on, start, probe.length - int(start.max()), [1, 2])
    for row in probe.watched:
        record.compare(scored, row, expected[row])
