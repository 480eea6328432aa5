"""What runs a model, and how it is given back: for people to read, and for ``with``.

Neither is part of what a decoder needs. A provider of one method has none of it, and then its class's name says what runs it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from coupled_sampling.errors import ProviderError

__all__ = ["Closeable", "Closing", "Runs", "SaysWhatRuns", "what_runs"]


@dataclass(frozen=True)
class Runs:
    """What a model really runs on, for people to read.

    Parameters
    ----------
    execution_provider
        ONNX Runtime's execution provider, TensorRT's or OpenVINO's name and version, or the class of a provider that does not say.
    device
        Number of the GPU; None is the CPU.
    cuda_graphs
        Whether calls of a shape seen before are launched as CUDA graphs.
    step
        Where steps are decided: "host" (`coupled_sampling.host_step.HostStep`), "graph" (in the model's own graph) or
        "kernels" (by CUDA kernels, where the logits lie).
    changes
        What was done to the model's graph in memory before it ran; empty if nothing was.
    corrections
        Class of what predicts laws under changed neighbours (`coupled_sampling.corrections`); empty if nothing does.
    window_graph
        Which writing of the bundle's window graph runs where a back end chose between them, "causal" or "masked", and why; empty if
        there was nothing to choose.

    Examples
    --------
    >>> from coupled_sampling.contracts import Runs
    >>> print(Runs("CUDAExecutionProvider", device=0))
    on CUDAExecutionProvider (GPU 0), step: host
    """

    execution_provider: str
    device: int | None = None
    cuda_graphs: bool = False
    step: str = "host"
    changes: str = ""
    corrections: str = ""
    window_graph: str = ""

    def corrected_by(self, corrector: object | None) -> Self:
        """The same with ``corrector``."""
        return replace(self, corrections="" if corrector is None else type(corrector).__name__)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        gpu = "" if self.device is None else f" (GPU {self.device}{', CUDA graphs' * self.cuda_graphs})"
        corrections = f", corrections: {self.corrections}" if self.corrections else ""
        graph = f", window graph: {self.window_graph}" if self.window_graph else ""
        changes = f", {self.changes}" if self.changes else ""
        return f"on {self.execution_provider}{gpu}, step: {self.step}{corrections}{graph}{changes}"


@runtime_checkable
class SaysWhatRuns(Protocol):
    """What a provider or step offers that knows what runs it.

    Examples
    --------
    >>> from coupled_sampling.contracts import Runs, SaysWhatRuns
    >>> class Abacus:
    ...     runs = Runs("an abacus")
    >>> isinstance(Abacus(), SaysWhatRuns)
    True
    """

    @property
    def runs(self) -> Runs: ...


@runtime_checkable
class Closeable(Protocol):
    """What a provider or step offers that holds memory which can be given back.

    Examples
    --------
    >>> from coupled_sampling.contracts import Closeable
    >>> class Model:
    ...     def close(self):
    ...         print("given back")
    >>> model = Model()
    >>> if isinstance(model, Closeable):
    ...     model.close()
    given back
    """

    def close(self) -> None:
        """Give it back; what was closed cannot run any more. Closing twice does no harm."""
        ...


class Closing:
    """Makes a context manager of what can be closed: the end of the ``with`` block closes it.

    Who holds something itself says in ``close`` that it `_is_closed`, and asks `_refuse_if_closed` before it runs.
    """

    _is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """See `Closeable.close`."""

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ProviderError(f"{type(self).__name__} was closed and cannot run any more; open the model again")


def what_runs(model: object) -> Runs:
    """What runs a provider or a step; its class's name where it does not say.

    Examples
    --------
    >>> from coupled_sampling.contracts import what_runs
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> what_runs(TableProvider(random_table(0, 5), 5)).execution_provider
    'TableProvider'
    """
    return model.runs if isinstance(model, SaysWhatRuns) else Runs(type(model).__name__)
