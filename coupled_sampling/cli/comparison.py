"""Methods side by side on one model: same prompts, same seeds, same batch; AR is measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, max_window
from coupled_sampling.decoding import Commit, Decoder, Request
from coupled_sampling.generation import Generation
from coupled_sampling.methods import find_method
from coupled_sampling.trace import Summary, Trace, summarise

__all__ = ["MethodResult", "compare"]


@dataclass(frozen=True)
class MethodResult:
    """What one method did."""

    method: str
    generation: Generation
    seconds: float
    """Wall-clock time of the whole run."""
    reference: MethodResult | None
    """The result that figures are relative to; None for itself."""
    window: int
    """Slots of the last step's window: where an automatic one ended."""
    branches: int = 0
    """How many of them were for branches."""

    @property
    def summary(self) -> Summary:
        """Figures over all sequences."""
        return summarise(self.generation.traces)

    @property
    def branch_tokens_per_step(self) -> float:
        """How many of the tokens per step were drafts of branches, over all sequences."""
        traces = self.generation.traces
        return sum(len(trace.branch_tokens) for trace in traces) / max(1, sum(trace.nfe for trace in traces))

    @property
    def has_branches(self) -> str:
        """In words which slots were for branches; empty where none were."""
        return f"{self.branches} of {self.window} slots for branches" if self.branches else ""

    @property
    def tokens_per_step(self) -> NDArray[np.float64]:
        """(sequences,) tokens per step of each sequence."""
        return np.array([trace.tokens_per_step for trace in self.generation.traces])

    def figures(self) -> dict[str, float | int | str | bool]:
        """The figures of ``compare --json``."""
        summary = self.summary
        base = self.reference or self
        identical = all(
            np.array_equal(own, theirs)
            for own, theirs in zip(self.generation.tokens, base.generation.tokens, strict=True)
        )
        return {
            "method": self.method,
            "sequences": summary.sequences,
            "tokens": summary.tokens,
            "nfe_mean": summary.nfe_mean,
            "nfe_sem": summary.nfe_sem,
            "tokens_per_step": summary.tokens_per_step,
            "last_window": self.window if find_method(self.method).drafts else 1,
            "branches": self.branches,
            "branch_tokens_per_step": self.branch_tokens_per_step,
            "seconds": self.seconds,
            "tokens_per_second": summary.tokens / self.seconds,
            # Per token: a stop token may end one method's sequence earlier than another's.
            "speedup_nfe": summary.tokens_per_step / base.summary.tokens_per_step,
            "speedup_seconds": (summary.tokens / self.seconds) / (base.summary.tokens / base.seconds),
            "identical_to_ar": identical,
        }


def compare(
    open_model: Callable[[str], LogitsProvider | CoupledStep],
    prompts: Sequence[Sequence[int]],
    methods: Sequence[str],
    settings: DecodingSettings,
    *,
    seed: int = 0,
    against_ar: bool = True,
    warm_up: bool = True,
    watch: Callable[[str, Commit], object] | None = None,
) -> list[MethodResult]:
    """Generate ``prompts`` by each of ``methods``.

    Parameters
    ----------
    open_model
        Opens the model, or a step, for the method of that name; each method gets one of its own.
    prompts
        Tokens of each prompt.
    methods
        Names of methods.
    settings
        How all of them decode, those that take no branches without; its own method is not looked at.
    seed
        Of all noise; sequence i draws with that of (seed, i).
    against_ar
        Run ``ar`` first, whether it is named or not; without it, figures are relative to the first method.
    warm_up
        Whether a model makes one forward pass of each kind before the clock starts, so that first passes are not in the figures.
    watch
        Told the method and each commit, whose handle is the index of the prompt.

    Raises
    ------
    InvalidArgument, ProviderError
        As from `coupled_sampling.Decoder`.
    CoupledSamplingError
        What ended a sequence, after the others have ended.
    """
    for method in methods:
        find_method(method)
    ordered = list(dict.fromkeys(["ar", *methods] if against_ar else methods))

    def measured(method: str, reference: MethodResult | None) -> MethodResult:
        """One method, on a model that is forgotten before the next one is opened."""
        model = open_model(method)
        requests = [settings.request(prompt, seed=seed, sequence=i) for i, prompt in enumerate(prompts)]
        own = settings.by(method, max_window(model))
        if warm_up:
            _decode(model, [replace(one, length=_few(one.length, own)) for one in requests[: model.batch_size]], own)
        began = time.perf_counter()
        generation, window, branches = _decode(
            model, requests, own, None if watch is None else lambda commit: watch(method, commit)
        )
        seconds = time.perf_counter() - began
        return MethodResult(method, generation, seconds, reference, window, branches)

    results: list[MethodResult] = []
    for method in ordered:
        reference = results[0] if results else None
        results.append(measured(method, reference))
    return results


def _few(length: int, settings: DecodingSettings) -> int:
    """Tokens that take a forward pass of each kind."""
    return min(length - 1, 2 * (32 if isinstance(settings.window, str) else settings.window)) or 1


def _decode(
    model: LogitsProvider | CoupledStep,
    requests: Sequence[Request],
    settings: DecodingSettings,
    watch: Callable[[Commit], object] | None = None,
) -> tuple[Generation, int, int]:
    """All ``requests``, as many at once as the model has rows; the last step's window, and how much of it was for branches."""
    decoder = Decoder(model, **settings.decoder)
    for request in requests:
        decoder.add(request)
    parts: list[list[Integers]] = [[] for _ in requests]
    traces = [Trace() for _ in requests]
    errors: list[Exception] = []
    window, branches = 1, 0
    while decoder.active or decoder.waiting:
        window, branches = decoder.window, decoder.branches
        for commit in decoder.step():
            parts[commit.handle].append(commit.tokens)
            traces[commit.handle] = commit.trace
            if commit.error is not None:
                errors.append(commit.error)
            if watch is not None:
                watch(commit)
    if errors:
        raise errors[0]
    return Generation([np.concatenate(tokens) for tokens in parts], traces), window, branches
