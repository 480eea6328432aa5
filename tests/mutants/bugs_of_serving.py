"""Bugs of serving: what one client's request does to another's, what is lost when it goes, is late, or moves to another machine."""

from planting import Bug

__all__ = ["BUGS"]

ENGINE = ("test_engine",)
LANES = ("test_lanes",)
RUNS = ("test_runs",)
RESUMING = ("test_resuming",)

BUGS = (
    Bug(
        "queue-without-end",
        "Engine._refuse_more",
        "waiting > self._most_waiting",
        "waiting > 1000 + self._most_waiting",
        "More wait than may, and nobody is told to come back later.",
        ENGINE,
    ),
    Bug(
        "rows-of-those-who-went",
        "Engine._take_away",
        "self._decoder.remove(handle)",
        "self._decoder.request(handle)",
        "A client that has gone keeps its row until its request is done.",
        ENGINE,
    ),
    Bug(
        "late-for-ever",
        "Engine._expire",
        "self._deadlines[0][0] <= time.monotonic()",
        "self._deadlines[0][0] <= 0",
        "A request that took longer than it was given goes on.",
        ENGINE,
    ),
    Bug(
        "one-failing-step-ends-all",
        "Engine._step",
        "attempt == TRIES",
        "attempt",
        "A step that fails once ends every request, though the decoder lost nothing.",
        ENGINE,
    ),
    Bug(
        "drained-at-once",
        "Engine._wait",
        "not under_way or now >= self._ends",
        "not under_way or now >= 0",
        "A server that is told to stop cuts off what is under way.",
        ENGINE,
    ),
    Bug(
        "stuck-steps-have-all-the-time",
        "CommitStream.__anext__",
        "asyncio.timeout_at(self._due)",
        "asyncio.timeout_at(None)",
        "A deadline passes while a step is stuck, and the client waits on.",
        ENGINE,
    ),
    Bug(
        "cancelled-before-it-is-queued",
        "in_thread",
        "working.add_done_callback(lambda done: undo(done.result()) if done.exception() is None else None)",
        "",
        "A request whose client goes while it is prepared is decoded to the end for nobody.",
        (*ENGINE, "test_cancelled"),
    ),
    Bug(
        "lanes-closed-under-jobs",
        "Lanes._make_room",
        "not found.running + found.waiting + self._coming[engine]",
        "not found.running",
        "A lane with jobs that wait, or are on their way, is closed to make room.",
        LANES,
    ),
    Bug(
        "two-models-of-one-name",
        "Lanes._open",
        "bundle.manifest != self.bundle.manifest",
        "bundle.manifest.name == ''",
        "A model whose files were replaced is mixed with the one that is served.",
        LANES,
    ),
    Bug(
        "guidance-of-the-first",
        "Job.request",
        'changes["guidance"] = Guidance(settings.scale)',
        "pass",
        "A guided request is guided as the first one of its lane was.",
        LANES,
    ),
    Bug(
        "resumed-without-its-tokens",
        "Job.request",
        "self.generated",
        "()",
        "A request that goes on elsewhere begins again.",
        (*LANES, *RESUMING),
    ),
    Bug(
        "probabilities-in-a-graph",
        "Way.of_job",
        "job.logprobs or job.processed or decoding.guided or decoding.sampling.warps",
        "job.processed or decoding.guided or decoding.sampling.warps",
        "Requests that ask for log-probabilities go to steps that have none.",
        LANES,
    ),
    Bug(
        "deaf-clients-keep-their-rows",
        "_EventStream.__call__",
        "unless_gone(Request(scope, receive), self.stream_response(send))",
        "self.stream_response(send)",
        "A client that goes while nothing is sent keeps its rows.",
        RUNS,
    ),
    Bug(
        "waiting-for-nobody",
        "events",
        "unless_gone(request, made.__anext__())",
        "made.__anext__()",
        "A client that goes while it waits for a row keeps its place in the queue.",
        RUNS,
    ),
    Bug(
        "whole-replies-for-nobody",
        "unless_gone",
        "working.cancel()\nwith contextlib.suppress(asyncio.CancelledError):\n    await working",
        "await working",
        "A client that goes is answered to the end.",
        RUNS,
    ),
    Bug(
        "resumed-from-the-beginning",
        "_UnbrokenPieces._whole",
        "self._tokens += piece.tokens",
        "",
        "A stream whose replica dies begins again in the middle.",
        RESUMING,
    ),
    Bug(
        "deadline-begins-anew",
        "_UnbrokenPieces._rest",
        "self._ends - time.monotonic()",
        "self._job.deadline",
        "A request that moves to another machine has all its time again.",
        RESUMING,
    ),
)
