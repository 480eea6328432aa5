"""Two replicas on this machine: every stream is the one of its job alone, whatever happens to them."""

import asyncio
import os
import signal
from collections import Counter

import httpx
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving import DeadlineExceeded, EngineStopped, Overloaded
from coupled_sampling.serving.jobs import Job
from coupled_sampling.serving.resuming import Resuming
from standins.dying_sources import Dying
from standins.ray_cluster import arguments

LIMIT = 240.0
"""Seconds for what has to come to an end."""


def job_of(seed, **settings):
    return Job((257 + seed % 10,), seed=seed, settings=settings)


def slow(seed):
    """A token a pass, so that much of it is left when its first pieces are here; its tokens are those of ``scd-match``."""
    return job_of(seed, method="ar", window=1)


async def tokens_of(source, job, begun=None):
    async with await source.submit(job) as pieces:
        made = []
        async for piece in pieces:
            made += piece.tokens
            if begun is not None:
                begun(job)
        assert piece.reason in ("length", "stop")
        return made


async def all_of(source, jobs):
    return await asyncio.gather(*(tokens_of(source, job) for job in jobs))


def run(work):
    return asyncio.run(asyncio.wait_for(work, LIMIT))


async def until(condition):
    while not await condition():
        await asyncio.sleep(0.02)


def done_in(report, model="fashion"):
    return report["models"][model]["statistics"]


async def running(source):
    """Numbers of the processes of replicas that have a sequence under way."""
    reports = await source.reports()
    return [report["process"] for report in reports if any(one["running"] for one in done_in(report).values())]


async def replicas(source, count):
    async def there():
        return len(await source.reports()) == count and (await source.health()).ready

    await until(there)


def test_thirty_streams_over_two_replicas_have_their_own_tokens(deployed):
    jobs = [job_of(seed, temperature=0.5 + seed % 3 / 2) for seed in range(30)]

    async def both():
        source = deployed.source("fashion")
        made = await all_of(Resuming(source), jobs)
        return made, await all_of(deployed.here["fashion"], jobs), await source.reports(), await source.statistics()

    made, alone, reports, sums = run(both())
    assert made == alone
    finished = [done_in(report)["scd-match"]["finished"]["length"] for report in reports]
    assert len(finished) == 2
    assert min(finished) > 0
    assert sum(finished) == sums["scd-match"].finished["length"] >= 30


def test_what_is_refused_keeps_its_kind_and_its_words(deployed):
    async def refusals():
        source = Resuming(deployed.source("fashion"))
        for job, kind, words in (
            (Job((9999,), seed=1), InvalidArgument, "9999"),
            (job_of(1, length=7), InvalidArgument, "exactly 196 tokens"),
            (Job((257,), seed=1, stop=("a",)), InvalidArgument, "has no tokenizer"),
            (
                Job((257,), seed=1, settings={"method": "ar"}, deadline=0.02),
                DeadlineExceeded,
                "longer than it was given",
            ),
        ):
            with pytest.raises(kind, match=words) as told:
                await tokens_of(source, job)
            assert told.value.__cause__ is None

    run(refusals())


def test_an_application_of_another_version_of_the_model_is_not_served(deployed):
    from coupled_sampling.serving.deployment import RaySource

    async def other():
        source = deployed.source("fashion")
        stranger = RaySource(source._handle, "fashion", "0" * 64)
        with pytest.raises(EngineStopped, match="another version of fashion"):
            await tokens_of(stranger, job_of(1))

    run(other())


@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_a_stream_that_is_given_up_frees_its_row(deployed, how):
    async def give_up():
        source, begun = deployed.source("fashion"), asyncio.Event()
        before = (await source.statistics()).get("ar")
        reading = asyncio.ensure_future(tokens_of(Resuming(source), slow(1), lambda job: begun.set()))
        await begun.wait()
        assert len(await running(source)) == 1
        if how == "cancelled":
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        else:
            async with await source.submit(slow(2)) as pieces:
                await anext(pieces)
            await reading

        async def free():
            return not await running(source)

        await until(free)
        after = (await source.statistics())["ar"]
        return after.finished.get("removed", 0) - (before.finished.get("removed", 0) if before else 0)

    assert run(give_up()) == 1


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(deployed):
    jobs = [Job((70, 71), seed=seed, settings={"method": "ar", "length": 200}) for seed in range(8)]

    async def overflow():
        source = Resuming(deployed.source("words"))
        made = await asyncio.gather(*(tokens_of(source, job) for job in jobs), return_exceptions=True)
        return made, await all_of(deployed.here["words"], jobs)

    made, alone = run(overflow())
    refused = [one for one in made if isinstance(one, Exception)]
    assert len(refused) >= 4
    told = {(type(one), str(one), one.retry_after > 0) for one in refused}
    assert told == {(Overloaded, "as many requests wait for a replica as may; come back later", True)}
    done = [(one, other) for one, other in zip(made, alone, strict=True) if not isinstance(one, Exception)]
    assert done
    assert all(one == other for one, other in done)


def test_the_application_lists_models_and_knows_its_replicas(deployed):
    listed = httpx.get(f"{deployed.address}/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["fashion", "words"]
    health = httpx.get(f"{deployed.address}/health")
    assert (health.status_code, health.json()["words"]["ready"]) == (200, True)
    missing = httpx.get(f"{deployed.address}/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_streams_of_a_killed_replica_go_on_in_the_other(deployed):
    # More than there are rows: some have begun when the replica dies, others wait in it.
    jobs = [slow(seed) for seed in range(16)]

    async def kill():
        source, pieces = deployed.source("fashion"), Counter()
        await replicas(source, 2)
        counted = Dying(source)  # nothing dies there: it keeps what is submitted
        killed = (await source.reports())[0]["process"]
        reading = [
            asyncio.ensure_future(tokens_of(Resuming(counted), job, lambda job: pieces.update([job.seed])))
            for job in jobs
        ]
        # Neither replica has more than four rows: where six streams are under way, both have some.
        while sum(count > 4 for count in pieces.values()) < 6:
            await asyncio.sleep(0.005)
        os.kill(killed, signal.SIGKILL)
        made = await asyncio.gather(*reading)
        await replicas(source, 2)  # Ray starts another one
        assert killed not in [report["process"] for report in await source.reports()]
        again = counted.jobs[len(jobs) :]
        return made, await all_of(deployed.here["fashion"], jobs), again

    made, alone, again = run(kill())
    assert made == alone
    begun = [job for job in again if job.generated]
    assert begun, "no stream had begun in the replica that died"
    assert len(again) > len(begun), "no job waited in the replica that died"


def test_an_update_rolls_out_under_load_without_an_error(deployed, words):
    from coupled_sampling.serving.deployment import app_builder

    async def update():
        source, made = deployed.source("fashion"), {}
        changed = app_builder(arguments(words, rows=3))
        rolling = asyncio.ensure_future(asyncio.to_thread(deployed.serve.run, changed, name="tests"))

        async def client(number):
            for seed in range(number, 10_000, 6):
                made[seed] = await tokens_of(Resuming(source), job_of(seed))
                if rolling.done():
                    return

        await asyncio.gather(*(client(number) for number in range(6)))
        await rolling
        rows = [done_in(report)["scd-match"]["rows"] for report in await source.reports()]
        alone = await all_of(deployed.here["fashion"], [job_of(seed) for seed in made])
        return list(made.values()), alone, rows

    made, alone, rows = run(update())
    assert made == alone
    assert len(made) >= 12
    assert set(rows) == {3}
