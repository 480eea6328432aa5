"""The application on many machines: `app_builder` for Ray Serve; needs the extra [ray].

::

    serve run config.yaml    # import_path: coupled_sampling.serving.deployment:app_builder

- each model is a deployment of its own, whose replicas have its engines (`coupled_sampling.serving.replica`); or all models share
  the replicas of one deployment, each of which opens those that are asked for;
- the ingress is the application of `coupled_sampling.serving.http`, over a `RaySource` for each model. It opens the bundles for
  their words and pictures, and no model;
- a job crosses to a replica, and its commits come back: a message for each, not for each token;
- jobs of a replica that dies go on in another one (`coupled_sampling.serving.resuming`).

Jobs wait in the ingress, not in replicas, so that one that has just started takes its share. When as many wait as may, the next is
refused at once, with 429; it is not offered elsewhere, as all replicas stand behind that one queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import CoupledSamplingError, MissingDependency
from coupled_sampling.serving.crossing import pack_job, pack_statistics, unpack_message, unpack_statistics
from coupled_sampling.serving.deployment_settings import DeploymentArgs, ModelArgs
from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.errors import EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.keys import read_keys
from coupled_sampling.serving.lanes import Lanes, Pieces
from coupled_sampling.serving.meters import Meters
from coupled_sampling.serving.replica import ModelReplica
from coupled_sampling.serving.resuming import Resuming
from coupled_sampling.serving.served import ServedModel
from coupled_sampling.serving.statistics import Statistics

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

__all__ = ["RaySource", "app_builder", "require_ray_serve"]

_REPORT = 5.0
"""Seconds within which replicas have to report."""

_LATER = 5.0
"""Seconds after which to come back to a full queue."""

_DRAIN = 20.0
"""Seconds that a model has for jobs under way before it makes room for another in a replica that they share."""

_INGRESS = {"max_ongoing_requests": 1000, "max_surge_percent": 100}
"""Options of the ingress: it waits more than it works, and is there while an update rolls out."""


def require_ray_serve() -> Any:
    """The module ``ray.serve``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingDependency(
            "serving on many machines needs Ray Serve; install it with: pip install 'coupled-sampling[ray]'"
        ) from error
    return serve


def app_builder(args: dict[str, Any]) -> Application:
    """The application for ``serve run`` and ``serve deploy``; opens nothing.

    Parameters
    ----------
    args
        See `coupled_sampling.serving.deployment_settings.DeploymentArgs`, and the guide "Many machines".

    Raises
    ------
    InvalidArgument
        One of them cannot work.
    MissingDependency
        Ray Serve is not installed.
    """
    serve = require_ray_serve()
    asked = DeploymentArgs.of(args)
    groups = {"models": asked.models} if asked.multiplexed else {model.name: (model,) for model in asked.models}
    most = asked.max_models_per_replica if asked.multiplexed else None
    handles: dict[str, Any] = {}
    for name, models in groups.items():
        options = asked.options if asked.multiplexed else models[0].options
        # Without the options, which are Ray's.
        settings = [model.model_dump(exclude={"deployment"}) for model in models]
        bound = serve.deployment(_Replica, name=name, **options).bind(settings, most)
        handles.update(dict.fromkeys((model.name for model in models), bound))
    ingress = serve.deployment(serve.ingress()(_Ingress), name="ingress", **{**_INGRESS, **asked.ingress})
    folders = {model.name: model.model for model in asked.models}
    return ingress.bind(asked.http.model_dump(), folders, handles, asked.multiplexed)


class _Shared:
    """A model that Ray opens and closes, where several share a replica."""

    def __init__(self, lanes: Lanes, close: Callable[[], None]) -> None:
        self.lanes, self._close = lanes, close

    def __del__(self) -> None:  # Ray calls this, in a thread, before it opens another
        self._close()


