"""What Triton's Python backend runs: `TritonPythonModel`, an engine behind a decoupled model.

One instance has one `coupled_sampling.serving.lanes.Lanes`: the server's batching is off, and all requests of an instance share its
engine, which batches them at every step. A request's tokens are those that it has alone.

https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.served import ServedModel
from coupled_sampling.serving.triton.answers import Answer, Answers
from coupled_sampling.serving.triton.asking import read_asked
from coupled_sampling.serving.triton.metrics import Metrics
from coupled_sampling.serving.triton.settings import BUNDLE, TritonSettings
from coupled_sampling.serving.triton.tensors import INPUTS

__all__ = ["TritonPythonModel"]

_PROGRAM = Path("/proc/self/exe")
"""What runs this: a program of Triton's with a Python in it."""


class TritonPythonModel:
    """One instance of a model; made, called and ended by Triton."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model. ``args`` are the server's.

        Raises
        ------
        TritonModelException
            It cannot be opened; the server's log and the answer to a request to load it say why.
        """
        # Only the server's process has this module.
        self._server = importlib.import_module("triton_python_backend_utils")
        _check_arrays(self._server)
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        try:
            self._settings = TritonSettings.read(parameters)
            self._lanes = _open(args, self._settings, parameters.get(BUNDLE, BUNDLE))
            self._model = ServedModel(args["model_name"], self._lanes.bundle, self._lanes)
        except (CoupledSamplingError, OSError) as error:
            raise self._server.TritonModelException(f"{args['model_name']} cannot be served: {error}") from error
        self._metrics = Metrics(
            self._server,
            {"model": args["model_name"], "version": args["model_version"], "instance": args["model_instance_name"]},
        )
        self._answers = Answers(self._model, self._tell)
        self._tell()

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer ``requests``; returns at once, and answers are sent as they are made."""
        for request in requests:
            answer = Answer(self._server, request.get_response_sender())
            try:
                _check_parameters(json.loads(request.parameters()))
                # Tensors are the server's memory, and are gone when this method returns.
                asked = read_asked({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}, self._model)
            except Exception as error:
                answer.refuse(error)
            else:
                self._answers.begin(answer, asked)

    def finalize(self) -> None:
        """End: those under way are finished, as far as that can be done in the time there is."""
        in_time = self._answers.drain(self._settings.drain)
        self._lanes.close(drain=0)
        self._answers.close()
        self._metrics.close()
        if not in_time:
            self._server.Logger.log_warn(
                f"requests were ended after {self._settings.drain} s, as the model is unloaded"
            )

    def _tell(self) -> None:
        """Bring the metrics up to date."""
        with contextlib.suppress(Exception):  # such as of a server that is about to end; no request depends on it
            self._metrics.tell(asyncio.run(self._lanes.statistics()))  # a coroutine that never waits


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse what may be a misspelt input: over HTTP Triton takes a name that is no input's for a parameter.

    What a server forwards of a request's headers is let pass, as far as it looks like one.
    """
    for name in parameters:
        if name.isidentifier() and not name.startswith("triton_"):
            known = ", ".join(tensor.name for tensor in INPUTS)
            raise InvalidArgument(f"there is no input {shown(name)}, expected some of {known}")


def _check_arrays(server: Any) -> None:
    """Refuse a server that was built for NumPy 1: under NumPy 2 it sends empty tensors, and dies of the first text that comes."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0" and _built_for(_PROGRAM) == 1:
        raise server.TritonModelException(
            f"this server's Python backend was built for NumPy 1, and has NumPy {np.__version__}; use Triton 2.52 (24.11) or newer"
        )


def _built_for(program: Path) -> int | None:
    """Which major version of NumPy a program was built for with pybind11; None if that cannot be told.

    Since it knows NumPy 2 (2.12), pybind11 puts the name of NumPy's module together; before that the name stands in the program.
    """
    try:
        text = program.read_bytes()
    except OSError:
        return None
    return 1 if b"numpy.core.multiarray" in text and b"numpy._core" not in text else None


def _open(args: Mapping[str, str], settings: TritonSettings, bundle: str) -> Lanes:
    """The engines of an instance, open."""
    folder = Path(args["model_repository"]) / args["model_version"] / bundle
    on_gpu = args["model_instance_kind"] == "GPU"
    place = settings.place(int(args["model_instance_device_id"]) if on_gpu else None)
    lanes = Lanes(
        lambda: open_bundle(folder),
        LaneSettings(
            place,
            rows=settings.rows,
            most_waiting=settings.most_waiting,
            step=settings.step,
            lanes=settings.lanes,
            defaults=settings.defaults,
        ),
    )
    try:
        lanes.wait_until_ready()
    except BaseException:
        lanes.close(drain=0)
        raise
    return lanes
