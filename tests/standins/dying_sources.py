"""Sources whose places die: after as many pieces as a test says."""

import asyncio

from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.errors import EngineStopped

__all__ = ["Dying"]


class Dying:
    """A `coupled_sampling.serving.lanes.Source` over ``source``.

    ``fates`` are of the submissions in order: how many pieces one gives before its place dies, -1 if it dies before it is taken, an
    exception that refuses it, "silent" if nothing comes, "ends" if its stream ends early after a piece; submissions behind them
    live. ``jobs`` are the submitted ones, ``open`` counts streams that were not left.
    """

    def __init__(self, source, *fates, error=EngineStopped):
        self.source, self.fates, self.error = source, list(fates), error
        self.jobs, self.open = [], 0

    async def submit(self, job):
        fate = self.fates.pop(0) if self.fates else None
        self.jobs.append(job)
        if isinstance(fate, Exception):
            raise fate
        if fate == -1:
            raise self.error("the place died")
        return _Pieces(self, await self.source.submit(job), fate)

    async def health(self):
        return Health(True, True)

    async def statistics(self):
        return {}


class _Pieces:
    def __init__(self, owner, inner, fate):
        self.owner, self.inner, self.fate = owner, inner, fate

    async def __aiter__(self):
        if self.fate == "silent":
            await asyncio.Event().wait()
        seen = 0
        async for piece in self.inner:
            if seen == self.fate:
                raise self.owner.error("the place died")
            seen += 1
            yield piece
            if self.fate == "ends":
                return

    async def __aenter__(self):
        self.owner.open += 1
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *raised):
        self.owner.open -= 1
        await self.inner.__aexit__(*raised)
        if self.fate is not None and self.fate != "silent":
            raise self.owner.error("what is dead cannot be left")
