"""Which slots of a window decide, against a slot-by-slot account; and what steps refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Sampling
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.refusals import Refusals


@st.composite
def windows(draw):
    """Up to four rows: idle ones, ones whose prompt goes on, and ones with drafts."""
    rows = []
    for b in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["idle", "prompt", "draws", "draws"]))
        known = 0 if kind == "idle" else draw(st.integers(1, 4))
        recycled, fresh = (draw(st.integers(0, 3)) if kind == "draws" else 0 for _ in range(2))
        info = None if kind == "idle" else RowInfo(2**64 - 1 - b, b, Sampling())
        rows.append((draw(st.integers(0, 9)), known, recycled, fresh, kind == "draws", draw(st.integers(0, 5)), info))
    start, known, recycled, fresh, draws, round_, infos = zip(*rows, strict=True)
    width = max(1, *(sum(row[1:4]) for row in rows))
    tokens = np.arange(len(rows) * width).reshape(len(rows), width)
    counts = [np.array(column, np.int64) for column in (start, known, recycled, fresh)]
    nothing = [None] * len(rows)
    return Window(tokens, *counts, np.array(draws), np.array(round_, np.int64), infos, nothing, nothing)


def account(window, b):
    """What each slot of row b is for: the position, whether it decides about it, and the draft that it tests."""
    drafts = window.recycled[b] + window.fresh[b]
    for slot in range(window.tokens.shape[1]):
        number = slot - (window.known[b] - 1)  # of the decision: 0 for the first draft's
        decides = bool(window.draws[b] and 0 <= number <= drafts)
        draft = int(window.tokens[b, slot + 1]) if decides and number < drafts else None
        yield int(window.start[b]) + slot + 1, decides, draft


@settings(derandomize=True, deadline=None, max_examples=150)
@given(windows())
def test_the_slots_that_decide_are_those_of_a_slot_by_slot_account(window):
    found, count = window.decisions(), 0
    sites, width = found.sites, window.tokens.shape[1]
    assert sites.valid.shape == sites.position.shape == found.draft.shape == found.has_draft.shape
    assert sites.valid.shape == (len(window.start), width - found.first)
    assert found.first == width or sites.valid[:, 0].any()
    for b in range(len(window.start)):
        own = list(account(window, b))
        positions, decides, drafts = zip(*own, strict=True)
        assert window.positions[b].tolist() == list(positions)
        assert window.decides()[b].tolist() == list(decides)
        assert not any(decides[: found.first])
        count += sum(decides)
        if window.draws[b]:
            decided = [position for position, does, _ in own if does]
            assert window.decided_positions(b) == (decided[0], decided[-1] + 1)
            assert window.end[b] == decided[-1] - window.start[b]
        later = own[found.first :]
        assert sites.position[b].tolist() == [position for position, _, _ in later]
        assert found.has_draft[b].tolist() == [draft is not None for _, _, draft in later]
        assert found.draft[b, found.has_draft[b]].tolist() == [draft for draft in drafts if draft is not None]
        info = window.rows[b]
        owner = (0, 0) if info is None else (info.seed, info.sequence)
        assert (int(sites.seed[b]), int(sites.sequence[b]), sites.round[b]) == (*owner, window.round[b])
    assert sites.valid.sum() == count


def keep(logits, tokens, positions):
    return logits


def one_row(sampling, laws=None):
    one = np.array([1])
    tokens = np.array([[3, 4]])
    return Window(tokens, 0 * one, one, 0 * one, one, one == 1, one, [RowInfo(0, 0, sampling)], [tokens[0]], [laws])


NOTHING = Refusals("a toy", laws="do A", processors="do B", warps="do C")


@pytest.mark.parametrize(
    ("sampling", "laws", "refused", "message"),
    [
        (Sampling(), np.ones((1, 5)) / 5, "laws", "window.fresh_laws carry laws, but a toy can only take point masses; do A"),
        (Sampling(processors=(keep,)), None, "processors", "row 0 has logits processors, which a toy cannot run; do B"),
        (Sampling(top_k=2), None, "warps", "row 0 asks for Sampling(temperature=1.0, top_k=2, "),
        (Sampling(top_p=0.5), None, "warps", "but a toy can do neither top-k, top-p nor min-p; do C"),
        (Sampling(min_p=0.5), None, "warps", "but a toy can do neither top-k, top-p nor min-p; do C"),
    ],
)  # fmt: skip
def test_what_a_step_does_not_do_is_refused_and_nothing_else(sampling, laws, refused, message):
    window = one_row(sampling, laws)
    with pytest.raises(InvalidArgument) as raised:
        NOTHING.check(window)
    assert message in str(raised.value)
    others = {name: "do D" for name in ("laws", "processors", "warps") if name != refused}
    Refusals("a toy", **others).check(window)
    NOTHING.check(one_row(Sampling(0.5)))
    NOTHING.check(one_row(Sampling(0.5))._replace(rows=[None]))


def test_a_request_can_be_asked_before_it_is_taken():
    assert NOTHING.reason(Sampling(0.5)) is None
    assert NOTHING.reason(Sampling(top_k=5)).startswith("asks for Sampling(")
    assert Refusals("a toy", warps="do C").reason(Sampling(processors=(keep,))) is None
