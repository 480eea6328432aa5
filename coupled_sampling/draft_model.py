"""Guesses drawn from a second, cheaper model: ordinary speculative decoding (arXiv 2211.17192 and 2302.01318).

The draft model is a `LogitsProvider` like the target. It guesses one token after the other, each drawn from its own law,
and hands these laws on with the guesses: rejection needs them to stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.arrays import namespace, to_host
from coupled_sampling.contracts import Array, Integers, LogitsProvider, PromptObserver, max_window
from coupled_sampling.drafting import DraftContext, Proposal, proposal_sites
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose
from coupled_sampling.target import target_laws

__all__ = ["DraftModel"]


class DraftModel:
    """Guesses drawn from a second, cheaper model over the same vocabulary.

    Parameters
    ----------
    provider
        Any `LogitsProvider` with the target's vocabulary and at least its rows. Its law is warped by each request's own
        sampling settings and carried along, so that rejection stays exact.

    Notes
    -----
    The state it holds for a row is the longest common prefix of what it last forwarded and what it is asked about, so a
    refusal, another request in the row or a rollback need no signal.

    Examples
    --------
    A draft model that is the target itself is always right. A pass over a window of 4 then commits 4 tokens:

    >>> from coupled_sampling import DraftModel, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> table = random_table(0, 5)
    >>> model, draft = TableProvider(table, 5), TableProvider(table, 5)
    >>> tokens, traces = generate(model, [[0]], length=16, method="speculative", window=4, drafting=DraftModel(draft))
    >>> traces[0].nfe
    4
    """

    def __init__(self, provider: LogitsProvider) -> None:
        self.provider = provider
        self.max_length = int(provider.max_length)
        self._held: dict[int, Integers] = {}

    def begin(self, row: int, prompt: Integers) -> None:
        """Row ``row`` starts ``prompt``: tell the provider, if it wants to know."""
        if isinstance(self.provider, PromptObserver):
            self._held.pop(row, None)
            self.provider.begin(row, prompt)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        self._check(contexts, vocab_size)
        tokens = {context.row: context.tokens for context in contexts}
        laws: dict[int, list[Array]] = {context.row: [] for context in contexts}
        for offset in range(max(context.wanted for context in contexts)):
            asking = [context for context in contexts if context.wanted > offset]
            logits = self._last_logits({context.row: tokens[context.row] for context in asking})
            sites = proposal_sites(asking, offset, 1)
            law = target_laws(
                logits,
                [context.info for context in asking],
                [tokens[context.row] for context in asking],
                sites.position,
                sites.valid,
            )
            if shared:
                drawn = noise.shared(law, sites, where=sites.valid)
            else:
                drawn = noise.categorical(law, sites, Purpose.PROPOSE, where=sites.valid)
            guesses = to_host(drawn)
            for i, context in enumerate(asking):
                laws[context.row].append(law[i, 0, ...])
                tokens[context.row] = np.append(tokens[context.row], guesses[i, 0])
        return [
            Proposal(tokens[c.row][len(c.tokens) :], namespace(laws[c.row][0]).stack(laws[c.row], axis=0))
            for c in contexts
        ]

    def _check(self, contexts: Sequence[DraftContext], vocab_size: int) -> None:
        if self.provider.vocab_size != vocab_size:
            raise InvalidArgument(
                f"the draft model's vocabulary is {self.provider.vocab_size}, the target's {vocab_size}; they must be the same"
            )
        for context in contexts:
            reach = len(context.tokens) + context.wanted - 1
            if context.row >= self.provider.batch_size or reach > self.max_length:
                raise InvalidArgument(
                    f"the draft model holds {self.provider.batch_size} rows of {self.max_length} positions, but row "
                    f"{context.row} needs {reach}; give it as many rows and positions as the target has"
                )

    def _last_logits(self, wanted: dict[int, Integers]) -> Array:
        """Logits (len(wanted), 1, V) after the last token of each row's tokens, forwarding what is not held yet."""
        rows = max(wanted) + 1  # a call takes the first rows; those that ask for nothing repeat tokens that they hold
        # The last token goes in again even where its state is held: what is wanted is its logits.
        held = {
            row: min(_common_prefix(self._held.get(row), tokens), len(tokens) - 1) for row, tokens in wanted.items()
        }
        while True:
            width = min(max(len(tokens) - held[row] for row, tokens in wanted.items()), max_window(self.provider))
            window, start = np.zeros((rows, width), np.int64), np.zeros(rows, np.int64)
            for row in range(rows):
                tokens = wanted.get(row, self._held.get(row, np.zeros(0, np.int64)))
                end = min(held[row] + width, len(tokens)) if row in wanted else len(tokens)
                start[row] = max(0, end - width)
                window[row, : end - start[row]] = tokens[start[row] : end]
                if row in wanted:
                    held[row] = end
            logits = self.provider.forward(window, start)
            for row in wanted:
                self._held[row] = wanted[row][: held[row]].copy()  # the caller goes on writing into its tokens
            if all(held[row] == len(tokens) for row, tokens in wanted.items()):
                return _stack_slots(logits, {row: len(tokens) - 1 - int(start[row]) for row, tokens in wanted.items()})


def _common_prefix(held: Integers | None, tokens: Integers) -> int:
    """Length of the longest common prefix."""
    if held is None:
        return 0
    shorter = min(len(held), len(tokens))
    differ = np.flatnonzero(held[:shorter] != tokens[:shorter])
    return int(differ[0]) if differ.size else shorter


def _stack_slots(logits: Array, slots: dict[int, int]) -> Array:
    """``logits[row, slot]`` of each pair: (len(slots), 1, V)."""
    return namespace(logits).stack([logits[row, slot : slot + 1, ...] for row, slot in slots.items()], axis=0)
