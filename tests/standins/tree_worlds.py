"""Worlds for windows that are trees: laws with states of which nothing can follow, a model that is strict about its columns, rules
that make trees of any shape, and windows."""

import numpy as np
from hypothesis import strategies as st

from coupled_sampling import Window
from coupled_sampling.branching import Branches
from standins.ranged import Ranged

__all__ = ["AnyShape", "Columns", "law_of_three", "windows"]

V = 5


def law_of_three(seed, *, dead=0.0, zeros=0.2, vocab_size=V):
    """A law of the last three tokens; a share ``dead`` of the contexts has none: zeros, or NaN. Remembered, so that it is cheap."""
    known = {}

    def law(context):
        key = tuple(context[-3:])
        if key not in known:
            random = np.random.default_rng([seed, len(key), *(token + 1 for token in key)])
            weights = random.gamma(0.5, size=vocab_size) * (random.random(vocab_size) >= zeros) + 1e-9 * random.random(
                vocab_size
            )
            fate = random.random()
            weights = weights / weights.sum()
            known[key] = weights * 0 if fate < dead / 2 else weights * np.nan if fate < dead else weights
        return known[key]

    return law


class Columns(Ranged):
    """Has ``spare`` columns more than positions, loses the state of branches, and notices when it is asked to go on from state that
    it does not have. Its calls in ``fails`` raise, once each."""

    prompt_chunk = 4

    def __init__(self, *arguments, spare=0, fails=(), **settings):
        super().__init__(*arguments, **settings)
        self._held[:] = -1
        self._spare, self._fails, self.trees = spare, set(fails), 0

    @property
    def max_columns(self):
        return self.max_length + self._spare

    def forward(self, tokens, start):
        return self._counted(super().forward, tokens, start)

    def forward_rows(self, tokens, start, rows):
        return self._counted(super().forward_rows, tokens, start, rows)

    def forward_tree(self, tokens, start, parents, rows):
        assert not any(array.flags.writeable for array in (tokens, start, parents))
        self.trees += 1
        return self._counted(super().forward_tree, tokens, start, parents, rows)

    def write(self, tokens, start):
        return self._checked(super().write(tokens, start))

    def write_tree(self, tokens, start, parents, rows):
        return self._checked(super().write_tree(tokens, start, parents, rows))

    def _checked(self, contexts):
        assert all(token >= 0 for context in contexts.values() for token in context), "state that was never there"
        return contexts

    def _counted(self, forward, *window):
        if self.calls in self._fails:
            self._fails.discard(self.calls)
            raise RuntimeError("the device was lost")
        return forward(*window)


class AnyShape:
    """Branches of any shape, a function of ``seed`` and of what it is told: side by side, twice the same, deeper than the path, and
    nonsense. Of ``truth`` it knows whole sequences, by which it often guesses, so that branches stand."""

    def __init__(self, seed, most, truth=(), candidates=2, vocab_size=V):
        self.seed, self.most, self.candidates, self._vocab_size = seed, most, candidates, vocab_size
        self._after = {}
        for sequence in truth:
            for length in range(1, len(sequence)):
                self._after.setdefault(tuple(sequence[:length]), []).append(int(sequence[length]))

    def branches(self, context):
        random = np.random.default_rng([self.seed, context.committed, *context.tokens[-4:].tolist()])
        committed, path = tuple(context.tokens[: context.committed].tolist()), context.path.tolist()
        slots = [tuple(path[: i + 1]) for i in range(len(path))]
        parents, tokens = [], []
        for _ in range(int(random.integers(0, context.most + 1))):
            last = len(slots) - 1
            parent = last if random.random() < 0.5 else int(random.integers(-1, len(slots)))
            before = () if parent < 0 else slots[parent]
            if len(before) >= context.reach:
                continue
            known = self._after.get((*committed, *before), [])
            token = (
                int(random.choice(known))
                if known and random.random() < 0.8
                else int(random.integers(0, self._vocab_size))
            )
            parents.append(parent)
            tokens.append(token)
            slots.append((*before, token))
        return Branches(np.array(parents, np.int64), np.array(tokens, np.int64))


@st.composite
def windows(draw, infos):
    """Windows of rows that have known tokens, drafts, branches of any shape, and padding; some draw nothing."""
    width, rows = draw(st.integers(1, 10)), draw(st.integers(1, 3))
    known, drafts, branches, start, contexts = [], [], [], [], []
    parents = np.full((rows, width), -1)
    tokens = np.array([[draw(st.integers(0, V - 1)) for _ in range(width)] for _ in range(rows)])
    for b in range(rows):
        known.append(draw(st.integers(1, width)))
        drafts.append(draw(st.integers(0, width - known[b])))
        end = known[b] + drafts[b]
        branches.append(draw(st.integers(0, width - end)))
        parents[b, :end] = np.arange(-1, end - 1)
        for j in range(end, end + branches[b]):
            parents[b, j] = draw(st.integers(known[b] - 1, j - 1))
        start.append(draw(st.integers(0, 5)))
        contexts.append(np.concatenate([np.arange(start[b]) % V, tokens[b, :end]]))
    own = [draw(st.sampled_from(infos)) for _ in range(rows)]
    draws = np.array([info is not None and draw(st.booleans()) for info in own])
    fresh = np.array([draw(st.integers(0, count)) for count in drafts])
    counts = (np.array(known), np.array(drafts) - fresh, fresh, draws, np.zeros(rows, np.int64))
    window = Window(tokens, np.array(start), *counts, own, contexts, [None] * rows)
    return window._replace(branches=np.array(branches), parents=parents)
