"""What a decoder is: every choice that makes one family of Transformer decoders differ from another, as data.

A decoder embeds tokens, adds to that the output of attention and of an MLP in every layer, normalises, and scores the
next token (Radford et al. 2019; Touvron et al., arXiv 2302.13971). `DecoderDescription` says which norm, which MLP,
which positions and so on; `decoder_graph` writes the graph of any description, `reference_logits` computes it in numpy,
and a family of models is a function from its own configuration to a description and names of weights. Descriptions
hold no weights: `weight_shapes` says which they want.

Layers are alike but for what their attention sees (`LayerKind`). What a model looks at beside its tokens comes with the request
as vectors (`coupled_sampling.export.graphs.conditions`). What is not described: mixtures of experts, recurrent or state-space
layers, encoders, and parallel attention and MLP.

**Tokens that go in but never come out** are of the one vocabulary: `vocab_size` counts all, and the head scores a range of them
(``generated_first``, ``generated``), the others having logits of -inf. Classes, a word for "no class" and Cosmos' begin of a video
are such. A second size for inputs alone would save these numbers, one in 64,001 for Cosmos (whose embedding ends after that token:
the rows behind it are never used), and would have to be told from the first one wherever a token is checked: in prompts, guesses,
processors, grammars, tables, windows and step graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import OPSET
from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION, CrossAttention, PrefixVectors
from coupled_sampling.export.graphs.layer_positions import LayerPositions
from coupled_sampling.export.graphs.parts import (
    LayerKind,
    Norm,
    QueryKeyNorm,
    require_one_of,
    require_positive,
    require_whole,
)
from coupled_sampling.export.graphs.picture_positions import PicturePositions
from coupled_sampling.export.graphs.rotary import Rotary
from coupled_sampling.export.graphs.weight_shapes import Shapes, weight_shapes
from coupled_sampling.fields import check_fields

__all__ = ["ACTIVATIONS", "DecoderDescription", "LayerKind", "Norm", "QueryKeyNorm"]

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu")
"""silu: x sigmoid(x); gelu: exact, by erf; gelu_tanh: its approximation by tanh; quick_gelu: x sigmoid(1.702 x)."""


@dataclass(frozen=True)
class DecoderDescription:
    """A Transformer decoder.

    A zero that stands for another number is replaced by it at construction (and `dataclasses.replace` copies that one).

    Parameters
    ----------
    vocab_size
        V: tokens are integers in [0, V).
    positions
        Most positions in a sequence.
    width, layers, heads, mlp_width
        The usual sizes; ``mlp_width`` is that of the hidden layer of the MLPs.
    kv_heads
        Heads of keys and values, a divisor of ``heads`` (Ainslie et al., arXiv 2305.13245); 0 means ``heads``.
    head_size
        Of one head; 0 means ``width / heads``.
    norm
        Of layers and of the end.
    norm_placement
        "input": what enters attention and MLP is normalised; "output": what leaves them, before it is added (Swin,
        Chameleon 34B); "both": both (Gemma 2).
    mlp
        "gated": down(activation(gate(x)) * up(x)); "plain": down(activation(up(x))).
    activation
        One of `ACTIVATIONS`.
    rotary
        Rotary positions; None for none.
    learned_positions
        Whether an embedding of the position is added to that of the token.
    position_offset
        Rows of that embedding before the one of position 0.
    query_key_norm
        None for none.
    query_key_value_bias, attention_output_bias, mlp_bias, head_bias
        Which linear maps have a bias.
    attention_scale
        Products of queries and keys are multiplied by it; 0 means ``1 / sqrt(head_size)``.
    attention_softcap, logit_softcap
        c: values become c tanh(value / c); 0 means none.
    attention_window
        Most positions attended to, the own one included; 0 means all.
    layer_kinds
        What each layer's attention sees, where layers differ; ``rotary`` and ``attention_window`` then stay as they are
        without it. Empty where all are alike.
    residual_scale
        What attention and MLP add is multiplied by it (Granite).
    embedding_scale, logit_scale
        Embeddings of tokens (not of positions) and logits are multiplied by them; the latter before the softcap.
    embedding_segments
        Rows of each of several tables that make up the embedding of tokens, one after the other; empty for one table.
    generated_first, generated
        The head scores tokens ``generated_first``, ..., ``generated_first + generated - 1``; logits of all others are
        -inf. ``generated`` 0 means all from ``generated_first`` on.
    tied_head
        The head's matrix is the generated tokens' part of the embedding.
    head_hidden
        Width of a hidden layer with bias and exact GELU before the head (Janus); 0 for none.
    cache_length
        Columns of the caches, at least ``positions``; 0 means ``positions``. More gives backends that pad their
        windows room to write.
    layer_positions
        Positions that are added where every layer begins; None for none.
    condition
        How vectors of a request enter; None if none do.

    Raises
    ------
    InvalidArgument
        Something cannot be, or contradicts something else.

    Examples
    --------
    >>> from coupled_sampling.export import DecoderDescription, Rotary
    >>> llama = DecoderDescription(
    ...     vocab_size=32, positions=64, width=16, layers=2, heads=4, kv_heads=2, mlp_width=48, rotary=Rotary()
    ... )
    >>> llama.head_size, llama.cache_length
    (4, 64)
    >>> llama.weight_shapes()["layers.1.attention.key.weight"]  # (outputs, inputs): two heads of four
    (8, 16)
    """

    vocab_size: int
    positions: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    kv_heads: int = 0
    head_size: int = 0
    norm: Norm = field(default_factory=Norm)
    norm_placement: str = "input"
    mlp: str = "gated"
    activation: str = "silu"
    rotary: Rotary | None = None
    learned_positions: bool = False
    position_offset: int = 0
    query_key_norm: QueryKeyNorm | None = None
    query_key_value_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    attention_window: int = 0
    layer_kinds: tuple[LayerKind, ...] = ()
    residual_scale: float = 1.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    embedding_segments: tuple[int, ...] = ()
    generated_first: int = 0
    generated: int = 0
    tied_head: bool = False
    head_hidden: int = 0
    cache_length: int = 0
    layer_positions: LayerPositions | None = None
    condition: CrossAttention | PrefixVectors | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("vocab_size", "positions", "width", "layers", "heads", "mlp_width"):
            require_whole(name, getattr(self, name), 1)
        for name in ("kv_heads", "head_size", "position_offset", "attention_window", "generated_first", "generated"):
            require_whole(name, getattr(self, name), 0)
        self._fill_in()
        self._check_heads()
        self._check_kinds()
        self._check_tokens()
        require_one_of("norm_placement", self.norm_placement, ("input", "output", "both"))
        require_one_of("mlp", self.mlp, ("gated", "plain"))
        require_one_of("activation", self.activation, ACTIVATIONS)
        for name in ("attention_scale", "attention_softcap", "logit_softcap"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InvalidArgument(f"{name} is {getattr(self, name)}, expected a number >= 0")
        for name in ("embedding_scale", "logit_scale", "residual_scale"):
            require_positive(name, getattr(self, name))
        if self.cache_length < self.positions:
            raise InvalidArgument(
                f"cache_length is {self.cache_length}, expected 0 or at least positions, {self.positions}"
            )
        if self.position_offset and not self.learned_positions:
            raise InvalidArgument("position_offset is given without learned_positions, expected both or neither")
        self._check_condition()

    def _fill_in(self) -> None:
        """Replace the zeros that mean something else."""
        if not self.head_size and self.width % self.heads:
            raise InvalidArgument(f"heads is {self.heads}, expected a divisor of width, {self.width}, or head_size too")
        for name, value in (
            ("kv_heads", self.heads),
            ("head_size", self.width // self.heads),
            ("attention_scale", 1 / math.sqrt(self.head_size or self.width // self.heads)),
            ("generated", self.vocab_size - self.generated_first),
            ("cache_length", self.positions),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def _check_heads(self) -> None:
        if self.heads % self.kv_heads:
            raise InvalidArgument(f"kv_heads is {self.kv_heads}, expected a divisor of heads, {self.heads}")
        for rotary in self._rotaries():
            if rotary is not None:
                rotary.require_fit(self.head_size)
                if rotary.pictures not in (None, self.pictures):
                    raise InvalidArgument("layers have different positions of pictures, expected the same for all")

    def _check_kinds(self) -> None:
        if not self.layer_kinds:
            return
        if len(self.layer_kinds) != self.layers:
            raise InvalidArgument(
                f"layer_kinds has {len(self.layer_kinds)} entries, expected one for each of the {self.layers} layers"
            )
        if self.rotary is not None or self.attention_window:
            raise InvalidArgument(
                "layer_kinds is given beside rotary or attention_window, expected the one or the others; write what holds for all "
                "layers into each kind"
            )

    def _check_tokens(self) -> None:
        if self.generated < 1 or self.generated_first + self.generated > self.vocab_size:
            raise InvalidArgument(
                f"generated tokens are {self.generated} from {self.generated_first} on, expected a range inside "
                f"[0, {self.vocab_size})"
            )
        segments = self.embedding_segments
        if segments and (min(segments) < 1 or sum(segments) != self.vocab_size):
            raise InvalidArgument(f"embedding_segments is {segments}, expected rows that sum to {self.vocab_size}")
        require_whole("head_hidden", self.head_hidden, 0)
        if self.tied_head and self.head_hidden:
            raise InvalidArgument("tied_head and head_hidden are both given, expected at most one of them")

    def _check_condition(self) -> None:
        if self.layer_positions is not None and self.width % 2:
            raise InvalidArgument(
                f"width is {self.width}, expected an even number with layer_positions: sines and cosines"
            )
        if isinstance(self.condition, PrefixVectors):
            generated = range(self.generated_first, self.generated_first + self.generated)
            self.condition.check_fits(self.positions, self.vocab_size, generated)
        if self.cross_attention is not None and self.query_key_norm is not None and self.query_key_norm.whole:
            raise InvalidArgument(
                "query_key_norm is of whole queries and keys, expected one of each head with cross attention"
            )

    @property
    def cross_attention(self) -> CrossAttention | None:
        """Its cross attention, if it has one."""
        return self.condition if isinstance(self.condition, CrossAttention) else None

    @property
    def prefix(self) -> PrefixVectors | None:
        """What its first positions hold, if that is vectors."""
        return self.condition if isinstance(self.condition, PrefixVectors) else None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a layer, in their order."""
        return ("attention", *((CROSS_ATTENTION,) if self.cross_attention else ()), "mlp")

    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer's attention sees."""
        return self.layer_kinds or (LayerKind(self.attention_window, self.rotary),) * self.layers

    @property
    def input_norm(self) -> bool:
        """Whether what enters attention and MLP is normalised."""
        return self.norm_placement in ("input", "both")

    @property
    def output_norm(self) -> bool:
        """Whether what leaves attention and MLP is normalised."""
        return self.norm_placement in ("output", "both")

    @property
    def pictures(self) -> PicturePositions | None:
        """Positions of pictures, if a layer has such; all that have share them."""
        found = (rotary.pictures for rotary in self._rotaries() if rotary is not None)
        return next((pictures for pictures in found if pictures is not None), None)

    def _rotaries(self) -> list[Rotary | None]:
        """Each of the layers' rotary positions once, without enumerating layers that are alike."""
        return list(dict.fromkeys(kind.rotary for kind in self.layer_kinds)) or [self.rotary]

    def embedding_names(self) -> dict[str, int]:
        """Rows of each table of the token embedding, in their order."""
        if not self.embedding_segments:
            return {"embedding.weight": self.vocab_size}
        return {f"embedding.{i}.weight": rows for i, rows in enumerate(self.embedding_segments)}

    def weight_shapes(self) -> Shapes:
        """Names and shapes of all weights, in the order in which a graph wants them; matrices are (outputs, inputs)."""
        return weight_shapes(self)

    def matrices(self) -> frozenset[str]:
        """Names of the weights that linear maps multiply by: those that `Storage` may quantise."""
        tables = {*self.embedding_names(), "position.weight"}
        # Norms with weights for each head have two axes, and are no maps.
        return frozenset(
            name
            for name, shape in self.weight_shapes().items()
            if len(shape) == 2 and name not in tables and "_norm." not in name
        )

    def manifest(
        self, file: str, dtype: str = "float32", max_window: int = 0, prompt_chunk: int | None = None
    ) -> WindowGraph:
        """What a bundle's manifest says of the graph.

        Parameters
        ----------
        file
            Name of the graph's file.
        dtype
            Type of the caches: ``Storage.compute``.
        max_window
            Most slots in one call; 0 means ``positions``.
        prompt_chunk
            Most tokens of a prompt to read in one call; None leaves it to who runs the graph.
        """
        return WindowGraph(
            file=file,
            opset=OPSET,
            dtype=dtype,
            # Where pictures begin is marked in a cache of its own, after those of the layers.
            layers=self.layers + (self.pictures is not None),
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            cache_length=self.cache_length,
            max_length=self.positions,
            max_window=max_window or self.positions,
            has_kv_length=True,
            prompt_chunk=prompt_chunk,
        )
