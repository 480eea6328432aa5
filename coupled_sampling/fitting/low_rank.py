"""The fit of a `coupled_sampling.corrections.LowRank` table to pairs of laws: Adam on minibatches, in numpy.

Of each pair the table is given the first law and both sets of neighbours, and is held to the second law:

- ``kl``, the Kullback-Leibler divergence of the predicted law from the one that came: for acceptance by match;
- ``tv``, their total variation distance: the maximal coupling keeps a draft with probability 1 - TV, so that is what counts there.

Samples are few and numbers many, so that what holds for the pairs it saw is not what holds for others. A last part of the samples
is kept apart; the table that did best on those is taken (Prechelt 1998, "Early stopping - but when?").

Adam: Kingma and Ba, arXiv 1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, check_number
from coupled_sampling.corrections import LowRank, check_lags
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields, check_is
from coupled_sampling.fitting.pair_data import Batch, PairData
from coupled_sampling.fitting.pairs import Pairs, log_laws

__all__ = [
    "Divergence",
    "Loss",
    "Optimiser",
    "checked_pairs",
    "divergence",
    "fit_low_rank",
    "mean_divergence",
    "split",
    "table_logits",
]

Loss = Literal["kl", "tv"]

_LEAST_SCALE = 1e-2
"""A, by which stale logits are multiplied, stays positive."""


@dataclass(frozen=True)
class Optimiser:
    """How a table is fitted.

    Parameters
    ----------
    rank
        R, the sources of change that it tells apart.
    steps
        Minibatches at most.
    batch
        Pairs in each.
    rate
        Adam's first step size; it falls to zero along a cosine.
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
    >>> from coupled_sampling.fitting import Optimiser
    >>> Optimiser(rank=16).steps
    1500
    """

    rank: int = 32
    steps: int = 1500
    batch: int = 512
    rate: float = 0.01
    decay: float = 2e-5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_optimiser("optimiser", self, ("rank", "steps", "batch"))


def check_optimiser(called: str, settings: Any, counts: Sequence[str]) -> None:
    """Refuse ``settings`` with a seed, a rate and a decay, of which ``counts`` are counts, if a number cannot work."""
    for name in counts:
        check_count(f"{called}: {name}", getattr(settings, name))
    check_count(f"{called}: seed", settings.seed, 0)
    if not (0 < settings.rate < 1 and 0 <= settings.decay < 1):
        raise InvalidArgument(
            f"rate is {settings.rate} and decay {settings.decay}, expected numbers below 1, rate above 0"
        )


class Divergence(NamedTuple):
    """How far predicted laws are from those that came, on average."""

    kl: float
    """Kullback-Leibler divergence in nats."""
    tv: float
    """Total variation distance."""


class _Parameters(NamedTuple):
    basis: NDArray[np.float32]
    neighbours: NDArray[np.float32]
    stale_scale: NDArray[np.float32]
    unigram_scale: NDArray[np.float32]


def fit_low_rank(
    parts: Sequence[Pairs],
    lags: Sequence[int],
    *,
    vocab_size: int,
    first: int = 0,
    loss: Loss = "tv",
    temperature: float = 1.0,
    optimiser: Optimiser | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[LowRank, Divergence]:
    """A table for ``parts``, and how far it is off on the samples that it was not fitted to.

    Parameters
    ----------
    parts
        The pairs of each sample, at least two. An eighth of the samples, the last ones, are kept apart.
    lags
        Where the neighbours of the pairs stand.
    vocab_size
        V of the model.
    first
        The first of the M tokens that the pairs' laws are over.
    loss
        "tv" or "kl", see above.
    temperature
        Of the samples: laws are compared at it.
    optimiser
        Default `Optimiser()`.
    progress
        Called with the number of minibatches done since the last call.

    Raises
    ------
    InvalidArgument
        There are no pairs on one side, or a setting cannot work.

    Examples
    --------
    A model of which only the left neighbour matters, so that a table can know all:

    >>> import numpy as np
    >>> from coupled_sampling.fitting import Optimiser, Pairs, fit_low_rank
    >>> table = np.log(np.random.default_rng(0).dirichlet(np.ones(4), size=4)).astype(np.float32)
    >>> old, new = np.divmod(np.arange(16), 4)
    >>> pairs = Pairs(old[:, None], new[:, None], table[old], table[new], np.full(16, 5))
    >>> fitted, off = fit_low_rank([pairs, pairs], (1,), vocab_size=4, loss="kl", optimiser=Optimiser(rank=4, steps=300, decay=0.0))
    >>> off.kl < 0.01
    True
    """
    chosen = check_is("optimiser", optimiser or Optimiser(), Optimiser)
    lags = check_lags(lags)
    parts = checked_pairs(parts, lags, check_count("vocab_size", vocab_size), first, loss, temperature)
    data, held = (PairData(some, first, temperature) for some in split(parts))
    fit = _Fit(data, chosen, loss, temperature, len(lags))
    best, off = fit.parameters, fit.divergence(fit.parameters, held)
    every = max(1, chosen.steps // 30)
    for step in range(1, chosen.steps + 1):
        fit.step(step)
        if step % every == 0 or step == chosen.steps:
            found = fit.divergence(fit.parameters, held)
            if getattr(found, loss) < getattr(off, loss):
                best, off = fit.parameters, found
            if progress is not None:
                progress(every if step % every == 0 else step % every)
    return _table(best, fit.unigram, tuple(lags), vocab_size, first), off


def checked_pairs(
    parts: Sequence[Pairs], lags: Sequence[int], vocab_size: int, first: int, loss: str, temperature: float
) -> tuple[Pairs, ...]:
    """The samples' pairs, of which some lie on either side of `split`.

    Raises
    ------
    InvalidArgument
        Something does not fit together.
    """
    if loss not in ("kl", "tv"):
        raise InvalidArgument(f"loss is {loss!r}, expected 'kl' or 'tv'")
    if check_number("temperature", temperature, "a finite number > 0") <= 0:
        raise InvalidArgument(f"temperature is {temperature}, expected a finite number > 0")
    checked: tuple[Pairs, ...] = check_is("parts", parts, tuple[Pairs, ...])
    count = len(lags)
    for i, part in enumerate(checked):
        shapes = [np.shape(values) for values in part]
        rows, size = shapes[2] if len(shapes[2]) == 2 else (-1, 0)
        expected = [(rows, count)] * 2 + [(rows, size)] * 2 + [(rows,)]
        if shapes != expected or check_count("first", first, 0) + size > vocab_size:
            raise InvalidArgument(
                f"parts[{i}] has shapes {shapes}, expected neighbours (n, {count}), laws (n, M) with M <= {vocab_size - first} and "
                "positions (n,)"
            )
    if not all(any(len(part.before) for part in side) for side in split(checked)):
        raise InvalidArgument(
            f"parts are {len(checked)} samples, without pairs of changed neighbours on one side; decode more samples, or longer "
            "ones"
        )
    return checked


def split(parts: Sequence[Pairs]) -> tuple[Sequence[Pairs], Sequence[Pairs]]:
    """The samples to fit to, and those kept apart: an eighth, the last ones."""
    apart = max(1, len(parts) // 8)
    return parts[:-apart], parts[-apart:]


def divergence(table: LowRank | None, parts: Sequence[Pairs], first: int, temperature: float = 1.0) -> Divergence:
    """How far ``table`` is off on the pairs of samples; without a table, how far the old laws are."""
    data = PairData(parts, first, temperature)
    if table is None:
        return mean_divergence(lambda batch: batch.before, data, temperature)
    predict = table_logits(table, first, data.size)
    return mean_divergence(predict, data, temperature)


def table_logits(table: LowRank, first: int, size: int) -> Callable[[Batch], NDArray[np.float32]]:
    """What ``table`` predicts of the ``size`` tokens from ``first`` on: logits (n, M) of a batch."""
    inside = slice(first, first + size)
    neighbours = np.concatenate([table.neighbours[:, inside], table.neighbours[:, -1:]], axis=1)
    kept = _Parameters(table.basis[inside], neighbours, table.stale_scale, table.unigram_scale)
    return lambda batch: _predicted(kept, table.unigram[inside], batch)[1]


class _Fit:
    """Parameters, and Adam's memory of their gradients."""

    def __init__(self, data: PairData, optimiser: Optimiser, loss: Loss, temperature: float, neighbours: int) -> None:
        self._data, self._optimiser, self._loss, self._temperature = data, optimiser, loss, temperature
        self._generator = np.random.default_rng(optimiser.seed)
        total = sum(batch.after.sum(axis=0, dtype=np.float64) for batch in data.blocks())
        self.unigram = np.log(total / len(data) + 1e-6).astype(np.float32)

        def small(*shape: int) -> NDArray[np.float32]:
            return (0.1 * self._generator.standard_normal(shape)).astype(np.float32)

        rank, kinds, size = optimiser.rank, 2**neighbours, data.size
        self.parameters = _Parameters(
            small(size, rank),
            small(neighbours, size + 1, rank),
            np.ones(kinds, np.float32),
            np.zeros(kinds, np.float32),
        )
        self._mean, self._square = (_Parameters(*map(np.zeros_like, self.parameters)) for _ in range(2))

    def divergence(self, parameters: _Parameters, data: PairData) -> Divergence:
        return mean_divergence(lambda batch: _predicted(parameters, self.unigram, batch)[1], data, self._temperature)

    def step(self, count: int) -> None:
        """Minibatch number ``count``, from 1 on."""
        settings = self._optimiser
        size = min(settings.batch, len(self._data))
        gradient = self._gradient(self._generator.choice(len(self._data), size, replace=False))
        warming, falling = min(1.0, count / 20), 0.5 * (1 + np.cos(np.pi * count / settings.steps))
        rate = np.float32(settings.rate * warming * falling)
        updated = []
        for name, value, slope in zip(_Parameters._fields, self.parameters, gradient, strict=True):
            if name in ("basis", "neighbours"):
                slope += settings.decay * value
            mean, square = getattr(self._mean, name), getattr(self._square, name)
            mean += 0.1 * (slope - mean)
            square += 0.01 * (slope * slope - square)
            moved = value - rate * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.99**count)) + 1e-8)
            updated.append(np.maximum(moved, _LEAST_SCALE) if name == "stale_scale" else moved)
        self.parameters = _Parameters(*(value.astype(np.float32) for value in updated))

    def _gradient(self, index: NDArray[np.int64]) -> _Parameters:
        """Of the mean loss over the pairs of ``index``."""
        parts = (
            _gradient(self.parameters, self.unigram, batch, self._loss, self._temperature, len(index))
            for batch in self._data.blocks(index)
        )
        whole = next(parts)
        for part in parts:
            for value, more in zip(whole, part, strict=True):
                value += more
        return whole


