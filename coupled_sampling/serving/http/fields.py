"""Fields that requests of all routes have: what is asked of decoding, beyond OpenAI's API, and what is told of it.

OpenAI's Python client sends them with ``extra_body={"method": "ar"}``. A field that nobody knows is refused: leaving it out in
silence would change what the client gets. Fields of OpenAI's that are about its accounts are taken and do nothing.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from coupled_sampling.serving.jobs import Piece

__all__ = ["Acceptance", "DecodingFields", "Seed"]

Seed = Annotated[int, Field(ge=0, lt=2**64)]


class DecodingFields(BaseModel):
    """What any request may say of how it is decoded. None leaves it to the server and the model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(description="The name of a model, as `/v1/models` lists them.")
    seed: Seed | None = Field(None, description="The same seed gives the same tokens; none draws one.")
    temperature: float | None = Field(None, ge=0, le=1e30, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    guidance: float | None = Field(None, allow_inf_nan=False, description="Classifier-free guidance scale; 1 is none.")
    guidance_interval: str | None = Field(
        None,
        max_length=40,
        description='"FIRST:END": the generated tokens that are guided; others are drawn as without.',
    )
    method: str | None = Field(None, max_length=40, description="How to decode: ar, scd-match, ...")
    window: Annotated[int, Field(ge=1, lt=2**31)] | str | None = Field(None, description='Slots per pass, or "auto".')
    branches: int | None = Field(None, ge=0, lt=2**31, description="Slots of each window that are for branches.")
    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds within which it has to be done."
    )
    acceptance: bool = Field(False, description="Tell with the response how many passes it took.")
    # OpenAI's, about its accounts and its caches: taken, and without effect.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a job."""
        names = (
            "method",
            "window",
            "branches",
            "guidance",
            "guidance_interval",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def noise(self) -> int:
        """The seed; one that nobody knows beforehand if none was given."""
        return secrets.randbits(63) if self.seed is None else self.seed


class Acceptance(BaseModel):
    """How a response came about: told with every choice, as ``acceptance``, where the request asks for it."""

    passes: int
    tokens: int
    tokens_per_pass: float
    committed_per_pass: list[int]

    @classmethod
    def of(cls, last: Piece) -> Acceptance:
        """Of the last piece of a job."""
        committed = list(last.committed_per_pass)
        return cls(
            passes=len(committed),
            tokens=sum(committed),
            tokens_per_pass=sum(committed) / max(1, len(committed)),
            committed_per_pass=committed,
        )
