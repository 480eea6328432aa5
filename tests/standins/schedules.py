"""Schedules of everything that a decoding loop may do to a step, made at random from a seed.

Requests arrive and are removed, windows grow and shrink, outcomes are lost on the way to the loop, and calls of the model fail. A
step that keeps state between its calls gives the tokens and counts of `HostStep` all the same, at every site of every step.
"""

import contextlib

import numpy as np

from coupled_sampling import Decoder, Guidance, Request, Sampling
from coupled_sampling.errors import ProviderError
from coupled_sampling.testing import StepComparison
from standins.table_graphs import LENGTH, VOCAB

ROWS, FITS = 3, 25
"""Rows, and the most positions of a request: few, so that rows are used many times."""
UNCONDITIONAL = {
    "one": [3],
    "long": [2, 0, 1, 3, 3, 1],
    "made from the prompt": lambda prompt: [*prompt[::-1], 1, 2][: len(prompt) + 2 if len(prompt) % 2 else 1],
}
"""Unconditional prompts that are shorter than most prompts, longer than most, and now the one and now the other."""
GUIDANCES = [
    None,
    Guidance(0.6),
    Guidance(1),
    Guidance(0, unconditional=[1]),
    Guidance(-0.5, unconditional=[3, 0, 2, 1, 1, 0, 2]),
    Guidance(unconditional=[2] * (LENGTH - 4)),
]
"""Guidance of a request's own; the last one leaves room for few tokens, fewer than a window has slots."""
SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(1.5, top_k=4, min_p=0.1), Sampling(0.8, top_p=0.7), Sampling(0)]


class Erratic:
    """Widths that stay for a while, then jump."""

    largest = 9

    def __init__(self, random):
        self.random, self.chosen = random, 4

    def width(self, rows):
        return self.chosen

    def record(self, rows, width, tokens, seconds):
        pass

    def change(self):
        self.chosen = int(self.random.integers(1, self.largest + 1))


class LosesWhenTold:
    """Over a step: its outcome is lost on the way to the loop when told to."""

    loses = False

    def step(self, window):
        outcome = super().step(window)
        if self.loses:
            self.loses = False
            raise KeyboardInterrupt
        return outcome


class LosesEveryThird:
    """Over a step: every third outcome does not arrive, as when Ctrl-C comes between."""

    calls = 0

    def step(self, window):
        outcome = super().step(window)
        self.calls += 1
        if self.calls % 3 == 0:
            raise KeyboardInterrupt
        return outcome


class Losing(LosesWhenTold, StepComparison):
    """Two steps side by side whose outcome may be lost."""


def run_schedule(both, model, seed, steps, warped=True, guided=False):
    """The report of all that ``both`` (`Losing`) compared in so many steps; where ``model.fails`` is set, its next call fails.

    With ``guided``, requests have guidance of their own.
    """
    random = np.random.default_rng(seed)
    rule = Erratic(random)
    decoder = Decoder(both, window=rule, drafting=str(random.choice(["repeat", "random", "copy:3"])))
    under_way, faulty = set(), False
    for _ in range(steps):
        chance = random.random(6)
        if chance[0] < 0.3 and decoder.active + decoder.waiting < ROWS + 1:
            prompt = random.integers(0, VOCAB, random.integers(1, 13)).tolist()
            length = int(random.integers(1, FITS + 1 - len(prompt)))
            # Few seeds and sequences: the same pair comes again, and pairs that share one of the two stand side by side.
            noise = dict(zip(("seed", "sequence"), random.integers(0, 3, 2).tolist(), strict=True))
            sampling = SAMPLINGS[int(random.integers(len(SAMPLINGS)))] if warped else Sampling()
            guidance = GUIDANCES[int(random.integers(len(GUIDANCES)))] if guided else None
            if guidance is not None and guidance.unconditional is not None:
                room = LENGTH + 1 - len(guidance.unconditional)
                prompt, length = prompt[: 2 if room < FITS else None], min(length, room)
            under_way.add(decoder.add(Request(prompt, length, sampling=sampling, guidance=guidance, **noise)))
        if chance[1] < 0.05 and under_way:
            gone = int(random.choice(sorted(under_way)))
            decoder.remove(gone)
            under_way.discard(gone)
        if chance[2] < (0.6 if faulty else 0.15):  # what is done again may be done in windows of another width
            rule.change()
        both.loses, model.fails = chance[3] < 0.1, chance[4] < 0.1
        faulty = both.loses or model.fails
        with contextlib.suppress(KeyboardInterrupt, ProviderError):
            under_way -= {commit.handle for commit in decoder.step() if commit.finished}
    return both.report()
