"""Answers: a request's pieces as responses of Triton, `Answer`; and all that are under way, `Answers`.

Triton calls a model from one thread and wants it back at once. So requests are answered by an event loop in a thread of its own,
whose streams the engines fill. Whether a client has gone has to be asked for each of its requests, and costs a call to the server's
process: a second thread does, so that no answer waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from coupled_sampling.bundles.text_stream import TextStream
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency
from coupled_sampling.serving.errors import DeadlineExceeded, Overloaded, ServingError
from coupled_sampling.serving.jobs import Piece
from coupled_sampling.serving.served import ServedModel
from coupled_sampling.serving.triton.asking import Asked

__all__ = ["Answer", "Answers", "refusal"]

_EVERY = 0.05
"""Seconds between two looks at which clients have gone: a row is freed about as soon."""

_AFTER = 5.0
"""Seconds in which requests that were given up have to end."""


def refusal(error: BaseException) -> tuple[str, str]:
    """The code of Triton's, by name, and the message that a client gets; what is the server's own fault is not told."""
    if isinstance(error, InvalidArgument):
        return "INVALID_ARG", str(error)
    if isinstance(error, MissingDependency):
        return "UNSUPPORTED", f"this server cannot do that: {error}"
    if isinstance(error, Overloaded):
        return "UNAVAILABLE", f"{error} (in about {error.retry_after:.0f} s)"
    if isinstance(error, DeadlineExceeded):
        return "CANCELLED", str(error)
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED", "the request was cancelled"
    if isinstance(error, ServingError | BundleError):
        return "UNAVAILABLE", "the model cannot answer now; try again later, or ask another server"
    return "INTERNAL", "the server made a mistake; its log says more"


class Answer:
    """One request's answer.

    Parameters
    ----------
    server
        Triton's module ``triton_python_backend_utils``.
    sender
        Its response sender of the request.
    """

    def __init__(self, server: Any, sender: Any) -> None:
        self._server, self._sender = server, sender
        self._sending = threading.Lock()
        self._over = False
        self.task: asyncio.Task[None] | None = None

    @property
    def abandoned(self) -> bool:
        """Whether its client has gone."""
        # With the last response the server frees what it would look at, so it must not be asked after that, or meanwhile.
        with self._sending:
            return not self._over and bool(self._sender.is_cancelled())

    def refuse(self, error: BaseException) -> None:
        """End it by an error, if it has not ended."""
        code, message = refusal(error)
        if code == "INTERNAL" or (code == "UNAVAILABLE" and not isinstance(error, Overloaded)):
            self._server.Logger.log_error(f"a request could not be served: {type(error).__name__}: {error}")
        self._fail(code, message)

    async def run(self, asked: Asked, model: ServedModel) -> None:
        """Decode what is asked, and send it."""
        async with await model.source.submit(asked.job) as pieces:
            sent = _Sent(asked, model)
            async for piece in pieces:
                if piece.error is not None:
                    return self._fail("INTERNAL", f"the request failed while it was decoded: {piece.error}")
                sent.add(piece)
                if piece.reason is None and asked.stream:
                    self._send(sent.tensors())
                elif piece.reason is not None:
                    tensors = sent.tensors()
                    if asked.pixels:
                        shown = model.bundle.manifest.picture_tokens(asked.job.prompt, sent.tokens)
                        tensors["pixels"] = (await model.pictures([shown.tolist()]))[0]
                    self._send(tensors, last=True)

    def _send(self, tensors: dict[str, Any], *, last: bool = False) -> None:
        made = [self._server.Tensor(name, value) for name, value in tensors.items()]
        self._put(self._server.InferenceResponse(output_tensors=made), last=last)

    def _fail(self, code: str, message: str) -> None:
        error = self._server.TritonError(message, getattr(self._server.TritonError, code))
        self._put(self._server.InferenceResponse(output_tensors=[], error=error), last=True)

    def _put(self, response: Any, *, last: bool) -> None:
        with self._sending:
            if self._over:
                return
            self._over = last
            self._sender.send(response, flags=self._server.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


class _Sent:
    """What was made of a request, and what of it is still to be sent."""

    def __init__(self, asked: Asked, model: ServedModel) -> None:
        job = asked.job
        self.tokens = list(job.generated)
        self._fresh: list[int] = []
        self._logprobs: list[float] | None = [] if job.logprobs else None
        self._passes = 0
        self._reason = ""
        self._text: TextStream | None = None
        self._told = ""
        if model.tokenizer is not None:
            self._text = TextStream(model.tokenizer, job.stop, job.prompt if job.continued else ())
            self._text.feed(job.generated)  # was told before the interruption

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        self.tokens += piece.tokens
        self._fresh += piece.tokens
        self._passes += 1
        self._reason = piece.reason or ""
        if self._logprobs is not None:
            self._logprobs += piece.logprobs or ()
        if self._text is not None:
            self._told += self._text.feed(piece.tokens)
            if piece.reason is not None:
                self._told += self._text.finish()

    def tensors(self) -> dict[str, Any]:
        """What is to be sent now, which is then sent."""
        made: dict[str, Any] = {
            "tokens": np.array(self._fresh, np.int64),
            "finish_reason": _bytes(self._reason),
            "passes": np.array([self._passes], np.int64),
        }
        self._fresh = []
        if self._text is not None:
            made["text"], self._told = _bytes(self._told), ""
        if self._logprobs is not None:
            made["logprobs"], self._logprobs = np.array(self._logprobs, np.float64), []
        return made


def _bytes(text: str) -> Any:
    return np.array([text.encode()], dtype=object)


class Answers:
    """All answers that are under way, in a thread of their own.

    Parameters
    ----------
    model
        What answers.
    tick
        Called now and then while there are any, and once after the last; from a thread of its own.
    """

    def __init__(self, model: ServedModel, tick: Callable[[], None]) -> None:
        self._model, self._tick = model, tick
        self._open: set[Answer] = set()
        self._begun = self._seen = 0
        self._changed = threading.Condition()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=work, name=f"coupled-sampling {name}", daemon=True)
            for name, work in (("answers", self._loop.run_forever), ("watch", self._watch))
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, answer: Answer, asked: Asked) -> None:
        """Answer a request; returns at once."""
        with self._changed:
            self._open.add(answer)
            self._begun += 1
            self._changed.notify_all()
        self._loop.call_soon_threadsafe(self._start, answer, asked)

    def _start(self, answer: Answer, asked: Asked) -> None:
        answer.task = self._loop.create_task(answer.run(asked, self._model))
        answer.task.add_done_callback(
            lambda task: self._ended(answer, task)
        )  # also where it is cancelled before it runs

    def _ended(self, answer: Answer, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            with contextlib.suppress(Exception):  # such as of a server that is about to end
                answer.refuse(error)
        with self._changed:
            self._open.discard(answer)
            self._changed.notify_all()

    def _under_way(self) -> list[Answer]:
        with self._changed:
            return list(self._open)

    def drain(self, seconds: float) -> bool:
        """Wait up to so long for those under way; gives whether all have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def close(self) -> None:
        """End the threads; what is still under way is refused first. No more may begin."""
        for answer in self._under_way():
            self._cancel(answer)
        self.drain(_AFTER)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._threads[1].join()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._threads[0].join()
        self._loop.close()

    def _cancel(self, answer: Answer) -> None:
        def cancel() -> None:
            if answer.task is not None:
                answer.task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def _something(self) -> bool:
        """Wait until there is something to look at; False at the end."""
        with self._changed:
            # Counted, since a short one may have ended before this thread has woken up.
            self._changed.wait_for(lambda: self._closed or self._begun != self._seen or bool(self._open))
            more = not self._closed or self._begun != self._seen
            self._seen = self._begun
        return more

    def _watch(self) -> None:
        """Look for clients that have gone, while there are any."""
        told = 0.0
        while self._something():
            for answer in self._under_way():
                with contextlib.suppress(Exception):  # such as of a server that is about to end
                    if answer.abandoned:
                        self._cancel(answer)
            with self._changed:
                ended = self._changed.wait_for(lambda: self._closed or not self._open, _EVERY)
            if ended or time.monotonic() - told > 10 * _EVERY:
                self._tick()
                told = time.monotonic()
