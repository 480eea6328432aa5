"""A small Transformer over class and frame tokens, in PyTorch: used for training only.

A pre-norm decoder with GELU whose positions have three parts, frame, row and column: an embedding of each is added to that of
the token, and queries and keys turn with all three (rotary positions, Su et al., arXiv 2104.09864, with a part for each axis as in
Cosmos). Vocabulary: 512 frame tokens, then one token per class, then the null class that stands for "no class" (classifier-free
guidance, Ho and Salimans, arXiv 2207.12598). A sequence is the class token, then the tokens of all frames row by row; only frame
tokens are predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from coupled_sampling.export import GridRotary, Rotary
from coupled_sampling.export.graphs.rotary import rotary_tables

__all__ = ["Model", "Shape"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model: ``frames`` of ``rows`` by ``columns`` tokens, ``codes`` of them; ``classes`` and a null class."""

    codes: int = 512
    classes: int = 10
    frames: int = 16
    rows: int = 8
    columns: int = 8
    width: int = 224
    layers: int = 6
    heads: int = 7
    rotary_base: float = 100.0

    @property
    def vocabulary(self) -> int:
        return self.codes + self.classes + 1

    @property
    def null(self) -> int:
        return self.codes + self.classes

    @property
    def positions(self) -> int:
        """Inputs, which are as many as the tokens of a clip: the class token is one, and the last frame token is none."""
        return self.frames * self.rows * self.columns

    def rotary(self) -> Rotary:
        """The positions that queries and keys turn with; the class token does not turn."""
        grid = GridRotary(self.rows, self.columns, frames=self.frames, prefix=1, prefix_vanishes=False)
        return Rotary("half", self.rotary_base, grid=grid)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.attention_in(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads (B, heads, T, D) turned by angles whose cosines and sines are (T, D / 2)."""
    left, right = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        # The class token has a position of its own, the last one.
        self.frame = nn.Embedding(shape.frames + 1, shape.width)
        self.row = nn.Embedding(shape.rows, shape.width)
        self.column = nn.Embedding(shape.columns, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.codes)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / (2 * shape.layers) ** 0.5 if name.endswith("out.weight") else 0.02
                nn.init.normal_(parameter, std=scale)
        cos, sin = rotary_tables(shape.rotary(), shape.width // shape.heads, shape.positions)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    def positions(self) -> torch.Tensor:
        """What is added at each position, float (positions, width)."""
        shape = self.shape
        grid = self.frame.weight[:-1, None, None] + self.row.weight[:, None] + self.column.weight
        return torch.cat([self.frame.weight[-1:], grid.view(shape.positions, -1)[:-1]])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits float (B, T, codes) for the token after each of ``tokens`` int64 (B, T), T <= positions."""
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.positions()[:length]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))
