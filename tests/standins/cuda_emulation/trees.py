"""Worlds whose windows may be trees, branches of any shape, and a step that asks both HostStep and the kernels about them."""

import numpy as np

from coupled_sampling import Decoder, HostStep, Request, Sampling
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.branching import Branches
from coupled_sampling.testing import TableProvider, random_table
from standins.cuda_emulation.comparison import PROMPTS, WARPED, BothSteps
from standins.cuda_emulation.emulation import DeviceProvider

SHAPES = [WARPED[0], Sampling(), Sampling(0), Sampling(1.3, top_p=0.9)]


class TreeWorld:
    """A table world in float32 with a share of states where nothing can follow; trees take the same table."""

    def __init__(self, vocab_size, batch_size=3, seed=1, dead=0.0, zeros=0.2):
        table = random_table(seed, vocab_size, zeros=zeros)

        def next_law(context):
            state = np.random.default_rng([7, *context]).random()
            return np.full(vocab_size, 0.0 if state < dead / 2 else np.nan) if state < dead else table(context)

        self._inner = TableProvider(next_law, vocab_size, batch_size)
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, self._inner.max_length
        self.max_columns = self._inner.max_columns

    def forward(self, tokens, start):
        return self._inner.forward(tokens, start).astype(np.float32)

    def forward_tree(self, tokens, start, parents, rows):
        return self._inner.forward_tree(tokens, start, parents, rows).astype(np.float32)


class DeviceTrees(DeviceProvider):
    """A `DeviceProvider` that offers trees, as the provider on numpy does."""

    @property
    def max_columns(self):
        return self.provider.max_columns

    def forward_tree(self, tokens, start, parents, rows):
        return self.upload(self.provider.forward_tree(tokens, start, parents, rows))


class AnyShape:
    """Branches of random shapes, siblings with the same token among them: of candidates, and of any of four tokens behind these."""

    def __init__(self, most, candidates=3, seed=0):
        self.most, self.candidates = most, candidates
        self._random = np.random.default_rng(seed)

    def branches(self, context):
        if context.candidates is None:
            return Branches(np.zeros(0, np.int64), np.zeros(0, np.int64))
        depths, parents, tokens = list(range(len(context.path))), [], []
        for _ in range(context.most if self._random.random() < 0.8 else 1):
            parent = int(self._random.integers(-1, len(depths)))
            depth = 0 if parent < 0 else depths[parent] + 1
            if depth >= context.reach:
                continue
            known = context.candidates.tokens[depth] if depth < len(context.candidates.tokens) else range(4)
            parents.append(parent)
            tokens.append(int(self._random.choice(known)))
            depths.append(depth)
        return Branches(np.array(parents, np.int64), np.array(tokens, np.int64))


class BothOfTrees(BothSteps):
    """`BothSteps` for windows with branches; compares candidates, too."""

    def __init__(self, host, kernels):
        super().__init__(host, kernels)
        self.refuses_branches, self.max_columns = kernels.refuses_branches, kernels.max_columns
        self.corrections = kernels.corrections
        self.trees = self.beside = self.ranked = 0

    def step(self, window):
        expected = super().step(window)
        if window.parents is not None:
            self.trees += 1
            # Committed tokens that are none of the path's: a branch was walked.
            for b in np.flatnonzero(window.draws & (window.branches > 0)):
                drafts = window.tokens[b, window.known[b] : window.end[b]]
                stood = expected.tokens[b, window.known[b] - 1 :][: expected.committed[b] - 1]
                self.beside += int(drafts[: len(stood)].tolist() != stood.tolist())
        return expected

    def compared(self, window, expected, found):
        super().compared(window, expected, found)
        if expected.candidates.keys() != found.candidates.keys():
            self.differences.append(("rows with candidates", [*expected.candidates], [*found.candidates]))
            return
        for b, own in expected.candidates.items():
            other = found.candidates[b]
            self.ranked += len(own.tokens)
            possible = np.isfinite(own.scores)
            same = own.tokens.shape == other.tokens.shape and (np.isfinite(other.scores) == possible).all()
            if not same or (own.tokens != other.tokens)[possible].any():
                self.differences.append((b, "candidates", own.tokens.tolist(), other.tokens.tolist()))
            elif not np.allclose(own.scores[possible], other.scores[possible], rtol=1e-5, atol=1e-5):
                self.differences.append((b, "scores", own.scores.tolist(), other.scores.tolist()))


def compare_trees_on(
    launcher,
    world,
    *,
    branches,
    method="scd-match",
    window=12,
    length=26,
    corrections=None,
    steps=None,
    sampling=SHAPES,
):
    """Decode with branches by both steps, the kernels by ``launcher``; at most ``steps`` steps."""
    provider = DeviceTrees(world(), launcher)
    kernels = KernelStep(provider, method, launcher, corrections=corrections)
    both = BothOfTrees(HostStep(world(), method, corrections=corrections), kernels)
    drafting = "random" if method == "scd-match" else "ngram"
    decoder = Decoder(both, window=window, drafting=drafting, branches=branches)
    for i, prompt in enumerate(PROMPTS):
        warp = sampling[i % len(sampling)]
        decoder.add(Request(prompt, length - 4 * i % 20, seed=9, sequence=i, sampling=warp))
    while (decoder.active or decoder.waiting) and steps != 0:
        decoder.step()
        steps = None if steps is None else steps - 1
    kernels.release()
    provider.close()
    return both
