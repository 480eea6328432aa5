"""What a decoder looks at beside its tokens: vectors that come with a request, such as those of a text's encoder.

Two ways are known. With `CrossAttention` every layer attends to the vectors. With `PrefixVectors` they are what the first
positions of the sequence hold in place of embeddings of tokens. Either way, what a layer needs of them depends on the request
alone, not on its tokens. So it is computed once, by a graph of its own (`coupled_sampling.export.graphs.condition_graph`), and the
window graph takes the outcome as inputs. Were the vectors themselves its inputs, every pass would project all of them anew in
every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coupled_sampling.bundles.records import ConditionGraph
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.parts import require_whole
from coupled_sampling.fields import check_fields

__all__ = ["CROSS_ATTENTION", "FIRST", "VECTORS", "CrossAttention", "PrefixVectors", "cross_caches"]

CROSS_ATTENTION = "cross_attention"
"""What this part of a layer is called in names of weights."""

VECTORS, FIRST = "condition.vectors", "condition.first"
"""Inputs of a window graph with `PrefixVectors`: what stands at the first positions, and the first of them that is attended to."""


def cross_caches(layer: int) -> tuple[str, str]:
    """Inputs of a window graph with `CrossAttention`: the key and the value that a layer attends to."""
    return f"condition.{layer}.key", f"condition.{layer}.value"


@dataclass(frozen=True)
class CrossAttention:
    """Every layer attends to a request's vectors, between its self-attention and its MLP (Cosmos-Predict1 Video2World).

    Heads, head size, scale, softcap, and the norms of queries and keys are those of the self-attention, with weights of their own.
    Maps have no bias, nothing turns, and nothing is masked: all of ``length`` rows are attended to, and a request with fewer gets
    rows of zeros behind its own.

    Parameters
    ----------
    length
        Rows that are attended to, the most that a request can give.
    size
        Entries of a vector.

    Examples
    --------
    >>> from coupled_sampling.export import CrossAttention, DecoderDescription
    >>> decoder = DecoderDescription(
    ...     vocab_size=32, positions=64, width=16, layers=1, heads=4, kv_heads=2, mlp_width=48, condition=CrossAttention(8, size=6)
    ... )
    >>> {name: shape for name, shape in decoder.weight_shapes().items() if "cross_attention.k" in name}
    {'layers.0.cross_attention.key.weight': (8, 6)}
    """

    length: int
    size: int

    token: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_fields(self)
        _check_sizes(self.length, self.size)

    def record(self, file: str) -> ConditionGraph:
        """What a bundle's manifest says of its graph in ``file``."""
        return ConditionGraph(file, self.length, self.size)


@dataclass(frozen=True)
class PrefixVectors:
    """The first positions hold a request's vectors in place of embeddings of tokens (LlamaGen from text).

    A prompt begins with ``length`` tokens. Where one of them is ``token``, the position holds the vector of its number, through an
    MLP without biases, down(gelu_tanh(up(vector))). Other tokens there are embedded as anywhere, which is how an unconditional
    prompt is said. A request with fewer vectors than ``length`` has them at the end, right before what follows; the positions
    before them are attended to by nobody but themselves, whatever token they hold.

    Parameters
    ----------
    length
        Positions.
    size
        Entries of a vector.
    hidden
        Width of the MLP's hidden layer.
    token
        Stands for a vector. Its own row of the embedding is not used.

    Examples
    --------
    >>> from coupled_sampling.export import DecoderDescription, PrefixVectors
    >>> decoder = DecoderDescription(
    ...     vocab_size=32, positions=64, width=16, layers=1, heads=4, mlp_width=48, generated=31,
    ...     condition=PrefixVectors(length=8, size=6, hidden=20, token=31),
    ... )
    >>> {name: shape for name, shape in decoder.weight_shapes().items() if name.startswith("prefix")}
    {'prefix.up.weight': (20, 6), 'prefix.down.weight': (16, 20)}
    """

    length: int
    size: int
    hidden: int
    token: int

    def __post_init__(self) -> None:
        check_fields(self)
        _check_sizes(self.length, self.size)
        require_whole("hidden of the prefix vectors", self.hidden, 1)
        require_whole("token of the prefix vectors", self.token, 0)

    def record(self, file: str) -> ConditionGraph:
        """What a bundle's manifest says of its graph in ``file``."""
        return ConditionGraph(file, self.length, self.size, self.token)

    def check_fits(self, positions: int, vocab_size: int, generated: range) -> None:
        """Refuse a decoder of these sizes."""
        if self.length >= positions:
            raise InvalidArgument(
                f"length of the prefix vectors is {self.length}, expected fewer than {positions} positions"
            )
        if self.token >= vocab_size or self.token in generated:
            raise InvalidArgument(
                f"token of the prefix vectors is {self.token}, expected one of [0, {vocab_size}) that is never generated"
            )


def _check_sizes(length: int, size: int) -> None:
    require_whole("length of the condition", length, 1)
    require_whole("size of the condition", size, 1)
