"""What crosses between an application and the replicas of its models: plain data.

Neither classes of this library cross, as both ends may be of different versions while an update rolls out, nor exceptions, as a
traceback is for the log of the machine where it happened. A replica answers a job with messages:

| message | meaning |
|---|---|
| ``("taken",)`` | the job is queued; the first message of a job that is not refused |
| ``("piece", tokens, reason, ...)`` | the fields of a `Piece` |
| ``("ended", kind, message, retry_after)`` | an error of this library, by its ``kind``; the last message |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from coupled_sampling.errors import CoupledSamplingError, InvalidArgument, MissingDependency
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.jobs import GrammarSource, Job, Piece
from coupled_sampling.serving.statistics import Statistics

__all__ = [
    "TAKEN",
    "Message",
    "pack_error",
    "pack_job",
    "pack_piece",
    "pack_statistics",
    "unpack_job",
    "unpack_message",
    "unpack_statistics",
]

_LOG = logging.getLogger("coupled_sampling.serving")

Message = tuple[Any, ...]
"""One of the table above."""

TAKEN: Message = ("taken",)

_KINDS: dict[str, type[CoupledSamplingError]] = {
    "invalid": InvalidArgument,
    "missing": MissingDependency,
    "overloaded": Overloaded,
    "late": DeadlineExceeded,
    "stopped": EngineStopped,
    "failed": EngineFailed,
}


def pack_job(job: Job) -> dict[str, Any]:
    """A job as plain data."""
    packed = {field.name: getattr(job, field.name) for field in fields(job)}
    packed.update(settings=dict(job.settings), bias=dict(job.bias))
    packed["grammar"] = None if job.grammar is None else tuple(job.grammar)
    return packed


def unpack_job(packed: Mapping[str, Any]) -> Job:
    """The job again.

    Raises
    ------
    InvalidArgument
        A value cannot work in any model.
    """
    grammar = packed["grammar"]
    return Job(**{**packed, "grammar": None if grammar is None else GrammarSource(*grammar)})


def pack_piece(piece: Piece) -> Message:
    """A piece as a message."""
    return ("piece", *piece)


def pack_error(error: Exception) -> Message:
    """What ended a job, as a message. An error that is no refusal of this library's is logged here, and told without its text."""
    for kind, known in _KINDS.items():
        if isinstance(error, known):
            return ("ended", kind, str(error), getattr(error, "retry_after", None))
    _LOG.error("a job failed on this replica", exc_info=error)
    return ("ended", "mistake", "the replica made a mistake; its log says more", None)


def unpack_message(message: Message) -> Piece | None:
    """The piece of a message; None for the one that says that the job was taken.

    Raises
    ------
    InvalidArgument, MissingDependency, ServingError
        What ended the job.
    CoupledSamplingError
        It was a mistake of the replica.
    """
    what, *rest = message
    if what == "piece":
        return Piece(*rest)
    if what == "taken":
        return None
    kind, text, retry_after = rest
    if kind == "overloaded":
        raise Overloaded(text, retry_after)
    raise _KINDS.get(kind, CoupledSamplingError)(text)


def pack_statistics(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, Any]]:
    """What was done, by method, as plain data."""
    return {method: asdict(found) for method, found in statistics.items()}


def unpack_statistics(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Statistics]:
    """The statistics again."""
    return {method: Statistics(**{**found, "accepted": tuple(found["accepted"])}) for method, found in packed.items()}
