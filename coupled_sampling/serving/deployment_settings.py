"""`DeploymentArgs`: the arguments of `coupled_sampling.serving.deployment.app_builder`, checked in words.

They come from the ``args`` of a Ray Serve configuration file. What Ray knows how to set, such as the number of replicas, is set by
Ray's own names in ``deployment`` and ``ingress``, and checked by Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coupled_sampling.backends import Place
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.lanes import LaneSettings

__all__ = ["DeploymentArgs", "HttpArgs", "ModelArgs"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_RESERVED = ("ingress", "models")
"""Names of deployments that are not a model's."""

_QUEUED = 8
"""Jobs that may wait for a replica, over rows."""

_IN_REPLICA = 4096
"""Jobs that may wait in a replica: its engine never refuses them for their number, as Ray's max_ongoing_requests bounds it."""


class _Strict(BaseModel):
    """What refuses fields that nobody knows."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True)


class ServingArgs(_Strict):
    """How a model is served. Given beside ``models`` it holds for all that do not say otherwise."""

    backend: str = Field("cpu", description="A back end, see `coupled_sampling.backends`.")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="Threads within an operator.")
    engines: str | None = Field(None, description="Folder of TensorRT's engines.")
    provider: str | None = Field(None, description="The plugin, for the back end ort.")
    max_window: Annotated[int, Field(ge=1)] | None = Field(None, description="Most slots in a call, for TensorRT.")
    rows: int = Field(8, ge=1, description="Sequences decoded together in a lane.")
    step: str = Field("auto", description="Where steps are decided.")
    lanes: int = Field(2, ge=1, description="Most ways to decode at once, each with the model in memory.")
    defaults: dict[str, Any] = Field(default_factory=dict, description="How requests are decoded that do not say.")
    deployment: dict[str, Any] = Field(default_factory=dict, description="Options of `ray.serve.deployment`.")

    @property
    def lane_settings(self) -> LaneSettings:
        """For `coupled_sampling.serving.lanes.Lanes`.

        Raises
        ------
        InvalidArgument
            There is no such back end, or it does not have what is set.
        """
        place = Place(
            self.backend,
            threads=self.threads,
            engines=self.engines,
            max_window=self.max_window,
            provider=self.provider,
        )
        return LaneSettings(place, self.rows, _IN_REPLICA, self.step, self.lanes, self.defaults)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the deployment: those that are given, over ours."""
        given = dict(self.deployment)
        if isinstance(given.get("autoscaling_config"), Mapping):
            given["autoscaling_config"] = {"target_ongoing_requests": self.rows, **given["autoscaling_config"]}
        # Twice as many as there are rows: the next are there before a row is free. All others wait in the ingress.
        return {"max_ongoing_requests": 2 * self.rows, "max_queued_requests": _QUEUED * self.rows, **given}


class ModelArgs(ServingArgs):
    """One model."""

    model: str = Field(min_length=1, description="Folder of a bundle on every node, or name of an embedded model.")
    name: str = Field("", pattern=_NAME, description="What clients call it; the folder's name if left out.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("model"), str) and "name" not in given:
            return {**given, "name": Path(given["model"]).name}
        return given


class HttpArgs(_Strict):
    """What the application allows, see `coupled_sampling.serving.http.HttpSettings`."""

    most_body: int = Field(default=1 << 20, ge=1)
    most_choices: int = Field(default=32, ge=1)
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 600.0
    key_file: str | None = Field(default=None, description="API keys, one a line; a file on every node of an ingress.")


class DeploymentArgs(ServingArgs):
    """Everything."""

    models: tuple[ModelArgs, ...] = Field(min_length=1)
    multiplexed: bool = Field(False, description="Whether all models share the replicas of one deployment.")
    max_models_per_replica: int = Field(2, ge=1, description="Most models open in a replica that they share.")
    http: HttpArgs = HttpArgs()
    ingress: dict[str, Any] = Field(default_factory=dict, description="Options of the application's deployment.")

    @model_validator(mode="before")
    @classmethod
    def _common(cls, given: Any) -> Any:
        """Models with what is given for all of them."""
        if not isinstance(given, Mapping) or not isinstance(given.get("models"), list | tuple):
            return given
        common = {name: given[name] for name in ServingArgs.model_fields if name in given}
        return {**given, "models": [_completed(model, common) for model in given["models"]]}

    @model_validator(mode="after")
    def _possible(self) -> DeploymentArgs:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}; give one of them another name")
            if name in _RESERVED:
                raise ValueError(f"a model is called {name!r}, as a deployment of its own is; give it another name")
        if "max_models_per_replica" in self.model_fields_set and not self.multiplexed:
            raise ValueError("max_models_per_replica is for multiplexed: true; leave it out")
        return self

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DeploymentArgs:
        """The arguments out of a configuration file.

        Raises
        ------
        InvalidArgument
            One of them cannot work.
        """
        try:
            made = cls.model_validate(given)
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(str(part) for part in wrong["loc"])
            what = wrong["msg"].removeprefix("Value error, ")
            if wrong["type"] == "extra_forbidden":
                what = "there is no such argument"
            shown = "" if isinstance(wrong["input"], Mapping) else f", got {wrong['input']!r}"
            raise InvalidArgument(f"args{'.' if where else ''}{where}: {what}{shown}") from None
        for model in made.models:
            _ = model.lane_settings  # a wrong back end is told before anything is started
        return made


def _completed(model: Any, common: Mapping[str, Any]) -> Any:
    if isinstance(model, str):
        model = {"model": model}
    if not isinstance(model, Mapping):
        return model
    merged = {**common, **model}
    for name in ("defaults", "deployment"):
        if isinstance(common.get(name), Mapping) and isinstance(model.get(name), Mapping):
            merged[name] = {**common[name], **model[name]}
    return merged
