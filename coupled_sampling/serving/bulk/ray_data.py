"""Many sequences on many machines, by Ray Data: a pool of actors, each with a copy of the model, that pull single prompts.

Ray Data works on blocks of rows, and a task on a block ends with its slowest row. So a block is one prompt, and each actor has as
many tasks at once as the local run has coroutines: all of them share the actor's event loop and one model, whose rows they fill as
they come and go. No prompt waits for another one's end.

- A block of one row also makes a repeated task safe: it has one result, so that what was told of it before is what is told again.
- The prompts' file is read lazily, by one task on the machine of the driver, as actors have room. Nothing else reads it.
- What is made streams to the driver, which alone writes. So an actor or a machine that dies costs the prompts it had under way,
  which others do again, and a driver that dies costs what the record does not have yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from coupled_sampling.arguments import check_count, check_number, in_one_line
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, CoupledSamplingError, InvalidArgument, MissingDependency
from coupled_sampling.serving.bulk.local import PER_ROW
from coupled_sampling.serving.bulk.making import Made, Maker
from coupled_sampling.serving.bulk.rows import Asked
from coupled_sampling.serving.errors import EngineFailed
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.lanes import Lanes, LaneSettings

__all__ = ["RaySettings", "made_by_ray", "require_ray"]


@dataclass(frozen=True)
class RaySettings:
    """The machines.

    Parameters
    ----------
    actors
        Copies of the model.
    cpus, gpus
        What each of them takes; fractions share one.
    address
        The cluster; None is what the variable RAY_ADDRESS says, or Ray started on this machine for the time of the run.

    Raises
    ------
    InvalidArgument
        A number cannot work.

    Examples
    --------
    >>> RaySettings(actors=8, gpus=0.5).cpus
    1.0
    """

    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        check_count("actors", self.actors)
        # Ray Data would fuse reading with making, where both take no CPU.
        if check_number("cpus", self.cpus, "a number > 0") <= 0:
            raise InvalidArgument(f"cpus is {self.cpus}, expected a number > 0")
        if check_number("gpus", self.gpus, "a number >= 0") < 0:
            raise InvalidArgument(f"gpus is {self.gpus}, expected a number >= 0")


def require_ray() -> Any:
    """The package ``ray``, with ``ray.data``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(
            "many machines need Ray, which is not installed: pip install 'coupled-sampling[bulk,ray]'"
        ) from error
    return ray


class _Copy:
    """A copy of the model in an actor, called with blocks of one prompt, many at once.

    What goes wrong while it is opened is raised by the first call: of an actor that cannot be made, Ray does not always say why.
    """

    def __init__(self, opened: Callable[[], Bundle], wanted: str, lanes: LaneSettings) -> None:
        self._failure: CoupledSamplingError | None = None
        try:
            self._maker = self._opened(opened, wanted, lanes)
        except CoupledSamplingError as error:
            self._failure = error

    def _opened(self, opened: Callable[[], Bundle], wanted: str, lanes: LaneSettings) -> Maker:
        made = Lanes(opened, lanes)
        if fingerprint(made.bundle) != wanted:
            raise BundleError(
                f"the model {made.bundle.manifest.name} on one of the machines is not the one of this run; copy it there again"
            )
        made.wait_until_ready()
        return Maker(made.bundle, made, dict(lanes.defaults))

    async def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        (packed,) = block["asked"]
        made = await self._maker.make(pickle.loads(packed))
        return {"made": [pickle.dumps(made)]}


def made_by_ray(
    opened: Callable[[], Bundle],
    wanted: str,
    lanes: LaneSettings,
    settings: RaySettings,
    asked: Callable[[], Iterator[Asked]],
) -> Generator[Made, None, None]:
    """Make all of ``asked``; gives each as soon as it is done. Closing it gives up what is under way.

    Parameters
    ----------
    opened
        Opens the model, on the actors' machines.
    wanted
        `coupled_sampling.serving.fingerprints.fingerprint` of the model.
    lanes
        How an actor decodes.
    settings
        The machines.
    asked
        Gives what is wanted; it is called in another process on this machine.

    Raises
    ------
    BundleError, MissingDependency
        An actor has another model, or lacks a package.
    EngineFailed
        The model does not work, or Ray does not.
    """
    ray = require_ray()
    with _connected(ray, settings):
        at_once = PER_ROW * lanes.rows
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # bytes, so that every row is a block
        context.execution_options.preserve_order = False
        made = ray.data.read_datasource(_source(ray, asked), num_cpus=0, override_num_blocks=1).map_batches(
            _Copy,
            fn_constructor_args=(opened, wanted, lanes),
            batch_size=1,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=settings.actors, max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once
            ),
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
        )
        try:
            for batch in made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
                for packed in batch["made"]:
                    yield pickle.loads(packed)
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _ours(error) from error


def _source(ray: Any, asked: Callable[[], Iterator[Asked]]) -> Any:
    """A ``ray.data.Datasource`` of single prompts, which is read once, on this machine."""
    import pyarrow

    def blocks() -> Iterator[Any]:
        for one in asked():
            yield pyarrow.table({"asked": [pickle.dumps(one)]})

    class Prompts(ray.data.Datasource):  # type: ignore[misc]
        supports_distributed_reads = False

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            block = ray.data.block.BlockMetadata(None, None, None, None)
            return [ray.data.ReadTask(blocks, block)]

    return Prompts()


@contextlib.contextmanager
def _connected(ray: Any, settings: RaySettings) -> Iterator[None]:
    """Ray, quiet; what is started here is stopped again."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    # Of a Ray that is started here: it would tell its makers, and its core would write remarks to the terminal.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _told_plainly():
        ray.init(settings.address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineFailed(f"Ray cannot be reached or started: {in_one_line(error)}") from error


def _ours(error: BaseException) -> CoupledSamplingError:
    """An error of this library among the causes of one of Ray's; else one that says what Ray says."""
    found: BaseException | None = error
    while found is not None:
        cause = getattr(found, "cause", None)
        for one in (found, cause):
            if isinstance(one, CoupledSamplingError):
                return one
        found = cause if isinstance(cause, BaseException) else found.__cause__
    return EngineFailed(f"Ray ended the run: {in_one_line(error)}")
