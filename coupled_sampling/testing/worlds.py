"""Small models whose every law is known: for proofs and tests of decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bounds import check_rows, check_tree_window, check_window
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import check_callable, check_count, check_law, check_number, check_seed
from coupled_sampling.trees import Tree

__all__ = ["TableProvider", "random_table"]

_MOST_HELD = 2**27
_MOST_TOKENS = 2**24


class TableProvider:
    """A `coupled_sampling.LogitsProvider` from a function of the whole context.

    It keeps state as a real model does: the tokens it was shown, by position, the last write winning. So a decoder
    that rolls back wrongly gets wrong laws from it.

    Parameters
    ----------
    next_law
        Law float64 (V,) of the next token given all tokens before it; zeros allowed. All zeros, or NaN, say that nothing can
        follow: for tests of what a decoder makes of a dead end.
    vocab_size, batch_size, max_length
        As in the contract.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import TableProvider
    >>> model = TableProvider(lambda context: np.array([0.25, 0.75]), vocab_size=2)
    >>> np.exp(model.forward(np.array([[0, 1, 1]]), np.array([0]))).shape
    (1, 3, 2)
    >>> model.calls
    1
    """

    def __init__(
        self,
        next_law: Callable[[tuple[int, ...]], NDArray[np.float64]],
        vocab_size: int,
        batch_size: int = 1,
        max_length: int = 64,
    ) -> None:
        check_callable("next_law", next_law, 1)
        self.next_law = next_law
        self.vocab_size = check_count("vocab_size", vocab_size)
        self.batch_size = check_count("batch_size", batch_size)
        self.max_length = check_count("max_length", max_length)
        if self.batch_size * self.max_length > _MOST_HELD:
            raise InvalidArgument(
                f"batch_size {batch_size} and max_length {max_length} are {self.batch_size * self.max_length} positions, expected "
                f"at most {_MOST_HELD}: these models are for small worlds"
            )
        self.calls = 0
        self._held = np.full((self.batch_size, self.max_length), -1, np.int64)

    def forward(self, tokens: Integers, start: Integers) -> NDArray[np.float64]:
        """Log-laws float64 (B, W, V).

        Raises
        ------
        InvalidArgument
            The window leaves the rows, or ``next_law`` gives no law.
        """
        return self._log_laws(tokens.shape, self.write(tokens, start))

    def _log_laws(
        self, shape: tuple[int, ...], contexts: Mapping[tuple[int, int], tuple[int, ...]]
    ) -> NDArray[np.float64]:
        laws = np.empty((*shape, self.vocab_size))
        for where, context in contexts.items():
            law = self.next_law(context)
            laws[where] = (
                law if _is_dead(law, self.vocab_size) else check_law(f"next_law({context})", law, self.vocab_size)
            )
        with np.errstate(divide="ignore"):
            return np.log(laws)

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`: no limit, since nothing is held for what stands beside a path."""
        return 1 << 62

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> NDArray[np.float64]:
        """See `coupled_sampling.contracts.Trees.forward_tree`. What is held beyond the leading slots is lost."""
        contexts = self.write_tree(tokens, start, parents, rows)
        return self._log_laws(tokens.shape, contexts)

    @property
    def forks(self) -> bool:
        """See `coupled_sampling.contracts.Forks`."""
        return True

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `coupled_sampling.contracts.Forks.fork`."""
        for target in targets:
            self._held[target, :length] = self._held[source, :length]

    def write(self, tokens: Integers, start: Integers) -> dict[tuple[int, int], tuple[int, ...]]:
        """Take a window in; returns what each (row, slot) of it now has before it and in it."""
        check_window(self, tokens, start)
        rows, width = tokens.shape
        self.calls += 1
        contexts = {}
        for b in range(rows):
            first = int(start[b])
            self._held[b, first : first + width] = tokens[b]
            for j in range(width):
                contexts[b, j] = tuple(self._held[b, : first + j + 1].tolist())
        return contexts

    def write_tree(
        self, tokens: Integers, start: Integers, parents: Integers, rows: range
    ) -> dict[tuple[int, int], tuple[int, ...]]:
        """Take a window in that is a tree; returns what each (row, slot) of it has before it on its path and in it."""
        check_tree_window(self, tokens, start, parents)
        check_rows(self, tokens, rows)
        self.calls += 1
        tree, contexts = Tree.of(parents), {}
        leading = tree.leading()
        for b, row in enumerate(rows):
            first = int(start[b])
            for j in range(tokens.shape[1]):
                contexts[b, j] = (*self._held[row, :first].tolist(), *tokens[b, tree.path(b, j)].tolist())
            self._held[row, first:] = -1
            self._held[row, first : first + leading[b]] = tokens[b, : leading[b]]
        return contexts


def _is_dead(law: Any, vocab_size: int) -> bool:
    """Whether nothing can follow by ``law``: an array of zeros or of NaN."""
    if not isinstance(law, np.ndarray) or law.shape != (vocab_size,) or not np.issubdtype(law.dtype, np.floating):
        return False
    return not law.any() or bool(np.isnan(law).all())


def check_table(seed: Any, vocab_size: Any, zeros: Any) -> None:
    """Refuse what makes no table, here and in fractions."""
    check_seed("seed", seed)
    check_count("vocab_size", vocab_size, 1, _MOST_TOKENS)
    if not 0 <= check_number("zeros", zeros, "a probability") <= 1:
        raise InvalidArgument(f"zeros is {zeros}, expected a probability")


def random_table(
    seed: int, vocab_size: int, *, zeros: float = 0.0, concentration: float = 1.0
) -> Callable[[tuple[int, ...]], NDArray[np.float64]]:
    """A random law for every context: a pure function of ``seed`` and the context.

    Parameters
    ----------
    seed, vocab_size
        Which table.
    zeros
        Chance that a token is forbidden in a context; at least one token never is.
    concentration
        Dirichlet parameter: small is peaked, large is flat.

    Examples
    --------
    >>> from coupled_sampling.testing import random_table
    >>> next_law = random_table(0, 3, zeros=0.3)
    >>> next_law((0, 2)).shape, bool((next_law((0, 2)) == random_table(0, 3, zeros=0.3)((0, 2))).all())
    ((3,), True)
    """
    check_table(seed, vocab_size, zeros)
    if check_number("concentration", concentration, "a number > 0") <= 0:
        raise InvalidArgument(f"concentration is {concentration}, expected a number > 0")
    cache: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def next_law(context: tuple[int, ...]) -> NDArray[np.float64]:
        if context not in cache:
            generator = np.random.default_rng([seed, *(token + 1 for token in context)])
            weights = generator.gamma(concentration, size=vocab_size) + 1e-6
            forbidden = generator.random(vocab_size) < zeros
            forbidden[generator.integers(vocab_size)] = False
            weights[forbidden] = 0
            cache[context] = weights / weights.sum()
        return cache[context]

    return next_law
