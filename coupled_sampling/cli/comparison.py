"""Methods side by side on one model: same prompts, same seeds, same batch; AR is measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.cli.settings import DecodingSettings
from coupled_sampling.contracts import CoupledStep, LogitsProvider
from coupled_sampling.generation import Generation, generate
from coupled_sampling.methods import find_method
from coupled_sampling.trace import Summary, summarise

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

    @property
    def summary(self) -> Summary:
        """Figures over all sequences."""
        return summarise(self.generation.traces)

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
    progress: Callable[[str, int], object] | None = None,
) -> list[MethodResult]:
    """Generate ``prompts`` by each of ``methods``.

    Parameters not listed here are those of `coupled_sampling.generate`.

    Parameters
    ----------
    open_model
        Opens the model, or a step, for the method of that name; each method gets one of its own, warmed up by one forward pass of
        each kind before the clock starts.
    prompts
        Tokens of each prompt.
    methods
        Names of methods.
    settings
        How all of them decode; its own method is not looked at.
    seed
        Of all noise.
    against_ar
        Run ``ar`` first, whether it is named or not; without it, figures are relative to the first method.
    progress
        Called with the method and the number of new tokens.

    Raises
    ------
    InvalidArgument, ProviderError
        As from `coupled_sampling.generate`.
    """
    for method in methods:
        find_method(method)
    length, window, samplings = settings.length, settings.window, settings.samplings(prompts)
    ordered = list(dict.fromkeys(["ar", *methods] if against_ar else methods))

    def measured(method: str, reference: MethodResult | None) -> MethodResult:
        """One method, on a model that is forgotten before the next one is opened."""
        model = open_model(method)

        def run(chosen: Sequence[Sequence[int]], tokens: int) -> Generation:
            report = None if progress is None else lambda count: progress(method, count)
            return generate(
                model,
                chosen,
                length=tokens,
                method=method,
                window=window,
                drafting=settings.drafting,
                seed=seed,
                sampling=samplings[: len(chosen)],
                stop=settings.stop,
                progress=report if tokens == length else None,
            )

        run(prompts[: model.batch_size], min(length - 1, 2 * (32 if isinstance(window, str) else window)) or 1)
        began = time.perf_counter()
        generation = run(prompts, length)
        seconds = time.perf_counter() - began
        return MethodResult(method, generation, seconds, reference)

    results: list[MethodResult] = []
    for method in ordered:
        reference = results[0] if results else None
        results.append(measured(method, reference))
    return results
