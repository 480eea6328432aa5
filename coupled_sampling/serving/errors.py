"""What serving refuses, beside what is wrong with a request: each says whether and when to come back."""

from __future__ import annotations

from coupled_sampling.errors import CoupledSamplingError

__all__ = ["DeadlineExceeded", "EngineFailed", "EngineStopped", "Overloaded", "ServingError"]


class ServingError(CoupledSamplingError):
    """A request could not be served; it may be served later, or elsewhere."""


class Overloaded(ServingError):  # noqa: N818 - reads as what it is
    """The queue is full.

    Parameters
    ----------
    message
        What is full, and how full.
    retry_after
        Seconds after which there may be room.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class EngineStopped(ServingError):  # noqa: N818
    """The engine takes no more requests: it is draining, or closed."""


class EngineFailed(ServingError):  # noqa: N818
    """The model failed again and again, or could not be opened; ``__cause__`` holds why."""


class DeadlineExceeded(ServingError):  # noqa: N818
    """A request took longer than it was given."""
