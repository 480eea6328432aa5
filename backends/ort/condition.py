"""What rows are told beside their tokens: a bundle's condition graph, and what it made for each row.

It runs once for a request. What it makes are inputs of the window graph, which lie beside the caches, one row behind the other.
Nobody else writes there: windows, refused drafts and rollbacks leave them as they are.

A row whose request could not begin stands idle among rows that go on, and is forwarded with them. Its logits are NaN, of which no
law can be made. So one request never stops another, and none is decoded under what was said of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.conditions import problem_of_vectors
from coupled_sampling.backends.ort.binding import TYPES, HostBinding, Kept
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.manifest import ConditionGraph
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.requests import Request

__all__ = ["RowConditions"]


class RowConditions:
    """The conditions of all rows of a model on the CPU.

    Parameters
    ----------
    bundle
        Has a condition graph.
    window
        The session of its window graph, whose threads it takes.
    binding
        Where that one's tensors lie.
    rows
        How many rows there are.

    Raises
    ------
    BundleError
        The condition graph cannot be loaded, or is not what the manifest promises.
    InvalidArgument
        ``binding`` is of a GPU, where nothing can be written row by row.
    """

    def __init__(self, bundle: Bundle, window: Any, binding: HostBinding, rows: int) -> None:
        graph, path = bundle.manifest.condition_graph, bundle.condition_graph
        assert graph is not None
        assert path is not None
        if binding.device is not None:
            raise InvalidArgument(
                f"the bundle {bundle.manifest.name} takes a condition, which models take on the CPU only"
            )
        self.graph: ConditionGraph = graph
        self._session = open_session(path, window.get_session_options().intra_op_num_threads or None)
        _check_inputs(self._session, graph, str(path))
        self._binding = binding
        self._told: list[NDArray[np.float32] | None] = [None] * rows
        """The condition of each row."""
        self._failed: set[int] = set()
        """Rows whose last request could not begin."""
        self._kept: dict[str, Kept] = {}
        self.inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        """Type and shape of every input that the window graph must have for them; None is for rows."""
        for value in self._session.get_outputs():
            shape = tuple(value.shape[1:])
            if value.type not in TYPES or value.shape[0] != 1 or not all(isinstance(size, int) for size in shape):
                raise BundleError(
                    f"{path}: output {value.name!r} is {value.type} {value.shape}, expected one row of static sizes; export the "
                    "bundle again"
                )
            self.inputs[value.name] = value.type, (None, *shape)

    def reserve(self) -> None:
        """Make room for what rows are told, once it is known that the window graph takes it: a graph may promise any size."""
        for name, (kind, shape) in self.inputs.items():
            sizes = [size for size in shape if size is not None]
            self._kept[name] = self._binding.keep(np.zeros((len(self._told), *sizes), TYPES[kind]))

    def problem(self, request: Request) -> str | None:
        """Why ``request`` cannot be decoded, as a sentence without its subject; None if it can."""
        wanted = f"floating (n, {self.graph.size}) with up to {self.graph.length} vectors n"
        advice = "make it with the encoder that the model was trained with"
        problem = problem_of_vectors(request.condition, (1, self.graph.length), self.graph.size, wanted, advice)
        if problem is None and (np.abs(np.asarray(request.condition)) > np.finfo(np.float32).max).any():
            problem = "has a condition with numbers that float32 cannot hold"
        return problem or self.graph.problem_of_prompt(np.asarray(request.prompt))

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``.

        Raises
        ------
        InvalidArgument
            ``row`` is none, or the request has no condition, or one that cannot be read.
        ProviderError
            ONNX Runtime failed on it.
        """
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < len(self._told):
            raise InvalidArgument(f"row is {row!r}, expected a row from 0 to {len(self._told) - 1}")
        self._told[row] = None  # whatever happens next, the last request's is not used again
        self._failed.add(int(row))
        problem = self.problem(request)
        if problem is not None:
            raise InvalidArgument(f"request {problem}")
        vectors = np.array(request.condition, np.float32)
        if not self._copied(vectors, row):
            self._write(vectors, row)
        self._told[row] = vectors
        self._failed.discard(int(row))

    def bind(self, rows: range) -> list[int]:
        """Bind what the consecutive ``rows`` were told; gives the numbers in it of those whose request could not begin.

        Raises
        ------
        InvalidArgument
            A row has begun no request, or none of them has one that could.
        """
        idle = [] if all(self._told[row] is None for row in rows) else [row for row in rows if row in self._failed]
        for row in rows:
            if self._told[row] is None and row not in idle:
                raise InvalidArgument(
                    f"row {row} has begun no request, expected begin(row, request) before its first window: the model takes a "
                    "condition"
                )
        for name, kept in self._kept.items():
            self._binding.bind_kept(name, kept, (len(rows), *kept.memory.shape[1:]), rows.start)
        return [row - rows.start for row in idle]

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Give the rows ``targets`` what row ``source`` was told."""
        for target in targets:
            self._told[target] = self._told[source]
            self._failed.discard(target)
            for kept in self._kept.values():
                kept.memory[target] = kept.memory[source]

    def _copied(self, vectors: NDArray[np.float32], row: int) -> bool:
        """Take what another row was made of the same ``vectors``, such as a sample of the same request."""
        for other, told in enumerate(self._told):
            if told is not None and told.shape == vectors.shape and np.array_equal(told, vectors):
                self.fork(other, [row])
                return True
        return False

    def _write(self, vectors: NDArray[np.float32], row: int) -> None:
        try:
            made = self._session.run(list(self._kept), {"condition": vectors})
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on a condition of {len(vectors)} vectors: {in_one_line(error)}"
            ) from error
        for kept, value in zip(self._kept.values(), made, strict=True):
            kept.memory[row] = value[0]


def _check_inputs(session: Any, graph: ConditionGraph, name: str) -> None:
    found = [(value.name, value.type, value.shape[1:]) for value in session.get_inputs()]
    expected = [("condition", "tensor(float)", [graph.size])]
    if found != expected:
        raise BundleError(f"{name}: inputs are {found}, the manifest promises {expected}; export the bundle again")
