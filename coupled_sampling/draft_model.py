"""Guesses drawn from a second, cheaper model: ordinary speculative decoding (arXiv 2211.17192 and 2302.01318).

The draft model is a `LogitsProvider` like the target. It guesses one token after the other, each drawn from its own law,
and hands these laws on with the guesses: rejection needs them to stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.arrays import from_host, namespace, point_masses, read_only, to_host
from coupled_sampling.bounds import check_logits, check_model
from coupled_sampling.contracts import Array, Integers, LogitsProvider, RequestObserver, Selective, max_window
from coupled_sampling.draft_contracts import DraftContext, Proposal, proposal_sites
from coupled_sampling.noise import Noise, Purpose
from coupled_sampling.requests import Request
from coupled_sampling.rows import common_length
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
    refusal or a rollback need no signal. A new request in the row (``begin``) begins with nothing.

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

    carries_laws = True
    """See `coupled_sampling.drafting.CarriesLaws`."""

    def __init__(self, provider: LogitsProvider) -> None:
        check_model("provider", provider)
        self.provider = provider
        self.max_length = int(provider.max_length)
        self._held: dict[int, Integers] = {}

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """See `coupled_sampling.drafting.SelectiveDrafting.takes`."""
        last_input = len(request.prompt) + request.length - 1
        if self.provider.vocab_size != vocab_size:
            return (
                f"cannot be drafted for: the draft model's vocabulary is {self.provider.vocab_size}, the target's {vocab_size}; "
                "they must be the same"
            )
        if self.provider.batch_size < rows:
            held = self.provider.batch_size
            return f"cannot be drafted for: the draft model holds {held} rows, the model {rows}; give it as many"
        if last_input > self.provider.max_length:
            return (
                f"needs {last_input} cached positions, the draft model holds {self.provider.max_length}; shorten the prompt or ask "
                "for fewer tokens"
            )
        if isinstance(self.provider, Selective):
            reason = self.provider.takes(request)
            return None if reason is None else f"{reason} (said by the draft model)"
        return None

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``: tell the provider, if it wants to know."""
        self._held.pop(row, None)  # others may have had the provider since the request before
        if isinstance(self.provider, RequestObserver):
            self.provider.begin(row, request)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        tokens = {context.row: context.tokens for context in contexts}
        laws: dict[int, list[Array]] = {context.row: [] for context in contexts}
        for offset in range(max(context.wanted for context in contexts)):
            # A row ends where the draft model has no law; what it wants beyond is guessed below.
            asking = [c for c in contexts if c.wanted > offset and len(laws[c.row]) == offset]
            if not asking:
                break
            logits = self._last_logits({context.row: tokens[context.row] for context in asking})
            sites = proposal_sites(asking, offset, 1)
            target = target_laws(
                logits,
                [context.info for context in asking],
                [read_only(tokens[context.row]) for context in asking],
                sites.position,
                sites.valid,
            )
            usable = target.usable
            if shared:
                drawn = noise.shared(target.laws, sites, where=usable)
            else:
                drawn = noise.categorical(target.laws, sites, Purpose.PROPOSE, where=usable)
            guesses = to_host(drawn)
            for i, context in enumerate(asking):
                if usable[i, 0]:
                    laws[context.row].append(target.laws[i, 0, ...])
                    tokens[context.row] = np.append(tokens[context.row], guesses[i, 0])
            like = target.laws
        return [_proposal(context, tokens[context.row], laws[context.row], like) for context in contexts]

    def _last_logits(self, wanted: dict[int, Integers]) -> Array:
        """Logits (len(wanted), 1, V) after the last token of each row's tokens, forwarding what is not held yet."""
        rows = max(wanted) + 1  # a call takes the first rows; those that ask for nothing repeat tokens that they hold
        # The last token goes in again even where its state is held: what is wanted is its logits.
        held = {
            row: min(common_length(self._held.get(row, tokens[:0]), tokens), len(tokens) - 1)
            for row, tokens in wanted.items()
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
            logits = self.provider.forward(read_only(window), read_only(start))
            check_logits("forward of the draft model", logits, (*window.shape, self.provider.vocab_size))
            for row in wanted:
                self._held[row] = wanted[row][: held[row]].copy()  # the caller goes on writing into its tokens
            if all(held[row] == len(tokens) for row, tokens in wanted.items()):
                return _stack_slots(logits, {row: len(tokens) - 1 - int(start[row]) for row, tokens in wanted.items()})


def _stack_slots(logits: Array, slots: dict[int, int]) -> Array:
    """``logits[row, slot]`` of each pair: (len(slots), 1, V)."""
    return namespace(logits).stack([logits[row, slot : slot + 1, ...] for row, slot in slots.items()], axis=0)


def _proposal(context: DraftContext, tokens: Integers, laws: list[Array], like: Array) -> Proposal:
    """The guesses drawn so far and, where the draft model had no law, the token before as a guess of no chance: a point mass."""
    missing = context.wanted - len(laws)
    tokens = np.append(tokens[len(context.tokens) :], np.full(missing, tokens[-1]))
    if missing:
        guessed = point_masses(from_host(tokens[len(laws) :], like), like.shape[-1], like)
        laws = [*laws, *(guessed[i, ...] for i in range(missing))]
    return Proposal(tokens, namespace(like).stack(laws, axis=0))
