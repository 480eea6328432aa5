"""Corrected laws: what the law of a position becomes when a neighbour to its left changes.

Most passes end because a redrafted token was drawn from a law that was computed with another *neighbour* than the one that now
stands there. The model cannot be asked again before the next pass. But in a picture most of what a changed token does to a law is
the same wherever it happens, so that it can be predicted: a `Corrector` is asked for a law, given the old law, the neighbours it
was computed with and the neighbours of now.

No output law depends on a corrector. A redraft is drawn from the corrected law by the same coupling as always, and *that law* is
recorded for the draft and used when it is tested. All that it looks at lies to the left of the position. With ``scd-match`` not
even a token depends on it.

It corrects raw logits: after guidance, before temperature and whatever else warps a law. Corrected the other way round, laws are
ruined at temperature 2.

A corrector of your own is an object with ``lags`` and ``correct``; see `Corrector`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.arrays import (
    array_device,
    as_like,
    from_host,
    integers,
    is_concrete,
    is_real,
    namespace,
    read_only,
)
from coupled_sampling.errors import CorrectorError, InvalidArgument
from coupled_sampling.fields import check_is
from coupled_sampling.sampling import Array, Integers

__all__ = ["Changes", "Corrector", "Learns", "LowRank", "Shifts"]

MOST_LAGS = 8
"""Neighbours of a position that a corrector may look at: there is a pair of scales for each way in which they can change."""


class Changes(NamedTuple):
    """What happened to the neighbours of n positions: neighbour k of a position is the token ``lags[k]`` before it.

    Examples
    --------
    The left neighbour of position 30 was token 4 and is now 7; the one above it is still 2:

    >>> import numpy as np
    >>> from coupled_sampling.corrections import Changes
    >>> changes = Changes(old=np.array([[4, 2]]), new=np.array([[7, 2]]), position=np.array([30]))
    >>> (changes.old != changes.new).tolist()
    [[True, False]]
    """

    old: Array
    """int64 (n, K) the neighbours that the law was computed with; the vocabulary's size where there is none."""
    new: Array
    """int64 (n, K) the neighbours of now; at least one of a position's differs."""
    position: Array
    """int64 (n,) the positions whose laws are wanted, the prompt counted."""


@runtime_checkable
class Corrector(Protocol):
    """Predicts laws under changed neighbours.

    It must be a function of what it is given and of nothing to the right of the position; it may be any function of that. Nor may
    it know the sequence's noise, as a table would that was made of the same sequence before.

    Examples
    --------
    One of your own. It moves half of the way to the law that any token would have after the new neighbour, as counted beforehand:

    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider
    >>> after = np.random.default_rng(0).dirichlet(np.ones(6), size=6)  # a law for each last token
    >>> model = TableProvider(lambda context: after[context[-1]], 6)
    >>> class Halfway:
    ...     lags = (1,)
    ...     def correct(self, logits, changes):
    ...         return 0.5 * logits + 0.5 * np.log(after)[changes.new[:, 0]]
    >>> plain, corrected = (
    ...     generate(model, [[0]], length=60, method="scd-match", window=8, corrections=corrections)
    ...     for corrections in (None, Halfway())
    ... )
    >>> bool((plain.tokens[0] == corrected.tokens[0]).all()), plain.traces[0].nfe > corrected.traces[0].nfe
    (True, True)
    """

    @property
    def lags(self) -> Sequence[int]:
        """How far before a position its neighbours stand, each at least 1: (1, 14) are left and above in rows of 14."""
        ...

    def correct(self, logits: Array, changes: Changes) -> Array:
        """Logits (n, V) of the n positions under their new neighbours, up to a number added to all of a row.

        Parameters
        ----------
        logits
            (n, V), float32 or float64, of any array library: the model's own, computed with the old neighbours. -inf forbids a
            token and must stay.
        changes
            What changed, in arrays of the same library.
        """
        ...


@runtime_checkable
class Learns(Corrector, Protocol):
    """A corrector that learns while it is used, of what was committed and of nothing else.

    Where drafts are accepted by "match", no token depends on a corrector, and one object learns of all sequences. Where they are
    accepted by "rejection", each sequence has one of its own, so that its tokens depend neither on the batch nor on earlier ones.
    Their law is the model's own as long as all that was learned lies to the left of what is corrected, and committed positions do.

    Examples
    --------
    One that only counts what it is told:

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.corrections import Learns
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class Counts:
    ...     lags, positions = (1,), 0
    ...     def correct(self, logits, changes):
    ...         return logits
    ...     def begun(self):
    ...         return Counts()
    ...     def learn(self, logits, neighbours):
    ...         self.positions += len(logits)
    >>> counts = Counts()
    >>> isinstance(counts, Learns)
    True
    >>> model = TableProvider(random_table(0, 6), 6)
    >>> trace = generate(model, [[0]], length=50, method="scd-match", window=8, corrections=counts).traces[0]
    >>> counts.positions == 50 - trace.committed_per_step[-1]  # the last step's are told when the row begins anew
    True
    """

    def begun(self) -> Corrector:
        """A corrector for one sequence that has learned nothing yet; it may be one that never will."""
        ...

    def learn(self, logits: NDArray[np.floating], neighbours: NDArray[np.int64]) -> None:
        """Learn of n positions that were committed. Each is told once; if this raises, it is told again.

        Parameters
        ----------
        logits
            (n, V) numpy, float32 or float64: the model's own, as for `Corrector.correct`, and under the committed context.
        neighbours
            (n, K) numpy: the tokens ``lags`` before each position, the vocabulary's size where there is none.
        """
        ...


