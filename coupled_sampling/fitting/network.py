"""The fit of a correction network: a fitted table, and a small network on top of it for what the table leaves.

A table knows that a changed neighbour moves a law by so much, wherever it happens. How much depends on the law, too, and on what
the other neighbour is: the network is told both. What it is made of is in `coupled_sampling.export.graphs.correction_network`, and
what it is held to is what the table was held to, by `coupled_sampling.fitting.low_rank`. It wants some 500 samples, and PyTorch,
which is imported when a fit begins. The network itself is an ONNX graph and needs none.

A law under the old neighbours that becomes one under the new is, read backwards, another such pair. Half of the pairs are read so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.graphs.builder import require_onnx
from coupled_sampling.export.graphs.correction_network import LEAST, NetworkWeights, network_graph
from coupled_sampling.fields import check_fields, check_is
from coupled_sampling.fitting.low_rank import (
    Divergence,
    Loss,
    check_optimiser,
    checked_pairs,
    mean_divergence,
    split,
    table_logits,
)
from coupled_sampling.fitting.pair_data import Batch, PairData
from coupled_sampling.fitting.pairs import Pairs

__all__ = ["NetworkOptimiser", "fit_network", "require_torch"]

_LOGS = 0.2
"""What logarithms are multiplied by before they are read: they are large, and Adam moves all weights by the same."""

_BACKWARDS = 0.5
"""Share of minibatches that are read backwards."""


@dataclass(frozen=True)
class NetworkOptimiser:
    """How a network is fitted.

    Parameters
    ----------
    hidden
        Width of both hidden layers.
    read, embedding, basis
        R numbers that each of the two readings of a law gives, E of a neighbour's embedding, and C columns of what is added.
    steps
        Minibatches at most.
    batch
        Pairs in each.
    rate
        The first step size of Adam (with weights that decay, arXiv 1711.05101); it falls to zero along a cosine.
    decay
        Pull of the matrices towards zero.
    seed
        Of the first values and the order of pairs.

    Raises
    ------
    InvalidArgument
        A number cannot work.

    Examples
    --------
    >>> from coupled_sampling.fitting import NetworkOptimiser
    >>> NetworkOptimiser(steps=100).hidden
    320
    """

    hidden: int = 320
    read: int = 32
    embedding: int = 32
    basis: int = 64
    steps: int = 3000
    batch: int = 512
    rate: float = 0.002
    decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_optimiser("network", self, ("hidden", "read", "embedding", "basis", "steps", "batch"))


def require_torch() -> Any:
    """The module ``torch``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            "fitting a network needs the package torch, which is not installed: pip install 'coupled-sampling[torch]'; a table is "
            "fitted without, and a network that was fitted is used without"
        ) from error
    return torch


