"""The law memory of step graphs, without a graph: rows that join and leave, lost outcomes, wider windows, failing runs."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Sampling
from coupled_sampling.backends.ort.binding import Kept
from coupled_sampling.backends.ort.step_state import AlternatingLaws
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import InvalidArgument

ROWS, VOCAB = 4, 2


class Binding:
    """What is bound, as arrays."""

    def __init__(self):
        self.bound = {}

    def keep(self, values):
        return Kept(values, values.ctypes.data, values.dtype.type, values.size)

    def fetch(self, kept):
        return kept.memory.reshape(-1)

    def bind_kept(self, name, kept, shape, row):
        first, end = (count * math.prod(shape[1:]) for count in (row, row + shape[0]))
        assert end <= kept.size
        self.bound[name] = kept.memory.reshape(-1)[first:end].reshape(shape)


class Row:
    """A row as the loop sees it."""

    def __init__(self, first):
        self.first, self.round, self.drafts = first, 0, []
        """Of each draft the law that it was drawn from; laws are numbers that occur once."""


class Batch:
    """Rows over one `AlternatingLaws`; ``written`` remembers each row's laws by round and position."""

    def __init__(self):
        self.binding = Binding()
        self.laws = AlternatingLaws(self.binding, ROWS, VOCAB)
        self.rows, self.written = [None] * ROWS, [{} for _ in range(ROWS)]
        self.calls = 0

    def begin(self, b, first):
        self.laws.forget(b)
        self.rows[b], self.written[b] = Row(first), {}

    def window(self, shapes):
        """A window whose row b has ``shapes[b]``: known, recycled, fresh and whether it draws; None is idle."""
        width = max(sum(shape[:3]) for shape in shapes if shape is not None)
        known, recycled, fresh, draws = np.array([shape or (0, 0, 0, 0) for shape in shapes]).T
        first = np.array([0 if row is None else row.first for row in self.rows[: len(shapes)]])
        idle = np.array([row is None for row in self.rows[: len(shapes)]])
        return Window(
            tokens=np.zeros((len(shapes), width), np.int64),
            start=np.where(idle, 0, first - known),
            known=known,
            recycled=recycled,
            fresh=fresh,
            draws=draws == 1,
            round=np.array([0 if row is None else row.round for row in self.rows[: len(shapes)]]),
            rows=[None if shape is None else RowInfo(0, b, Sampling()) for b, shape in enumerate(shapes)],
            contexts=[np.zeros(0, np.int64)] * len(shapes),
            fresh_laws=[None] * len(shapes),
        )

    def step(self, shapes, fails, used):
        """Read, write, and let row b commit ``used[b]`` tokens; 0 says that its outcome was lost."""
        window, laws = self.window(shapes), self.laws
        source = laws.source(window)
        self.calls += 1
        for part in window.busy_parts():
            self._run(window, part, source, fails)
        if not fails:
            laws.written(1 - source, window)
            for b in np.flatnonzero(window.draws):
                self._decide(b, window, used[b])
        self.check_claims()

    def _run(self, window, part, source, fails):
        """What the graph does in a call for the rows ``part``."""
        starts = self.laws.starts(source, part)
        self.laws.bind(source, part, window.tokens.shape[1])
        read, write = self.binding.bound["draft_laws"], self.binding.bound["laws"]
        assert not np.shares_memory(read, write)
        for i, b in enumerate(part):
            if not window.draws[b]:
                continue
            slots = int(window.known[b]) - 1 + np.arange(window.recycled[b])
            found = read[i, slots + window.start[b] - starts[i]]
            assert found[:, 0].tolist() == self.rows[b].drafts[: len(slots)]
            assert (found[:, 1] == b).all()
        write[...] = np.nan
        if not fails:
            write[..., 0] = 1000 * self.calls + window.positions[part.start : part.stop]
            write[..., 1] = np.array(part)[:, None]

    def _decide(self, b, window, used):
        row, (first, end) = self.rows[b], window.decided_positions(b)
        own = self.written[b][row.round] = {p: 1000 * self.calls + p for p in range(first, end)}
        if used:
            row.first += min(used, end - first)
            row.drafts = [own[p] for p in range(row.first, end)]
            row.round += 1

    def check_claims(self):
        """What the books say lies somewhere lies there."""
        for b, book in enumerate(self.laws.books):
            for buffer, width, held in zip(self.laws.buffers, self.laws.widths, book, strict=True):
                if held is not None:
                    own = self.binding.fetch(buffer)[b * width * VOCAB : (b + 1) * width * VOCAB].reshape(width, VOCAB)
                    entries = own[held.first - held.start - 1 : held.end - held.start - 1, 0]
                    assert entries.tolist() == [self.written[b][held.round][p] for p in range(held.first, held.end)]


