"""`LawBook` against a model that remembers everything: what must be found, and what must never be written over."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.law_book import Held, LawBook


class Row:
    """A row as the loop sees it and its two memories, in which a law is a name: (sequence, round, attempt, position)."""

    def __init__(self):
        self.sequence = self.attempt = 0
        self.memories = [{}, {}]
        """Laws by the entry that they lie in; what a step has spoilt is not there."""
        self.begin(1)

    def begin(self, first):
        """Another sequence: what the memories hold is of no use to it."""
        self.sequence += 1
        self.first, self.round, self.drafts, self.book = first, 0, [], LawBook()
        self.complete = {}
        """What the latest complete attempt of each round decided: its laws by position."""

    def step(self, known, recycled, fresh, fate, used):
        start, self.attempt = self.first - known, self.attempt + 1
        end = self.first + recycled + fresh + 1
        if recycled:
            source = self.book.source(0, self.round - 1, self.first, self.first + recycled)
            entries = [self.first + i - self.book.start(source) for i in range(recycled)]
            assert [self.memories[source].get(entry) for entry in entries] == self.drafts[:recycled]
        target = self.book.target(self.round)
        assert not set(self.memories[target].values()) & set(self.drafts), "laws that may be asked for again are lost"
        self.memories[target] = {}
        self.book = self.book.written(target, None)
        if fate == "fails":
            return
        laws = {p: (self.sequence, self.round, self.attempt, p) for p in range(self.first, end)}
        # The last known slots have laws too, which nobody may take for those of drafts.
        self.memories[target] = {p - start: laws.get(p, "of a known token") for p in range(start + 1, end)}
        self.book = self.book.written(target, Held(self.round, start, self.first, end))
        self.complete[self.round] = laws
        if fate == "lost":
            return
        self.first += min(used, recycled + fresh + 1)
        self.drafts = [laws[p] for p in range(self.first, end)]
        self.round += 1

    def holding(self, round_, first, end):
        """The memory in which the laws of ``round_`` lie, by what was really written."""
        wanted = [self.complete.get(round_, {}).get(p, "nothing") for p in range(first, end)]
        places = [i for i, memory in enumerate(self.memories) if set(wanted) <= set(memory.values())]
        return places[0] if places else None


FATES = st.sampled_from(["used", "used", "lost", "fails"])


@settings(derandomize=True, deadline=None, max_examples=100)
@given(data=st.data())
def test_what_was_written_is_found_and_what_may_be_asked_for_again_is_kept(data):
    """Windows of any width, outcomes lost and steps that fail in any order, sequences that replace each other."""
    row, small = Row(), st.integers(0, 4)
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.integers(0, 9)) == 0:
            row.begin(1 + data.draw(small))
        if not row.drafts and data.draw(st.booleans()):
            row.round += 1  # a step of a prompt that goes on beyond the window
        recycled = data.draw(st.integers(0, len(row.drafts)))
        fresh = data.draw(small) if recycled == len(row.drafts) else 0
        known = data.draw(st.integers(1, min(3, row.first)))
        row.step(known, recycled, fresh, data.draw(FATES), data.draw(st.integers(1, 9)))
        first = max(0, row.first + data.draw(st.integers(-3, 3)))
        asked = row.round - data.draw(st.integers(0, 3)), first, first + 1 + data.draw(small)
        assert row.book.find(*asked) == row.holding(*asked)
        if row.holding(*asked) is None:
            with pytest.raises(InvalidArgument, match=f"row 7 .* those of round {asked[0]}, but this step holds"):
                row.book.source(7, *asked)


def test_a_refusal_says_what_was_asked_for_and_what_is_held():
    book = LawBook().written(1, Held(4, 10, 12, 18)).written(0, Held(5, 13, 14, 20))
    holds = "row 2 is 5 drafts from position 14 on.* round 4, but this step holds round 5 for 14 to 19 and round 4 for 12 to 17;"
    with pytest.raises(InvalidArgument, match=holds):
        book.source(2, 4, 14, 19)
    with pytest.raises(
        InvalidArgument, match="holds no laws; recycled drafts must be those of the outcome of the round before"
    ):
        LawBook().source(0, 4, 14, 19)


def test_of_a_round_done_twice_the_later_laws_count_wherever_they_lie():
    book = LawBook().written(0, Held(3, 5, 6, 9)).written(1, Held(3, 5, 6, 12))
    assert book.find(3, 6, 9) == book.find(3, 6, 12) == 1


def test_what_a_failed_step_wrote_over_is_not_found():
    held = Held(3, 5, 6, 9)
    book = LawBook().written(0, held).written(1, Held(4, 7, 8, 12))
    assert book.written(0, None) == LawBook(None, book.one)
    assert book.written(1, None).find(3, 6, 9) == 0