class _Replica(ModelReplica):
    """What Ray makes replicas of.

    Parameters
    ----------
    settings
        `ModelArgs` as data.
    most
        Most models open at once, where several share a replica; None opens the only one at once and keeps it.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]], most: int | None) -> None:
        self._settings = {one["name"]: ModelArgs(**one) for one in settings}
        self._lanes: dict[str, Lanes] = {}
        self._done: dict[str, Mapping[str, Statistics]] = {}
        """Of models that were closed."""
        super().__init__(self._find_lanes, lambda: dict(self._lanes))
        serve = require_ray_serve()
        self._id = str(serve.get_replica_context().replica_id.unique_id)
        self._meters = Meters()
        if most is None:
            (name,) = self._settings
            self._open(name).wait_until_ready()
        else:

            async def load(name: str) -> _Shared:  # Ray sets an attribute of it, which a method does not take
                return await self._shared(name)

            self._load = serve.multiplexed(max_num_models_per_replica=most)(load)
        self._kept = most is None

    def _open(self, name: str) -> Lanes:
        model = self._settings[name]
        lanes = self._lanes[name] = Lanes(lambda: open_bundle(model.model), model.lane_settings)
        return lanes

    async def _find_lanes(self, name: str) -> Lanes:
        if self._kept:
            return self._lanes[name]
        shared: _Shared = await self._load(name)
        return shared.lanes

    async def _shared(self, name: str) -> _Shared:
        lanes = await asyncio.to_thread(self._open, name)

        def close() -> None:
            if self._lanes.get(name) is lanes:
                del self._lanes[name]
            else:
                return  # Python calls it once more when nothing holds the model
            lanes.close(drain=_DRAIN)  # what is not done by then goes on elsewhere
            done = asyncio.run(lanes.statistics())
            self._done[name] = _summed([self._done.get(name, {}), {m: found.ended() for m, found in done.items()}])

        return _Shared(lanes, close)

    async def report(self) -> dict[str, Any]:
        report = await super().report()
        for name, done in self._done.items():
            model = report["models"].setdefault(name, {"health": None, "statistics": {}})
            model["statistics"] = pack_statistics(_summed([unpack_statistics(model["statistics"]), done]))
        return {"replica": self._id, **report}

    async def check_health(self) -> None:
        for name, lanes in list(self._lanes.items()):
            self._meters.update(name, await lanes.statistics())
        await super().check_health()

    def __del__(self) -> None:  # Ray calls this when the replica has drained
        for lanes in list(getattr(self, "_lanes", {}).values()):
            lanes.close(drain=0)


class _Ingress:
    """What Ray makes the ingress of: the application, in each of its replicas."""

    def __init__(
        self, http: Mapping[str, Any], folders: Mapping[str, str], handles: Mapping[str, Any], shared: bool
    ) -> None:
        from coupled_sampling.serving.http import HttpSettings, make_app

        limits = {name: value for name, value in http.items() if name != "key_file"}
        settings = HttpSettings(
            **limits, keys=() if http["key_file"] is None else read_keys(Path(http["key_file"]), "http.key_file")
        )
        models = []
        for name, folder in folders.items():
            bundle = open_bundle(folder)
            source = Resuming(RaySource(handles[name], name, fingerprint(bundle), shared=shared))
            models.append(ServedModel(name, bundle, source))
        self._app = make_app(models, settings)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app


class RaySource:
    """The replicas of a deployment, as a `coupled_sampling.serving.lanes.Source`: each job goes to one of them.

    A job whose replica dies ends with `EngineStopped`; `coupled_sampling.serving.resuming.Resuming` makes it go on elsewhere.

    Parameters
    ----------
    handle
        Of the deployment.
    name
        The model.
    version
        Its `coupled_sampling.serving.fingerprints.fingerprint`.
    shared
        Whether models share replicas; jobs then go to one that has the model open, if there is one.
    """

    def __init__(self, handle: DeploymentHandle, name: str, version: str, *, shared: bool = False) -> None:
        self._handle, self._name, self._version = handle, name, version
        more = {"multiplexed_model_id": name} if shared else {}
        self._begin = handle.options(method_name="submit", stream=True, **more)
        self._reports: dict[str, dict[str, Statistics]] = {}
        """The last of every replica there was: sums never fall."""
        self._shared = shared

    async def submit(self, job: Job) -> Pieces:
        """See `coupled_sampling.serving.lanes.Source.submit`."""
        pieces = _ReplicaPieces(self._begin.remote(self._name, self._version, pack_job(job)))
        await pieces.begin()
        return pieces

    async def health(self) -> Health:
        """See `coupled_sampling.serving.lanes.Source.health`: whether a replica takes jobs."""
        known = [report["models"].get(self._name) for report in await self.reports()]
        healths = [None if one is None or one["health"] is None else Health(*one["health"]) for one in known]
        if self._shared and None in healths:
            return Health(True, True)  # it opens the model when it is asked for
        found = [health for health in healths if health is not None]
        ready = next((health for health in found if health.ready), None)
        return ready or next(iter(found), Health(False, False, "no replica answers"))

    async def statistics(self) -> Mapping[str, Statistics]:
        """See `coupled_sampling.serving.lanes.Source.statistics`: the sums over all replicas, also of those that are gone."""
        present = set()
        for report in await self.reports():
            present.add(report["replica"])
            if self._name in report["models"]:
                self._reports[report["replica"]] = unpack_statistics(report["models"][self._name]["statistics"])
        return _summed(
            done if replica in present else {method: found.ended() for method, found in done.items()}
            for replica, done in self._reports.items()
        )

    async def reports(self) -> list[dict[str, Any]]:
        """What each replica tells of itself, see `ModelReplica.report`; those that do not answer are left out."""
        try:
            answers = await self._handle.broadcast("report").results_async(timeout_s=_REPORT, return_exceptions=True)
        except Exception:  # no replica runs, or one does not answer: nothing is known
            return []
        return [answer for answer in answers if isinstance(answer, dict)]


def _summed(parts: Iterable[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """Sums by method."""
    sums: dict[str, Statistics] = {}
    for part in parts:
        for method, found in part.items():
            sums[method] = found.added_to(sums.get(method))
    return sums


class _ReplicaPieces:
    """The pieces of a job in a replica."""

    def __init__(self, answers: Any) -> None:
        self._answers, self._over = answers, False

    async def begin(self) -> None:
        """Wait until the job is taken."""
        try:
            await self._next()
        except BaseException:
            self._cancel()
            raise

    async def _next(self) -> Piece | None:
        try:
            return unpack_message(await anext(self._answers))
        except (StopAsyncIteration, CoupledSamplingError):
            self._over = True
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineStopped("the replica cancelled the job") from error  # Ray says so as if it were this task
        except Exception as error:
            self._over = True  # there is nothing to cancel
            raise _as_ours(error) from error

    def __aiter__(self) -> _ReplicaPieces:
        return self

    async def __anext__(self) -> Piece:
        while not self._over:
            piece = await self._next()
            if piece is not None:
                self._over = piece.reason is not None
                return piece
        raise StopAsyncIteration

    async def __aenter__(self) -> _ReplicaPieces:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if not self._over:
            self._over = True
            with contextlib.suppress(Exception):  # Ray raises here what the call has failed with meanwhile
                self._answers.cancel()


def _as_ours(error: Exception) -> Exception:
    """What an error of Ray's means for a job."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, BackPressureError):
        return Overloaded("as many requests wait for a replica as may; come back later", error.retry_after_s or _LATER)
    if isinstance(error, RayTaskError) or not isinstance(error, RayError | RayServeException):
        return EngineFailed(f"the replica could not answer: {error}")
    return EngineStopped("the replica is gone")
