"""Jobs that go on elsewhere: whatever point they are interrupted at, their stream is the one without an interruption."""

import asyncio
import contextlib
import dataclasses
import time

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.jobs import GrammarSource, Job
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.resuming import Resuming
from standins.dying_sources import Dying
from standins.serving import text_bundle

JOB = Job((70, 71, 72), seed=5, settings={"length": 40, "window": 8}, logprobs=True)
SOON = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    folder = text_bundle(tmp_path_factory.mktemp("words"))
    with Lanes(lambda: open_bundle(folder), LaneSettings(rows=2)) as opened:
        yield opened


async def pieces_of(source, job):
    async with await source.submit(job) as pieces:
        return [piece async for piece in pieces]


def read(source, job=JOB):
    return asyncio.run(pieces_of(source, job))


def tokens_of(pieces):
    return [token for piece in pieces for token in piece.tokens]


def test_a_job_goes_on_exactly_wherever_its_place_dies(lanes):
    alone = read(lanes)
    assert len(alone) > 10
    for fate in range(-1, len(alone)):
        for error in (EngineStopped, EngineFailed):
            source = Dying(lanes, fate, error=error)
            made = read(Resuming(source, pauses=SOON))
            assert tokens_of(made) == tokens_of(alone)
            shares = [share for piece in made for share in piece.logprobs]
            assert shares == pytest.approx([share for piece in alone for share in piece.logprobs], abs=1e-4)
            assert [piece.reason for piece in made] == [None] * (len(made) - 1) + ["length"]
            # A pass that commits nothing reads again what the second place has not seen.
            assert [n for n in made[-1].committed_per_pass if n] == [len(piece.tokens) for piece in made]
            assert len(source.jobs) == 2
            assert list(source.jobs[1].generated) == tokens_of(made[: max(0, fate)])
            assert source.open == 0


def test_a_job_goes_on_exactly_after_three_deaths(lanes):
    source = Dying(lanes, 3, -1, 2)
    assert tokens_of(read(Resuming(source, pauses=SOON))) == tokens_of(read(lanes))
    assert [len(job.generated) > 0 for job in source.jobs] == [False, True, True, True]


def test_a_stream_that_ends_too_early_goes_on(lanes):
    assert tokens_of(read(Resuming(Dying(lanes, "ends"), pauses=SOON))) == tokens_of(read(lanes))


def test_a_job_that_came_with_tokens_keeps_them_over_a_death(lanes):
    alone = tokens_of(read(lanes))
    source = Dying(lanes, 2)
    made = read(Resuming(source, pauses=SOON), JOB.resumed(alone[:7]))
    assert tokens_of(made) == alone[7:]
    assert list(source.jobs[1].generated[:7]) == alone[:7]


