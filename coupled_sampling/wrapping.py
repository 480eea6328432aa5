"""What all providers share that are made of another provider: they run where it runs, and are given back with it."""

from __future__ import annotations

from coupled_sampling.contracts import Closeable, Forks, LogitsProvider, Runs, what_runs
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.running import Closing

__all__ = ["Wrapping"]


class Wrapping(Closing):
    """A provider over ``provider``."""

    provider: LogitsProvider

    @property
    def runs(self) -> Runs:
        """What runs the provider."""
        return what_runs(self.provider)

    def close(self) -> None:
        """Close the provider, if it can be closed."""
        if isinstance(self.provider, Closeable):
            self.provider.close()

    @property
    def forks(self) -> bool:
        """Whether the provider can. See `coupled_sampling.contracts.Forks`."""
        return isinstance(self.provider, Forks) and self.provider.forks

    def _forking(self) -> Forks:
        """The provider, if it forks.

        Raises
        ------
        InvalidArgument
            It does not.
        """
        if isinstance(self.provider, Forks) and self.provider.forks:
            return self.provider
        raise InvalidArgument(f"{type(self.provider).__name__} cannot fork; ask ``forks`` first")
