"""The ring of race noise alone: whatever the loop does, each position under way has its own noise when the graph reads it.

`Ring` does in numpy what the graph does with the ring, and names noise instead of drawing it, so thousands of steps take a second.
"""

import contextlib

import numpy as np
import pytest

from coupled_sampling import Decoder, Request
from coupled_sampling.backends.ort.binding import Kept
from coupled_sampling.backends.ort.step_state import NoiseRing
from coupled_sampling.contracts import Outcome, Runs
from coupled_sampling.errors import ProviderError
from coupled_sampling.methods import find_method
from coupled_sampling.noise import CounterNoise
from standins.schedules import Erratic

ROWS, LENGTH = 3, 60
RUBBISH = (None, None, -1)


class Memory:
    """What a ring asks of a binding."""

    def keep(self, values):
        return Kept(values, 0, np.float32, values.size)


class Ring:
    """A coupled step that accepts as many drafts as chance will have it, and keeps its noise in a ring."""

    vocab_size, batch_size, max_length, max_window, runs = 2, ROWS, LENGTH, LENGTH, Runs("no model")

    def __init__(self, random):
        self.method, self.noise = find_method("scd-match"), CounterNoise()
        self.random, self.ring = random, NoiseRing(Memory(), ROWS, 1)
        self.made, self.columns = [], []
        self.fault, self.read, self.longest, self.again = None, 0, 0, 0

    def takes(self, request):
        return None

    def close(self):
        pass

    def begin(self, row, request):
        self.ring.held.pop(row, None)

    def step(self, window):
        missing, entered = self.ring.missing(window)
        if self.made[-1:] != [self.ring.columns]:  # the graph is bound to the new memory
            self.made.append(self.ring.columns)
            self.columns = [[RUBBISH] * self.ring.columns for _ in range(ROWS)]
        if self.fault == "before":
            raise ProviderError("it never ran")
        most = max(1, *(end - first for first, end in missing))
        for b, (first, end) in enumerate(missing):
            info = window.rows[b]
            for position in range(first, first + most):  # rows with fewer than others send padding behind theirs
                own = RUBBISH if position >= end or info is None else (info.seed, info.sequence, position)
                self.again += own != RUBBISH and own == self.columns[b][position % self.ring.columns]
                self.columns[b][position % self.ring.columns] = own
        self.check(window)
        if self.fault == "after":
            raise ProviderError("its logits are unusable")
        self.ring.held.update(entered)
        if self.fault == "lost":
            raise KeyboardInterrupt
        most = np.where(window.draws, window.recycled + window.fresh + 1, 0)
        committed = np.minimum(self.random.geometric(0.3, len(most)), most)
        return Outcome(np.zeros_like(window.tokens), committed)

    def check(self, window):
        for b in np.flatnonzero(window.draws):
            info, first = window.rows[b], int(window.start[b] + window.known[b])
            for position in range(first, first + int(window.recycled[b] + window.fresh[b]) + 1):
                held = self.columns[b][position % self.ring.columns]
                assert held == (info.seed, info.sequence, position)
                self.read += 1
                self.longest = max(self.longest, position)


def decoded(seed, faults, sequences=3):
    """The step after some hundred sequences; so large a share of its steps goes wrong."""
    random = np.random.default_rng(seed)
    step, rule, under_way = Ring(random), Erratic(random), set()
    decoder = Decoder(step, window=rule, drafting="repeat")
    for _ in range(1500):
        chance = random.random(4)
        if chance[0] < 0.4 and decoder.active + decoder.waiting < ROWS + 1:
            noise = dict(zip(("seed", "sequence"), random.integers(0, sequences, 2).tolist(), strict=True))
            prompt = [0] * int(random.integers(1, random.choice([2, 20])))
            under_way.add(decoder.add(Request(prompt, int(random.integers(1, LENGTH + 2 - len(prompt))), **noise)))
        if chance[1] < 0.05 and under_way:
            gone = int(random.choice(sorted(under_way)))
            decoder.remove(gone)
            under_way.discard(gone)
        if chance[2] < (0.6 if step.fault else 0.15):  # what is done again may be done in windows of another width
            rule.change()
        step.fault = random.choice(["before", "after", "lost"]) if chance[3] < faults else None
        with contextlib.suppress(KeyboardInterrupt, ProviderError):
            under_way -= {commit.handle for commit in decoder.step() if commit.finished}
    assert step.read > 5000
    assert step.longest > 2 * step.ring.columns  # it went round
    assert step.made == sorted(set(step.made))  # it grows, and never shrinks
    return step


@pytest.mark.cases(3)
@pytest.mark.parametrize("seed", range(8))
def test_every_position_under_way_has_its_own_noise(seed):
    decoded(seed, faults=0.3)


def test_noise_enters_once():
    """All that is large crosses to a GPU once per position, whatever the windows' widths."""
    assert decoded(0, faults=0, sequences=1 << 40).again == 0
