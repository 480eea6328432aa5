"""What a step does not do, and what to do instead.

A step that decides where the logits are (a graph, CUDA kernels, an engine) does less than
`coupled_sampling.host_step.HostStep`, which does everything. Each says once what it leaves out, as a `Refusals`: requests
can then be asked before they are taken, and windows before anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from coupled_sampling.contracts import CoupledStep, LogitsProvider, RequestObserver, Sampling, Selective, Window
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.requests import Request

__all__ = ["Refusals", "missing_offers", "refusal_of"]


def refusal_of(provider: LogitsProvider, request: Request) -> str | None:
    """Why ``provider`` cannot do what ``request`` asks for, as it says itself or as its offers show; None if it can.

    Examples
    --------
    >>> from coupled_sampling import GuidedProvider, Request
    >>> from coupled_sampling.refusals import refusal_of
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = GuidedProvider(TableProvider(random_table(0, 4), 4, batch_size=2, max_length=16), 2.0, [1, 2, 3])
    >>> refusal_of(model, Request([0], length=14)) is None, refusal_of(model, Request([0], length=15)).split(":")[0]
    (True, 'cannot be guided')
    """
    if isinstance(provider, Selective):
        return provider.takes(request)
    return missing_offers(provider, request)


def missing_offers(model: LogitsProvider | CoupledStep, request: Request) -> str | None:
    """Why a ``model`` that says nothing about requests cannot do what ``request`` asks for; None if it can.

    Examples
    --------
    >>> from coupled_sampling import Guidance, Request
    >>> from coupled_sampling.refusals import missing_offers
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> missing_offers(TableProvider(random_table(0, 4), 4), Request([0], length=1, guidance=Guidance(scale=2.0)))
    'has guidance, but the model is not a guided one; wrap it in GuidedProvider, or open its bundle with guidance'
    """
    if request.guidance is not None:
        return "has guidance, but the model is not a guided one; wrap it in GuidedProvider, or open its bundle with guidance"
    if request.condition is not None and not isinstance(model, RequestObserver):
        return "has a condition, but the model has no begin(row, request) to be told it by; leave it out"
    return None


@dataclass(frozen=True)
class Refusals:
    """What one kind of step does not do: of each thing what to do instead, or None where the step does it.

    Parameters
    ----------
    step
        What to call it in a message, such as "a step graph".
    laws
        Fresh drafts that carry laws, as those of a draft model do.
    processors
        Logits processors.
    warps
        Top-k, top-p and min-p.
    logprobs
        Log-probabilities of committed tokens.
    guidance
        Guidance of a request's own.

    Examples
    --------
    >>> refusals = Refusals("a step graph", processors="use HostStep")
    >>> refusals.reason(Sampling(top_k=5))
    >>> refusals.reason(Sampling(processors=(lambda logits, tokens, positions: logits,)))
    'has logits processors, which a step graph cannot run; use HostStep'
    """

    step: str
    laws: str | None = None
    processors: str | None = None
    warps: str | None = None
    logprobs: str | None = None
    guidance: str | None = None

    @property
    def refuses_laws(self) -> str | None:
        """See `coupled_sampling.contracts.PointMassesOnly`."""
        return None if self.laws is None else f"{self.step} can only take point masses; {self.laws}"

    def takes(self, request: Request) -> str | None:
        """Why ``request`` cannot be decoded, as a sentence without its subject; None if it can."""
        if self.logprobs is not None and (request.logprobs or request.model_logprobs):
            return f"asks for log-probabilities, which {self.step} does not return; {self.logprobs}"
        if self.guidance is not None and request.guidance is not None:
            return f"has guidance of its own, which {self.step} cannot do; {self.guidance}"
        if request.condition is not None:
            return f"has a condition, which {self.step} cannot be told; leave it out"
        return self.reason(request.sampling)

    def reason(self, sampling: Sampling) -> str | None:
        """Why no sequence with ``sampling`` can be decoded, as a sentence without its subject; None if one can."""
        if self.processors is not None and sampling.processors:
            return f"has logits processors, which {self.step} cannot run; {self.processors}"
        if self.warps is not None and sampling.warps:
            return f"asks for {sampling}, but {self.step} can do neither top-k, top-p nor min-p; {self.warps}"
        return None

    def check(self, window: Window) -> None:
        """Refuse a window that asks for what the step does not do.

        Raises
        ------
        InvalidArgument
            It does; names the row, and says what to do instead.
        """
        if self.laws is not None and any(laws is not None for laws in window.fresh_laws):
            raise InvalidArgument(f"window.fresh_laws carry laws, but {self.refuses_laws}")
        for b, info in enumerate(window.rows):
            reason = None if info is None else self.reason(info.sampling)
            if reason is not None:
                raise InvalidArgument(f"row {b} {reason}")
