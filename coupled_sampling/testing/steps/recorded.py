"""A provider that keeps its latest logits, for who judges a step's decisions afterwards."""

from __future__ import annotations

from coupled_sampling.contracts import Array, Integers, LogitsProvider, RequestObserver, max_window
from coupled_sampling.requests import Request

__all__ = ["Recorded"]


class Recorded:
    """``provider``, whose latest logits are kept."""

    def __init__(self, provider: LogitsProvider) -> None:
        self.provider = provider
        self.vocab_size, self.batch_size = provider.vocab_size, provider.batch_size
        self.max_length, self.max_window = provider.max_length, max_window(provider)
        self.logits: Array = None

    def begin(self, row: int, request: Request) -> None:
        """See `coupled_sampling.contracts.RequestObserver.begin`."""
        if isinstance(self.provider, RequestObserver):
            self.provider.begin(row, request)

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """See `coupled_sampling.contracts.LogitsProvider.forward`."""
        self.logits = self.provider.forward(tokens, start)
        return self.logits