@runtime_checkable
class Shifts(Corrector, Protocol):
    """A corrector that can say what a single changed neighbour adds to single tokens: what branches are chosen by.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.corrections import LowRank, Shifts
    >>> neighbours = np.array([[[0.0], [2.0], [0.0]]])
    >>> table = LowRank((1,), np.zeros(2), np.array([[0.0], [1.0]]), neighbours, np.array([1.0, 0.5]), np.array([0.0, 0.5]))
    >>> isinstance(table, Shifts)
    True
    >>> table.shifts(0, old=np.array([0]), new=np.array([[0, 1]]), tokens=np.array([[1, 0]])).tolist()
    [[[0.0, 0.0], [2.0, 0.0]]]
    """

    def shifts(self, lag: int, old: Integers, new: Integers, tokens: Integers) -> NDArray[np.floating]:
        """What n positions' logits of M ``tokens`` change by where neighbour ``lag`` (an index into ``lags``) is another one.

        Parameters
        ----------
        lag
            Which neighbour.
        old
            int64 (n,) the neighbours that the logits were computed with.
        new
            int64 (n, L) what might stand there.
        tokens
            int64 (n, M).

        Returns
        -------
        NDArray
            (n, L, M), up to a number added to all M; 0 where ``new`` is ``old``.
        """
        ...


def check_corrector(corrector: Corrector, vocab_size: int | None = None) -> None:
    """Refuse what is no corrector, or one that says that it is for another vocabulary than the model's ``vocab_size``."""
    if isinstance(corrector, type) or not isinstance(corrector, Corrector):
        raise InvalidArgument(
            f"corrections is {corrector!r}, expected an object with lags and correct(logits, changes), such as a LowRank"
        )
    check_lags(corrector.lags)
    own = getattr(corrector, "vocab_size", vocab_size)
    if vocab_size is not None and own != vocab_size:
        raise InvalidArgument(
            f"corrections is for {own} tokens, expected {vocab_size}, the model's; use one that was fitted to it"
        )


