"""What settings are made of and go on to: as a user writes them, what a model is opened with, what a decoder takes."""

from __future__ import annotations

from typing import TypedDict

from coupled_sampling.drafting import Drafting
from coupled_sampling.guided_rows import Scale

__all__ = ["DecoderPart", "Given", "ModelPart"]


class Given(TypedDict, total=False):
    """Settings as a user writes them, all of them optional; None, too, leaves one to the bundle."""

    method: str | None
    """Name of a method."""
    window: int | str | None
    """Slots per pass, or "auto"."""
    branches: int | None
    """Slots of each window that are for branches."""
    drafting: str | Drafting | None
    """Where first guesses come from."""
    prompt_chunk: int | None
    """Most tokens of a long prompt to read in one call."""
    guidance: float | None
    """Classifier-free guidance scale; 1 is none."""
    guidance_interval: str | None
    """"FIRST:END", the generated tokens that are guided, a slice as in Python; ":" is all of them."""
    length: int | None
    """Most tokens per sequence."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    """These four shape the target law, see `coupled_sampling.Sampling`."""
    corrections: str | None
    """One of `CORRECTIONS`."""


class ModelPart(TypedDict):
    """What `coupled_sampling.backends.open_model` takes of the settings."""

    method: str
    guidance: Scale
    warped: bool
    corrections: str
    trees: bool | None


class DecoderPart(TypedDict):
    """What `coupled_sampling.Decoder` takes of the settings. A model that is a step has a method of its own.

    Corrections are not among it: they belong to the step, which is opened with them, and a decoder refuses others beside it. To
    decode a provider, give ``corrections=bundle.corrector(settings.method, settings.corrections)`` beside this.
    """

    method: str
    window: int | str
    drafting: str | Drafting
    prompt_chunk: int | None
    branches: int | None
