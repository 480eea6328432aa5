"""`ModelReplica`: models of one process, for applications in others. It knows no Ray, which makes a deployment of it.

Its methods take and give plain data (`coupled_sampling.serving.crossing`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from coupled_sampling.serving.crossing import TAKEN, Message, pack_error, pack_piece, pack_statistics, unpack_job
from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.errors import EngineFailed, EngineStopped
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.lanes import Lanes

__all__ = ["ModelReplica"]


class ModelReplica:
    """The lanes of models, by name.

    Parameters
    ----------
    find
        Gives a model's lanes by its name, and opens them if they are not open.
    opened
        Gives those that are open.
    """

    def __init__(self, find: Callable[[str], Awaitable[Lanes]], opened: Callable[[], Mapping[str, Lanes]]) -> None:
        self._find, self._opened = find, opened

    async def submit(self, name: str, version: str, packed: Mapping[str, Any]) -> AsyncGenerator[Message, None]:
        """The messages of a job; closing or cancelling the generator frees its row.

        Parameters
        ----------
        name
            The model.
        version
            The `fingerprint` of the model that the application knows: another one is refused, as a job's prompt, its tokens so far
            and what is made of them belong to one model.
        packed
            The job.
        """
        try:
            lanes = await self._find(name)
            if fingerprint(lanes.bundle) != version:
                raise EngineStopped(f"this replica serves another version of {name}; an update is under way")
            async with await lanes.submit(unpack_job(packed)) as pieces:
                yield TAKEN
                async for piece in pieces:
                    yield pack_piece(piece)
        except Exception as error:
            yield pack_error(error)

    async def report(self) -> dict[str, Any]:
        """How its models are and what they did, by name; and the number of its process."""
        models = {}
        for name, lanes in self._opened().items():
            health, done = await lanes.health(), await lanes.statistics()
            models[name] = {
                "health": (health.ready, health.alive, health.why),
                "statistics": pack_statistics(done),
            }
        return {"process": os.getpid(), "models": models}

    async def check_health(self) -> None:
        """Do nothing if every model's engine works.

        Raises
        ------
        EngineFailed
            One does not. Ray replaces a replica that says so again and again.
        """
        for name, lanes in self._opened().items():
            health: Health = await lanes.health()
            if not health.alive:
                raise EngineFailed(f"{name}: {health.why}")

    async def close(self, drain: float | None = 0) -> None:
        """Close every model, after up to ``drain`` seconds for jobs under way."""
        await asyncio.gather(*(asyncio.to_thread(lanes.close, drain=drain) for lanes in self._opened().values()))