def check_lags(lags: Sequence[int]) -> tuple[int, ...]:
    """``lags`` as a tuple; refused if they are no distances, or twice the same."""
    if not isinstance(lags, Iterable) or isinstance(lags, str):
        raise InvalidArgument(
            f"lags is {shown(lags)}, expected 1 to {MOST_LAGS} different integers >= 1, such as (1, 14) for left and above"
        )
    lags = tuple(lags)
    usable = [isinstance(lag, int | np.integer) and not isinstance(lag, bool) and lag >= 1 for lag in lags]
    if not 1 <= len(lags) <= MOST_LAGS or not all(usable) or len(set(lags)) != len(lags):
        raise InvalidArgument(
            f"lags is {shown(lags)}, expected 1 to {MOST_LAGS} different integers >= 1, such as (1, 14) for left and above"
        )
    return tuple(int(lag) for lag in lags)


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """The fitted correction: l' = A l + B u + U (sum over changed neighbours k of w_k[new] - w_k[old]).

    l are the stale logits and u the log unigram law; A and B depend on which neighbours changed.

    Parameters
    ----------
    lags
        K distances of the neighbours.
    unigram
        (V,) u, finite.
    basis
        (V, R) U.
    neighbours
        (K, V + 1, R) w; the last row of each is for no neighbour.
    stale_scale, unigram_scale
        (2**K,) A > 0 and B. Entry s is for the neighbours k whose bit 2**k is set in s; entry 0 is not used.

    Raises
    ------
    InvalidArgument
        Shapes do not fit together, a number is not finite, or a scale A is not positive.

    Examples
    --------
    A neighbour that changes from token 0 to token 1 makes token 1 likelier:

    >>> import numpy as np
    >>> from coupled_sampling.corrections import Changes, LowRank
    >>> neighbours = np.array([[[0.0], [2.0], [0.0]]])
    >>> table = LowRank((1,), np.zeros(2), np.array([[0.0], [1.0]]), neighbours, np.array([1.0, 0.5]), np.array([0.0, 0.5]))
    >>> table.correct(np.array([[0.0, -1.0]]), Changes(np.array([[0]]), np.array([[1]]), np.array([5]))).tolist()
    [[0.0, 1.5]]
    """

    lags: tuple[int, ...]
    unigram: NDArray[np.floating]
    basis: NDArray[np.floating]
    neighbours: NDArray[np.floating]
    stale_scale: NDArray[np.floating]
    unigram_scale: NDArray[np.floating]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lags", check_lags(self.lags))
        count = len(self.lags)
        for name in ("unigram", "basis", "neighbours", "stale_scale", "unigram_scale"):
            check_is(f"{name} of a correction", getattr(self, name), np.ndarray)
        if self.basis.ndim != 2:
            raise InvalidArgument(f"basis of a correction has the shape {self.basis.shape}, expected (V, R)")
        vocab_size, rank = self.basis.shape
        expected = {
            "unigram": (vocab_size,),
            "basis": (vocab_size, rank),
            "neighbours": (count, vocab_size + 1, rank),
            "stale_scale": (2**count,),
            "unigram_scale": (2**count,),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape or not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
                raise InvalidArgument(
                    f"{name} of a correction is {values.dtype} {values.shape}, expected finite floating numbers of shape {shape}"
                )
        if not (self.stale_scale[1:] > 0).all():
            raise InvalidArgument(f"stale_scale is {self.stale_scale}, expected positive numbers: -inf must stay -inf")

    def __repr__(self) -> str:
        return f"LowRank(lags={self.lags}, vocab_size={self.vocab_size}, rank={self.basis.shape[1]})"

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.basis.shape[0])

    def correct(self, logits: Array, changes: Changes) -> Array:
        """See `Corrector.correct`."""
        xp, count = namespace(logits), len(self.lags)
        scales, unigram, basis, neighbours, begins, bits, nothing = self._beside(logits)
        # All neighbours of all positions are looked up at once: rows of one table, in which each lag's begin at a place of its own.
        new, old = (
            xp.take(neighbours, xp.reshape(tokens + begins, (-1,)), axis=0) for tokens in (changes.new, changes.old)
        )
        moved = xp.sum(xp.reshape(new - old, (-1, count, new.shape[-1])), axis=1)
        which = xp.sum(xp.where(changes.new != changes.old, bits, nothing), axis=-1)
        scale = xp.take(scales, which, axis=0)
        return scale[:, :1] * logits + scale[:, 1:] * unigram + xp.matmul(moved, basis)

    def shifts(self, lag: int, old: Integers, new: Integers, tokens: Integers) -> NDArray[np.floating]:
        """See `Shifts.shifts`. The scales, which hardly tell candidates apart, are left out."""
        own = self.neighbours[lag]
        moved = own[new] - own[old][:, None, :]
        added: NDArray[np.floating] = np.matmul(moved, self.basis[tokens].transpose(0, 2, 1))
        return added

    def _beside(self, logits: Array) -> tuple[Array, ...]:
        """The tables in the library and type of ``logits``, as they are needed; made once for each."""
        kind = namespace(logits), logits.dtype, array_device(logits)
        tables: dict[tuple[Any, ...], tuple[Array, ...]] = self.__dict__.setdefault("_tables", {})
        found = tables.get(kind)
        if found is None:
            rows, lags = self.vocab_size + 1, np.arange(len(self.lags))
            floating = (
                np.stack([self.stale_scale, self.unigram_scale], axis=-1),
                self.unigram,
                np.ascontiguousarray(self.basis.T),
                self.neighbours.reshape(rows * len(lags), -1),
            )
            whole = (from_host(each, logits, integers(logits)) for each in (rows * lags, 2**lags, 0 * lags))
            found = (*(as_like(each, logits) for each in floating), *whole)
            if is_concrete(logits):  # what is made while a library traces is a part of that trace
                tables[kind] = found
        return found


def learn(corrector: Learns, logits: NDArray[np.floating], neighbours: NDArray[np.int64]) -> None:
    """Tell ``corrector`` of committed positions, see `Learns.learn`.

    Raises
    ------
    CorrectorError
        It raised: strangers write correctors.
    """
    try:
        corrector.learn(logits, neighbours)
    except Exception as error:
        raise CorrectorError(
            f"corrections {corrector!r} raised {type(error).__name__} while it learned: {error}; nothing was decided in this step. "
            "Mend the corrector, or decode without: no output law depends on it"
        ) from error


def correct(corrector: Corrector, logits: Array, changes: Changes) -> Array:
    """What ``corrector`` makes of ``logits`` (n, V).

    Raises
    ------
    CorrectorError
        It raised, or returned something else than (n, V) real numbers: strangers write correctors.
    """
    try:
        corrected = corrector.correct(read_only(logits), changes)
    except Exception as error:
        raise CorrectorError(
            f"corrections {corrector!r} raised {type(error).__name__}: {error}; nothing was decided in this step. Mend the "
            "corrector, or decode without: no output law depends on it"
        ) from error
    shape = getattr(corrected, "shape", None)
    if shape is None or tuple(shape) != tuple(logits.shape) or not is_real(corrected):
        raise CorrectorError(
            f"corrections {corrector!r} returned {type(corrected).__name__} of shape {shape}, expected real numbers of shape "
            f"{tuple(logits.shape)}: (positions, vocabulary), as it was given; nothing was decided in this step"
        )
    with np.errstate(over="ignore"):  # what is too small for a narrower type is -inf in it, which is as good
        return as_like(from_host(corrected, logits), logits)