def fit_network(
    parts: Sequence[Pairs],
    table: LowRank,
    *,
    first: int = 0,
    loss: Loss = "tv",
    temperature: float = 1.0,
    optimiser: NetworkOptimiser | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[bytes, Divergence]:
    """A network for ``parts``, as the content of an ONNX file, and how far it is off on the samples that it was not fitted to.

    Parameters
    ----------
    parts
        The pairs of each sample, at least two. An eighth of the samples, the last ones, are kept apart.
    table
        The table that was fitted to them.
    first
        The first of the M tokens that the pairs' laws are over.
    loss
        "tv" or "kl", see `coupled_sampling.fitting.fit_low_rank`.
    temperature
        Of the samples: laws are compared at it.
    optimiser
        Default `NetworkOptimiser()`.
    progress
        Called with the number of minibatches done since the last call.

    Raises
    ------
    InvalidArgument
        There are no pairs on one side, or a setting cannot work.
    MissingDependency
        ``torch`` or ``onnx`` is not installed.

    Examples
    --------
    What it needs is asked for before anything is computed:

    >>> from coupled_sampling.fitting.network import require_torch
    >>> try:
    ...     require_torch()
    ... except MissingDependency as error:
    ...     assert "coupled-sampling[torch]" in str(error)
    """
    torch, chosen = require_torch(), check_is("optimiser", optimiser or NetworkOptimiser(), NetworkOptimiser)
    require_onnx()
    check_is("table", table, LowRank)
    parts = checked_pairs(parts, table.lags, table.vocab_size, first, loss, temperature)
    data, held = (PairData(some, first, temperature) for some in split(parts))
    generator = np.random.default_rng(chosen.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        fit = _Fit(torch, table, first, data.size, chosen, loss, temperature)
        best, off = fit.weights(), fit.divergence(held)
        every = max(1, chosen.steps // 20)
        for step in range(1, chosen.steps + 1):
            index = generator.choice(len(data), min(chosen.batch, len(data)), replace=False)
            fit.step(step, data.take(index, backwards=bool(generator.random() < _BACKWARDS)))
            if step % every == 0 or step == chosen.steps:
                found = fit.divergence(held)
                if getattr(found, loss) < getattr(off, loss):
                    best, off = fit.weights(), found
                if progress is not None:
                    progress(every if step % every == 0 else step % every)
    return network_graph(table, _over_vocabulary(best, table.vocab_size, first), first).SerializeToString(), off


class _Fit:
    """A network in torch, and what moves it."""

    def __init__(
        self,
        torch: Any,
        table: LowRank,
        first: int,
        size: int,
        settings: NetworkOptimiser,
        loss: Loss,
        temperature: float,
    ) -> None:
        self._torch, self._settings, self._loss, self._temperature = torch, settings, loss, temperature
        self._base = table_logits(table, first, size)
        self._count = len(table.lags)

        def small(*shape: int, scale: float) -> Any:
            return (scale * torch.randn(*shape)).requires_grad_()

        count, read, wide, hidden = self._count, settings.read, settings.embedding, settings.hidden
        sizes = (2 * read + 1 + count * (2 * wide + 1), hidden, hidden, settings.basis)
        self._matrices = {
            "read_logs": small(size, read, scale=0.6 / size**0.5),
            "read_law": small(size, read, scale=0.6 / size**0.5),
            "new": small(count, size + 1, wide, scale=0.3),
            "old": small(count, size + 1, wide, scale=0.3),
            # The last layer begins small, so that the network begins as the table.
            **{
                f"layer{i}": small(inputs, outputs, scale=(0.02 if i == 2 else 0.6 / inputs**0.5))
                for i, (inputs, outputs) in enumerate(pairwise(sizes))
            },
            "basis": small(settings.basis, size, scale=0.05),
        }
        self._vectors = {f"bias{i}": torch.zeros(outputs, requires_grad=True) for i, outputs in enumerate(sizes[1:])}
        self._vectors["bias"] = torch.zeros(size, requires_grad=True)
        groups = [
            {"params": list(self._matrices.values()), "weight_decay": settings.decay},
            {"params": list(self._vectors.values()), "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=settings.rate)

    def step(self, count: int, batch: Batch) -> None:
        """Minibatch number ``count``, from 1 on."""
        torch, settings = self._torch, self._settings
        warming, falling = min(1.0, count / 100), 0.5 * (1 + np.cos(np.pi * count / settings.steps))
        for group in self._adam.param_groups:
            group["lr"] = settings.rate * warming * falling
        logs = torch.log_softmax(self._predicted(batch) / self._temperature, -1)
        after = torch.from_numpy(batch.after)
        apart = (logs.exp() - after).abs() if self._loss == "tv" else -after * logs
        self._adam.zero_grad()
        apart.sum(-1).mean().backward()
        self._adam.step()

    def divergence(self, data: PairData) -> Divergence:
        with self._torch.no_grad():
            return mean_divergence(lambda batch: self._predicted(batch).numpy(), data, self._temperature)

    def weights(self) -> NetworkWeights:
        """The network as it is now."""
        matrices, vectors = (
            {name: value.detach().numpy().copy() for name, value in own.items()}
            for own in (self._matrices, self._vectors)
        )
        matrices["read_logs"] *= _LOGS
        layers = [(matrices[f"layer{i}"], vectors[f"bias{i}"]) for i in range(3)]
        names = ("read_logs", "read_law", "new", "old", "basis")
        return NetworkWeights(**{name: matrices[name] for name in names}, layers=layers, bias=vectors["bias"])

    def _predicted(self, batch: Batch) -> Any:
        """Logits (n, M)."""
        torch, own = self._torch, self._matrices
        base = torch.from_numpy(self._base(batch))
        whole = torch.log_softmax(base, -1)
        law, logs = whole.exp(), whole.clamp(min=LEAST)
        read = [_LOGS * logs @ own["read_logs"], law @ own["read_law"], -(law * logs).sum(-1, keepdim=True)]
        old, new = torch.from_numpy(batch.old), torch.from_numpy(batch.new)
        changed = (old != new).float()
        for k in range(self._count):
            flag = changed[:, k : k + 1]
            read += [own["new"][k, new[:, k]], own["old"][k, old[:, k]] * flag, flag]
        x = torch.cat(read, -1)
        for i in range(3):
            x = x @ own[f"layer{i}"] + self._vectors[f"bias{i}"]
            x = x.relu() if i < 2 else x
        return base + x @ own["basis"] + self._vectors["bias"]


def _over_vocabulary(weights: NetworkWeights, vocab_size: int, first: int) -> NetworkWeights:
    """The same with embeddings for all tokens: those that cannot be generated have that of no neighbour."""

    def wide(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
        rows = embeddings.shape[1]
        made = np.repeat(embeddings[:, -1:], vocab_size + 1, axis=1)
        made[:, first : first + rows - 1] = embeddings[:, :-1]
        return made

    return weights._replace(new=wide(weights.new), old=wide(weights.old))