def _predicted(
    parameters: _Parameters, unigram: NDArray[np.float32], batch: Batch
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The sum of neighbours' moves (n, R), and the predicted logits (n, M)."""
    neighbours = range(batch.old.shape[1])
    sources = parameters.neighbours
    moved = sum(sources[k, batch.new[:, k]] - sources[k, batch.old[:, k]] for k in neighbours)
    stale, own = parameters.stale_scale[batch.which], parameters.unigram_scale[batch.which]
    moved = np.asarray(moved, np.float32)
    return moved, stale[:, None] * batch.before + own[:, None] * unigram + moved @ parameters.basis.T


def _gradient(
    parameters: _Parameters, unigram: NDArray[np.float32], batch: Batch, loss: Loss, temperature: float, count: int
) -> _Parameters:
    """What ``batch`` adds to the gradient of the mean over ``count`` pairs."""
    moved, logits = _predicted(parameters, unigram, batch)
    law = np.exp(log_laws(logits / temperature))
    if loss == "kl":
        slope = law - batch.after
    else:
        sign = 0.5 * np.sign(law - batch.after)
        slope = law * (sign - (law * sign).sum(axis=1, keepdims=True))
    slope /= count * temperature
    at_sources = slope @ parameters.basis
    kinds = len(parameters.stale_scale)
    sources = np.zeros_like(parameters.neighbours)
    for k in range(batch.old.shape[1]):
        np.add.at(sources[k], batch.new[:, k], at_sources)
        np.subtract.at(sources[k], batch.old[:, k], at_sources)
    scales = (np.bincount(batch.which, (slope * values).sum(axis=1), kinds) for values in (batch.before, unigram))
    stale, own = (scale.astype(np.float32) for scale in scales)
    return _Parameters(slope.T @ moved, sources, stale, own)


def mean_divergence(predict: Callable[[Batch], NDArray[np.float32]], data: PairData, temperature: float) -> Divergence:
    """How far predicted logits (n, M) are off."""
    kl = tv = 0.0
    count = 0
    for batch in data.blocks():
        logs = log_laws(predict(batch) / temperature)
        truth = np.log(np.maximum(batch.after, 1e-26))
        kl += float((batch.after * (truth - logs)).sum())
        tv += 0.5 * float(np.abs(np.exp(logs) - batch.after).sum())
        count += len(logs)
    return Divergence(kl / count, tv / count)


def _table(
    parameters: _Parameters, unigram: NDArray[np.float32], lags: tuple[int, ...], vocab_size: int, first: int
) -> LowRank:
    """The table over the whole vocabulary: tokens that cannot be generated move nothing."""
    size, rank = parameters.basis.shape
    inside = slice(first, first + size)
    basis, log_unigram = np.zeros((vocab_size, rank), np.float32), np.zeros(vocab_size, np.float32)
    neighbours = np.zeros((len(lags), vocab_size + 1, rank), np.float32)
    neighbours[:] = parameters.neighbours[:, -1:]
    basis[inside], log_unigram[inside] = parameters.basis, unigram
    neighbours[:, inside] = parameters.neighbours[:, :-1]
    stale, own = parameters.stale_scale.copy(), parameters.unigram_scale.copy()
    stale[0], own[0] = 1, 0
    return LowRank(lags, log_unigram, basis, neighbours, stale, own)
