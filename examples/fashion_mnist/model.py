"""A small GPT over class and image tokens, in PyTorch: used for training only.

Pre-norm Transformer decoder with learned absolute positions and GELU (Radford et al. 2019). Vocabulary: the codebook's
entries first, then one token per class, then the null class that stands for "no class" (classifier-free guidance, Ho
and Salimans, arXiv 2207.12598). A sequence is the class token followed by 196 image tokens; only image tokens are
predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the model: ``codes`` image tokens, ``classes`` class tokens and one null token; ``positions`` inputs."""

    codes: int = 256
    classes: int = 10
    positions: int = 196
    width: int = 192
    layers: int = 6
    heads: int = 6

    @property
    def vocabulary(self) -> int:
        return self.codes + self.classes + 1

    @property
    def null(self) -> int:
        return self.codes + self.classes


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.attention_in(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.codes)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / (2 * shape.layers) ** 0.5 if name.endswith("out.weight") else 0.02
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits float (B, T, codes) for the token after each of ``tokens`` int64 (B, T), T <= positions."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
