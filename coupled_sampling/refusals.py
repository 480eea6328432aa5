"""What a step does not do, and what to do instead.

A step that decides where the logits are (a graph, CUDA kernels, an engine) does less than
`coupled_sampling.host_step.HostStep`, which does everything. Each says once what it leaves out, as a `Refusals`: requests
can then be asked before they are taken, and windows before anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from coupled_sampling.contracts import Sampling, Window
from coupled_sampling.errors import InvalidArgument

__all__ = ["Refusals"]


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
            raise InvalidArgument(
                f"window.fresh_laws carry laws, but {self.step} can only take point masses; {self.laws}"
            )
        for b, info in enumerate(window.rows):
            reason = None if info is None else self.reason(info.sampling)
            if reason is not None:
                raise InvalidArgument(f"row {b} {reason}")