@pytest.mark.parametrize(
    "more",
    [
        {"frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 1.3},
        {"grammar": GrammarSource("regex", "[a-z]{6,30}"), "bias": {101: 4.0}},
        {"settings": {"length": 30, "temperature": 0.7, "top_k": 9}},
        {"settings": {"length": 30, "method": "ar"}},
    ],
    ids=["penalties", "grammar", "warped", "ar"],
)
def test_whatever_shapes_a_sequence_knows_of_its_first_part(lanes, more):
    job = dataclasses.replace(Job((70, 71, 72), seed=3, settings={"length": 30}), **more)
    alone = read(lanes, job)
    for fate in range(0, len(alone), 3):
        made = read(Resuming(Dying(lanes, fate), pauses=SOON), job)
        assert tokens_of(made) == tokens_of(alone)
        assert made[-1].reason == alone[-1].reason


def test_a_stop_text_across_both_parts_ends_the_job(lanes):
    letters = {token: 12.0 for letter in "abcdefgh" for token in lanes.tokenizer.encode(letter)}
    job = Job((70, 71, 72), seed=3, settings={"length": 60}, bias=letters)
    text = lanes.tokenizer.decode(tokens_of(read(lanes, job)))
    job = dataclasses.replace(job, stop=(text[14:18],))
    alone = read(lanes, job)
    assert (alone[-1].reason, len(tokens_of(alone)) < 60) == ("stop", True)
    for fate in range(len(alone)):
        made = read(Resuming(Dying(lanes, fate), pauses=SOON), job)
        assert (tokens_of(made), made[-1].reason) == (tokens_of(alone), "stop")


def test_a_method_with_tokens_of_its_own_goes_on_to_its_full_length(lanes):
    job = dataclasses.replace(JOB, settings={"length": 40, "method": "scd-gumbel"})
    alone = read(lanes, job)
    made = read(Resuming(Dying(lanes, 3), pauses=SOON), job)
    assert tokens_of(made)[:3] == tokens_of(alone)[:3]
    assert len(tokens_of(made)) == 40
    assert sum(made[-1].committed_per_pass) == 40


def test_a_job_moves_as_often_as_it_may(lanes):
    source = Dying(lanes, 1, 1, 1, 1)
    with pytest.raises(EngineFailed, match="nobody could go on with the request: the place died"):
        read(Resuming(source, pauses=SOON))
    assert len(source.jobs) == 4
    assert source.open == 0


def test_a_job_that_nobody_takes_fails(lanes):
    source = Dying(lanes, -1, -1, -1, -1)
    with pytest.raises(EngineFailed, match="nobody could go on"):
        read(Resuming(source, pauses=SOON))
    assert len(source.jobs) == 4


@pytest.mark.parametrize("refusal", [InvalidArgument("no"), Overloaded("full", 7.0), DeadlineExceeded("late")])
def test_a_refusal_is_passed_on_as_it_is(lanes, refusal):
    for fates in ([refusal], [-1, refusal]):
        source = Dying(lanes, *fates)
        with pytest.raises(type(refusal)) as told:
            read(Resuming(source, pauses=SOON))
        assert told.value is refusal
        assert len(source.jobs) == len(fates)


def test_a_job_that_has_begun_waits_for_room(lanes):
    source = Dying(lanes, 2, Overloaded("full", 7.0))
    assert tokens_of(read(Resuming(source, pauses=SOON))) == tokens_of(read(lanes))
    assert len(source.jobs) == 3


def test_the_deadline_counts_from_the_start_over_all_parts(lanes):
    source = Dying(lanes, 2, -1)
    read(Resuming(source, pauses=(0.05, 0.05)), dataclasses.replace(JOB, deadline=30.0))
    left = [job.deadline for job in source.jobs]
    assert 30.0 >= left[0] > left[1] + 0.04 > left[2] + 0.08 > 29.0


@pytest.mark.parametrize("fates", [["silent"], [2, "silent"]])
def test_a_place_that_says_nothing_any_more_does_not_outlast_the_deadline(lanes, fates):
    source, began = Dying(lanes, *fates), time.monotonic()
    with pytest.raises(DeadlineExceeded):
        read(Resuming(source, pauses=SOON), dataclasses.replace(JOB, deadline=0.5))
    assert time.monotonic() - began < 5
    assert source.open == 0


def test_a_pause_does_not_outlast_the_deadline(lanes):
    with pytest.raises(DeadlineExceeded):
        read(Resuming(Dying(lanes, -1), pauses=(60.0,)), dataclasses.replace(JOB, deadline=0.2))


def test_leaving_a_stream_frees_its_row_in_its_second_place(lanes):
    source = Dying(lanes, 2)

    async def leave():
        async with await Resuming(source, pauses=SOON).submit(JOB) as pieces:
            for _ in range(4):
                await anext(pieces)
            assert source.open == 1
        while (await lanes.statistics())["scd-match"].running:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 10))
    assert source.open == 0


def test_a_reader_that_is_cancelled_is_not_moved(lanes):
    source = Dying(lanes, "silent")

    async def cancel():
        reading = asyncio.ensure_future(pieces_of(Resuming(source, pauses=SOON), JOB))
        while not source.open:
            await asyncio.sleep(0.001)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        return reading.cancelled()

    assert asyncio.run(asyncio.wait_for(cancel(), 10))
    assert (len(source.jobs), source.open) == (1, 0)
