"""The tables of a correction on the device, for the kernel ``sweep``.

Of all correctors the kernels know the fitted one, `coupled_sampling.corrections.LowRank`: its few arrays are copied once, and
corrected laws are made where the logits are. Any other corrector is Python, which needs the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.kernels import Launcher
from coupled_sampling.corrections import Corrector, LowRank, check_corrector
from coupled_sampling.errors import InvalidArgument

__all__ = ["CorrectionTables", "low_rank", "packed", "refused_by_kernels"]


def refused_by_kernels(corrector: Corrector | None) -> str | None:
    """Why the kernels cannot correct laws by ``corrector``; None if they can, or if there is none."""
    if corrector is None or isinstance(corrector, LowRank):
        return None
    return (
        f"corrections is a {type(corrector).__name__}, which runs on the host, and the kernels correct laws by a LowRank only; "
        "use step='host', or a LowRank"
    )


def low_rank(corrector: Corrector, vocab_size: int) -> LowRank:
    """``corrector``, if the kernels can correct laws over ``vocab_size`` tokens by it; else refused."""
    check_corrector(corrector, vocab_size)
    if not isinstance(corrector, LowRank):
        raise InvalidArgument(str(refused_by_kernels(corrector)))
    return corrector


def packed(table: LowRank) -> NDArray[np.uint8]:
    """What lies at ``corrections`` of a `coupled_sampling.backends.cuda.DECISION`.

    Lags int64 (K,), then float32: A (2**K,), B (2**K,), u (V,), U turned (R, V), and w (K, V, R). The last row of each w is left
    out: it is for neighbours before the first token, which never change.
    """
    turned, tokens = np.transpose(table.basis), table.neighbours[:, : table.vocab_size]
    numbers = (table.stale_scale, table.unigram_scale, table.unigram, turned, tokens)
    with np.errstate(over="ignore"):  # as on the host, where logits that are not finite end a row's drafts
        reals = [np.ascontiguousarray(values, np.float32) for values in numbers]
    lags = np.array(table.lags, np.int64)
    return np.concatenate([lags.view(np.uint8), *(values.reshape(-1).view(np.uint8) for values in reals)])


class CorrectionTables:
    """A `LowRank` in device memory, uploaded when it is first needed."""

    def __init__(self, launcher: Launcher, table: LowRank) -> None:
        self._launcher, self._table = launcher, table
        self._pointer = 0

    @property
    def rank(self) -> int:
        """R."""
        return int(self._table.basis.shape[1])

    def fill(self, parameters: NDArray[Any]) -> None:
        """Say in a `coupled_sampling.backends.cuda.DECISION` () where the tables are."""
        if not self._pointer:
            content = packed(self._table)
            self._pointer = self._launcher.allocate(content.nbytes)
            self._launcher.upload(self._pointer, content)
        parameters["corrections"], parameters["rank"] = self._pointer, self.rank
        parameters["neighbours"] = len(self._table.lags)

    def release(self) -> None:
        """Give the memory back."""
        pointer, self._pointer = self._pointer, 0
        if pointer:
            self._launcher.release(pointer)
