"""Ways to decode: what jobs have to have in common to share a decoder, and what can be refused before one is open.

A decoder has one method, one window and one kind of step; temperatures, seeds, lengths and stops differ from job to job. A step in
the model's own graph takes no more than these: jobs with top-k, processors, grammars and the like go another way, see `Way.of_job`.
Which way a job goes depends on the job alone, and not on what else is asked for, so that its tokens do, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from coupled_sampling.arguments import checked_tokens
from coupled_sampling.backends import Place, check_model
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.jobs import Job

__all__ = ["JobCheck", "Way", "check_servable", "job_settings"]


def check_servable(manifest: Manifest) -> None:
    """Refuse a model that must be told what no request to a server can say.

    Raises
    ------
    InvalidArgument
        It takes a condition.
    """
    told = manifest.condition_graph
    if told is not None:
        raise InvalidArgument(
            f"the model {manifest.name} looks at vectors that come with a request (up to {told.length} of {told.size} "
            "numbers), which a server cannot be given so far; use `coupled-sampling generate --condition`, or the library"
        )


class Way(NamedTuple):
    """What jobs that share a decoder have in common."""

    method: str
    window: int | str
    branches: int | None
    drafting: Any
    prompt_chunk: int | None
    corrections: str
    guided: bool
    step: str

    @classmethod
    def of(cls, decoding: DecodingSettings, step: str, *, on_host: bool) -> Way:
        """The way of ``decoding``; ``on_host`` has steps decided by the library, wherever they are else decided: ``step``."""
        part = decoding.decoder
        return cls(
            part["method"],
            part["window"],
            part["branches"],
            part["drafting"],
            part["prompt_chunk"],
            decoding.corrections,
            decoding.guided,
            "host" if on_host else step,
        )

    @classmethod
    def of_job(cls, job: Job, decoding: DecodingSettings, step: str) -> Way:
        """The way of ``job``, whose settings are ``decoding``."""
        return cls.of(
            decoding, step, on_host=job.logprobs or job.processed or decoding.guided or decoding.sampling.warps
        )

    def check(self, bundle: Bundle, place: Place, rows: int, decoding: DecodingSettings) -> None:
        """Refuse what `coupled_sampling.backends.open_model` would refuse, as far as that shows before anything is opened.

        Raises
        ------
        BundleError, InvalidArgument, MissingDependency, ProviderError
            The model cannot be decoded so.
        """
        check_servable(bundle.manifest)
        check_model(
            bundle,
            place,
            rows,
            method=self.method,
            step=self.step,
            guidance=decoding.scale,
            corrections=self.corrections,
            trees=decoding.trees,
        )

    def __str__(self) -> str:
        return f"{self.method}, window {self.window}" + (", guided" if self.guided else "")


def job_settings(bundle: Bundle, defaults: Mapping[str, Any], job: Job) -> DecodingSettings:
    """How ``job`` is decoded: what it says, over ``defaults``, over what the bundle recommends.

    Raises
    ------
    InvalidArgument
        It cannot be.
    """
    given = {name: value for name, value in job.settings.items() if value is not None}
    kept = dict(defaults)
    if "window" in given and "branches" not in given:
        kept.pop("branches", None)  # they were chosen for another window
    if given.get("guidance") == 1 and "guidance_interval" not in given:
        kept.pop("guidance_interval", None)  # it is of the guidance that is turned off
    return bundle.settings(**{**kept, **given})


class JobCheck:
    """Refuses jobs that a model cannot do, as far as that shows while it is not open.

    Parameters
    ----------
    bundle, tokenizer
        The model, and its tokenizer if it reads text.
    place, rows, step
        Where it will run, as for `coupled_sampling.serving.lanes.LaneSettings`.
    defaults
        Settings of jobs that do not say.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import Place
    >>> from coupled_sampling.serving.jobs import Job
    >>> check = JobCheck(open_bundle("fashion"), None, Place(), 8, "auto", {"method": "scd-match"})
    >>> check(Job((257,), seed=1)).length
    196
    >>> check(Job((300,), seed=1))
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: prompt token 0 is 300, expected tokens in [0, 267)
    """

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer | None,
        place: Place,
        rows: int,
        step: str,
        defaults: Mapping[str, Any],
    ) -> None:
        self._bundle, self._tokenizer = bundle, tokenizer
        self._place, self._rows, self._step, self._defaults = place, rows, step, defaults
        self._known: set[Way] = set()

    def __call__(self, job: Job) -> DecodingSettings:
        """How ``job`` is decoded.

        Raises
        ------
        BundleError, InvalidArgument, MissingDependency, ProviderError
            It cannot be.
        """
        manifest = self._bundle.manifest
        decoding = job_settings(self._bundle, self._defaults, job)
        way = Way.of_job(job, decoding, self._step)
        if way not in self._known:
            way.check(self._bundle, self._place, self._rows, decoding)
            self._known.add(way)
        checked_tokens("prompt", job.prompt, manifest.vocab_size)
        checked_tokens("logit_bias", list(job.bias), manifest.vocab_size, least=0)
        request = job.request(decoding, self._bundle, self._tokenizer)
        needed, held = len(job.prompt) + request.length - 1, manifest.window_graph.max_length
        if needed > held:
            raise InvalidArgument(
                f"a prompt of {len(job.prompt)} tokens and {request.length} more need {needed} positions, the model holds {held}; "
                "shorten the prompt, or ask for fewer tokens"
            )
        return decoding
