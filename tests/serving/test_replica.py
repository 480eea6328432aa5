"""What crosses between an application and replicas, and replicas without Ray."""

import asyncio
import pickle

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import BundleError, CoupledSamplingError, InvalidArgument, MissingDependency
from coupled_sampling.serving import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.crossing import (
    pack_error,
    pack_job,
    pack_piece,
    pack_statistics,
    unpack_job,
    unpack_message,
    unpack_statistics,
)
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.jobs import GrammarSource, Job, Piece
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.replica import ModelReplica

JOB = Job(
    (70, 71),
    seed=2**63,
    sequence=4,
    settings={"length": 9, "temperature": 0.5},
    stop=("a",),
    continued=False,
    logprobs=True,
    bias={3: -1.5},
    frequency_penalty=0.1,
    presence_penalty=0.2,
    repetition_penalty=1.3,
    grammar=GrammarSource("regex", "[a-z]+"),
    generated=(5, 6),
    deadline=3.0,
)


def crossed(data):
    """``data`` as it comes out at the other end, where no class of this library need be known."""
    sent = pickle.dumps(data)
    assert b"coupled_sampling" not in sent
    return pickle.loads(sent)


def test_a_job_crosses_with_everything_it_says():
    assert unpack_job(crossed(pack_job(JOB))) == JOB
    plain = Job((1,), seed=0)
    assert unpack_job(crossed(pack_job(plain))) == plain


def test_pieces_cross():
    for piece in (Piece((1, 2)), Piece((3,), "length", None, (-0.5,), (2, 0, 1)), Piece((), "error", "poison")):
        assert unpack_message(crossed(pack_piece(piece))) == piece


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("wrong"),
        MissingDependency("missing"),
        Overloaded("full", 7.5),
        DeadlineExceeded("late"),
        EngineStopped("draining"),
        EngineFailed("loose"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_refusals_cross_with_kind_words_and_time(error):
    with pytest.raises(type(error)) as told:
        unpack_message(crossed(pack_error(error)))
    assert type(told.value) is type(error)
    assert str(told.value) == str(error)
    assert getattr(told.value, "retry_after", None) == getattr(error, "retry_after", None)


@pytest.mark.parametrize("error", [KeyError("/home/secret"), BundleError("/models/m is damaged")])
def test_a_mistake_is_logged_where_it_happened_and_told_without_its_words(error, caplog):
    message = crossed(pack_error(error))
    assert caplog.records[0].exc_info[1] is error
    with pytest.raises(CoupledSamplingError, match="the replica made a mistake"):
        unpack_message(message)


@pytest.fixture(scope="module")
def lanes():
    with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as opened:
        yield opened


@pytest.fixture
def replica(lanes):
    async def find(name):
        return {"fashion": lanes}[name]

    return ModelReplica(find, lambda: {"fashion": lanes})


def messages(replica, job, version, name="fashion"):
    async def read():
        return [crossed(message) async for message in replica.submit(name, version, pack_job(job))]

    return asyncio.run(asyncio.wait_for(read(), 30))


def test_a_job_is_answered_by_taken_and_its_pieces(replica, lanes):
    first, *rest = messages(replica, Job((257,), seed=1), fingerprint(lanes.bundle))
    pieces = [unpack_message(message) for message in rest]
    assert unpack_message(first) is None
    assert sum(len(piece.tokens) for piece in pieces) == 196
    assert pieces[-1].reason == "length"


def test_what_is_refused_is_one_message(replica, lanes):
    (only,) = messages(replica, Job((9999,), seed=1), fingerprint(lanes.bundle))
    with pytest.raises(InvalidArgument, match="9999"):
        unpack_message(only)
    (only,) = messages(replica, Job((257,), seed=1), "another")
    with pytest.raises(EngineStopped, match="another version of fashion"):
        unpack_message(only)


def test_a_cancelled_stream_frees_its_row(replica, lanes):
    async def cancel():
        stream = replica.submit("fashion", fingerprint(lanes.bundle), pack_job(Job((257,), seed=1)))
        await anext(stream)
        await anext(stream)
        with pytest.raises(asyncio.CancelledError):
            await stream.athrow(asyncio.CancelledError())
        while (await lanes.statistics())["scd-match"].running:
            await asyncio.sleep(0.001)

    before = asyncio.run(lanes.statistics())["scd-match"].finished.get("removed", 0)
    asyncio.run(asyncio.wait_for(cancel(), 10))
    assert asyncio.run(lanes.statistics())["scd-match"].finished["removed"] == before + 1


def test_a_replica_reports_its_models(replica, lanes):
    report = crossed(asyncio.run(replica.report()))
    assert report["models"]["fashion"]["health"] == (True, True, None)
    done = asyncio.run(lanes.statistics())
    assert unpack_statistics(report["models"]["fashion"]["statistics"]) == done
    assert unpack_statistics(crossed(pack_statistics(done))) == done


def test_a_replica_whose_engine_is_dead_is_unhealthy():
    lanes = Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1))

    async def find(name):
        return lanes

    replica = ModelReplica(find, lambda: {"fashion": lanes})
    lanes.wait_until_ready()
    asyncio.run(replica.check_health())
    asyncio.run(replica.close())
    with pytest.raises(EngineFailed, match=r"fashion: .*closed"):
        asyncio.run(replica.check_health())
    (only,) = messages(replica, Job((257,), seed=1), fingerprint(lanes.bundle))
    with pytest.raises(EngineStopped):
        unpack_message(only)
