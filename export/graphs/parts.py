"""Parts of a decoder's description: which norms it has, and what the attention of a layer sees.

`coupled_sampling.export.graphs.description` puts them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.rotary import Rotary
from coupled_sampling.fields import check_fields

__all__ = ["LayerKind", "Norm", "QueryKeyNorm", "require_one_of", "require_positive", "require_whole"]


@dataclass(frozen=True)
class Norm:
    """Normalisation over the width.

    Parameters
    ----------
    kind
        "rms" (Zhang and Sennrich, arXiv 1910.07467) or "layer" (Ba et al., arXiv 1607.06450).
    epsilon
        Added to the mean square or the variance.
    one_plus
        The stored weight is the scale minus 1 (Gemma).
    bias
        Whether "layer" has a bias; "rms" never has.

    Examples
    --------
    >>> from coupled_sampling.export import Norm
    >>> Norm("layer", epsilon=1e-6).has_bias, Norm("rms").has_bias
    (True, False)
    """

    kind: str = "rms"
    epsilon: float = 1e-5
    one_plus: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        require_one_of("kind of the norm", self.kind, ("rms", "layer"))
        require_positive("epsilon of the norm", self.epsilon)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias to read."""
        return self.kind == "layer" and self.bias

    @property
    def operator(self) -> str:
        """ONNX's operator."""
        return "RMSNormalization" if self.kind == "rms" else "LayerNormalization"


@dataclass(frozen=True)
class QueryKeyNorm:
    """Normalisation of queries and keys, before the rotation.

    Parameters
    ----------
    norm
        Which norm, over the ``head_size`` entries of every head.
    per_head
        Whether every head has a weight of its own, (heads, head_size) as in Chameleon, or all share one, (head_size,)
        as in Qwen 3.
    whole
        Whether all heads side by side are normalised as one, with a weight (heads * head_size,), as in OLMo 2.

    Raises
    ------
    InvalidArgument
        ``per_head`` and ``whole`` are both given.

    Examples
    --------
    >>> from coupled_sampling.export import DecoderDescription, QueryKeyNorm
    >>> description = DecoderDescription(32, 64, width=16, layers=1, heads=2, mlp_width=32, query_key_norm=QueryKeyNorm())
    >>> description.weight_shapes()["layers.0.attention.query_norm.weight"]
    (8,)
    """

    norm: Norm = field(default_factory=Norm)
    per_head: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.per_head and self.whole:
            raise InvalidArgument("per_head and whole are both given, expected at most one of them")

    def shape(self, heads: int, head_size: int) -> tuple[int, ...]:
        """Shape of the weight for so many heads."""
        if self.whole:
            return (heads * head_size,)
        return (heads, head_size) if self.per_head else (head_size,)


@dataclass(frozen=True)
class LayerKind:
    """What the attention of one layer sees, in decoders whose layers differ.

    Parameters
    ----------
    window
        Most positions attended to, the own one included; 0 means all.
    rotary
        Rotary positions of this layer; None for none.

    Raises
    ------
    InvalidArgument
        ``window`` is no integer >= 0.

    Examples
    --------
    >>> from coupled_sampling.export import DecoderDescription, LayerKind, Rotary
    >>> near, far = LayerKind(window=8, rotary=Rotary(base=1e4)), LayerKind(rotary=Rotary(base=1e6))  # as in Gemma 3
    >>> description = DecoderDescription(
    ...     vocab_size=32, positions=64, width=16, layers=3, heads=2, mlp_width=32, layer_kinds=(near, near, far)
    ... )
    >>> [kind.window for kind in description.kinds()]
    [8, 8, 0]
    """

    window: int = 0
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require_whole("window of a layer", self.window, 0)


def require_whole(name: str, value: int, least: int) -> None:
    """Refuse what is no integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(f"{name} is {value!r}, expected an integer >= {least}")


def require_positive(name: str, value: float) -> None:
    """Refuse what is no finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgument(f"{name} is {value}, expected a number > 0")


def require_one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Refuse what is none of ``accepted``."""
    if value not in accepted:
        raise InvalidArgument(f"{name} is {value!r}, expected one of {', '.join(map(repr, accepted))}")