def test_rows_read_the_laws_of_their_drafts_whatever_happens():
    """And nothing is claimed that does not lie there. Some rows' outcomes are lost while those of others are used."""
    seen = Counter()

    @settings(derandomize=True, deadline=None, max_examples=80)
    @given(data=st.data())
    def runs(data):
        batch, small, few = Batch(), st.integers(0, 4), st.integers(0, 9)
        gather = batch.laws._gather
        batch.laws._gather = lambda owners: seen.update(["gathered"]) or gather(owners)
        for _ in range(data.draw(st.integers(1, 20))):
            for b in range(ROWS):
                if batch.rows[b] is None and data.draw(few) < 4:
                    batch.begin(b, 4 + data.draw(small))
                    seen["joined"] += batch.calls > 0
                elif batch.rows[b] is not None and data.draw(few) == 0:
                    batch.rows[b] = None
            active = [b for b in range(ROWS) if batch.rows[b] is not None]
            if not active:
                continue
            shapes = [None] * (max(active) + 1)
            for b in active:
                drafts, prompt = len(batch.rows[b].drafts), data.draw(few) == 0
                recycled = data.draw(st.integers(0, drafts)) if data.draw(few) < 3 else drafts
                fresh = data.draw(small) if recycled == drafts else 0
                shapes[b] = (1 + data.draw(small) % 3, recycled, fresh, 1)
                if prompt and not drafts:
                    shapes[b] = (1 + data.draw(small) % 3, 0, 0, 0)
            lost = data.draw(few) == 0
            used = [0 if lost or data.draw(few) < 2 else 1 + data.draw(small) for _ in range(ROWS)]
            seen["grew"] -= sum(buffer.size for buffer in batch.laws.buffers)
            batch.step(shapes, data.draw(few) == 0, used)
            seen["grew"] += sum(buffer.size for buffer in batch.laws.buffers)

    runs()
    assert seen["gathered"] > 20
    assert seen["joined"] > 20
    assert seen["grew"] > 20


def test_laws_that_no_draft_needed_survive_until_a_wider_window_asks():
    """A step without recycled drafts, whose outcome is lost, is done again with them."""
    batch = Batch()
    batch.begin(0, 4)
    batch.step([(1, 0, 5, 1)], False, [2])
    for _ in range(2):  # so that either buffer is the one to be kept
        batch.step([(1, 0, 0, 1)], False, [0])
        batch.step([(1, 4, 1, 1)], False, [2])


def test_drafts_of_another_round_are_refused_by_row():
    batch = Batch()
    for b in range(2):
        batch.begin(b, 4)
    batch.step([(1, 0, 5, 1)] * 2, False, [2, 2])
    window = batch.window([(1, 3, 0, 1)] * 2)
    batch.laws.source(window)
    with pytest.raises(
        InvalidArgument, match="row 1 is 3 drafts from position 6 on, whose laws are those of round 2, but"
    ):
        batch.laws.source(window._replace(round=window.round + np.array([0, 2])))
    batch.laws.forget(1)
    with pytest.raises(InvalidArgument, match=r"row 1 .* this step holds no laws"):
        batch.laws.source(window)
