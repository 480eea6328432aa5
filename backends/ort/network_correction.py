"""`NetworkCorrection`: the correction network of a bundle, run by ONNX Runtime on the CPU. It needs no torch.

What its graph takes and gives is in ``docs/bundle-format.md``. It takes two to three times as long as a table, for each place whose
neighbour has changed: it pays where a pass of the model is dear.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import in_one_line
from coupled_sampling.arrays import to_host
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.corrections import Changes, LowRank
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.fields import check_is
from coupled_sampling.methods import Method, find_method

__all__ = ["NetworkCorrection"]


class _Tensor(NamedTuple):
    kind: str
    sizes: tuple[int | None, ...]
    """None is free: one for each position that is corrected."""


class NetworkCorrection:
    """A corrector that predicts better than a table, and costs more. See `coupled_sampling.corrections.Corrector`.

    It also says what single neighbours change (`coupled_sampling.corrections.Shifts`), by the table beside it, for candidates are
    many and a call for each would be dear.

    Parameters
    ----------
    session
        An ``onnxruntime.InferenceSession`` of the graph.
    table
        The fitted table for the same neighbours.

    Raises
    ------
    BundleError
        The graph is no correction network for the table's neighbours and vocabulary.

    Examples
    --------
    One that does nothing, over a table that does nothing:

    >>> import numpy as np
    >>> from coupled_sampling.backends import NetworkCorrection
    >>> from coupled_sampling.backends.ort.session import open_session
    >>> from coupled_sampling.corrections import Changes, LowRank
    >>> from coupled_sampling.export.graphs.correction_network import NetworkWeights, network_graph
    >>> table = LowRank((1,), np.zeros(2), np.zeros((2, 1)), np.zeros((1, 3, 1)), np.ones(2), np.zeros(2))
    >>> read, embeddings, layer = np.zeros((2, 1)), np.zeros((1, 3, 1)), (np.zeros((1, 1)), np.zeros(1))
    >>> layers = [(np.zeros((6, 1)), np.zeros(1)), layer, layer]
    >>> weights = NetworkWeights(read, read, embeddings, embeddings, layers, np.zeros((1, 2)), np.zeros(2))
    >>> network = NetworkCorrection(open_session(network_graph(table, weights, first=0).SerializeToString()), table)
    >>> network.correct(np.array([[0.5, -1.0]]), Changes(np.array([[0]]), np.array([[1]]), np.array([5]))).tolist()
    [[0.5, -1.0]]
    """

    def __init__(self, session: Any, table: LowRank) -> None:
        self.table: LowRank = check_is("table", table, LowRank)
        self._session = session
        _check_graph(session, table)

    @classmethod
    def open(cls, bundle: Bundle | str | Path, method: str | Method) -> NetworkCorrection | None:
        """The network of a bundle, or of what `coupled_sampling.open_bundle` takes, for a method; None if that redrafts nothing.

        It goes to `coupled_sampling.generate` or `coupled_sampling.Decoder`, beside a provider. A step is opened with it by
        ``open_model(bundle, method=method, corrections="network")``.

        Raises
        ------
        BundleError
            The network is damaged, or was made for another model, vocabulary or layout.
        InvalidArgument
            There is none.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        opened, method = bundle if isinstance(bundle, Bundle) else open_bundle(bundle), find_method(method)
        record, use = opened.manifest.corrections, method.acceptance
        if record is None or record.network is None or (use not in record.uses and method.recycles):
            raise InvalidArgument(
                f"corrections is 'network', but the bundle {opened.manifest.name} has none for {method.name}; run "
                "`coupled-sampling fit-corrections --network`, or choose 'fitted', 'plain' or 'none'"
            )
        if not method.recycles:
            return None
        tables = opened.correction_tables()
        network = None if tables is None else tables.network
        assert tables is not None
        assert network is not None, "the record was looked at"
        return cls(open_session(network, threads=1), tables.fitted[use])

    def __repr__(self) -> str:
        return f"NetworkCorrection(lags={self.lags}, vocab_size={self.vocab_size})"

    @property
    def lags(self) -> tuple[int, ...]:
        """See `coupled_sampling.corrections.Corrector.lags`."""
        return self.table.lags

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.table.vocab_size

    def correct(self, logits: Array, changes: Changes) -> NDArray[np.float32]:
        """See `coupled_sampling.corrections.Corrector.correct`.

        Raises
        ------
        ProviderError
            ONNX Runtime failed.
        """
        feeds = {name: np.asarray(to_host(values), np.int64) for name, values in changes._asdict().items()}
        feeds["logits"] = np.asarray(to_host(logits), np.float32)
        try:
            (corrected,) = self._session.run(["corrected"], feeds)
        except Exception as error:  # its exceptions share no base class but Exception
            raise ProviderError(f"ONNX Runtime failed in the correction network: {in_one_line(error)}") from error
        found: NDArray[np.float32] = corrected
        return found

    def shifts(self, lag: int, old: Integers, new: Integers, tokens: Integers) -> NDArray[np.floating]:
        """See `coupled_sampling.corrections.Shifts.shifts`; by the table."""
        added: NDArray[np.floating] = self.table.shifts(lag, old, new, tokens)
        return added


def _check_graph(session: Any, table: LowRank) -> None:
    """Refuse a graph with other inputs and outputs."""
    count, vocab_size = len(table.lags), table.vocab_size
    whole = "tensor(int64)"
    laws = _Tensor("tensor(float)", (None, vocab_size))
    expected = {
        "logits": laws,
        "old": _Tensor(whole, (None, count)),
        "new": _Tensor(whole, (None, count)),
        "position": _Tensor(whole, (None,)),
    }
    for what, found, wanted in (
        ("inputs", session.get_inputs(), expected),
        ("outputs", session.get_outputs(), {"corrected": laws}),
    ):
        told = {
            tensor.name: _Tensor(tensor.type, tuple(s if isinstance(s, int) else None for s in tensor.shape))
            for tensor in found
        }
        if told != wanted:
            raise BundleError(
                f"the correction network has the {what} {_listed(told)}, expected {_listed(wanted)}; fit it again"
            )


def _listed(tensors: dict[str, _Tensor]) -> str:
    return ", ".join(
        f"{name} {kind} ({', '.join('n' if size is None else str(size) for size in sizes)})"
        for name, (kind, sizes) in tensors.items()
    )
