"""A Llama decoder in PyTorch, for ``export.py --torch``: what a user of torch would write and export as a window graph.

Weights are read from the checkpoint one at a time, into a module that was made without any; it is float32, as
`export_module` wants it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from coupled_sampling.export.torch.module import CacheShape, WindowCache

Config = Mapping[str, Any]


class Attention(nn.Module):
    def __init__(self, layer: int, config: Config) -> None:
        super().__init__()
        width, self.layer, self.size = config["hidden_size"], layer, head_size(config)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, config["num_key_value_heads"] * self.size, bias=False)
        self.v_proj = nn.Linear(width, config["num_key_value_heads"] * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        query, key, value = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        keys, values = cache.write(self.layer, rotated(key, angles), value)
        mixed = functional.scaled_dot_product_attention(
            rotated(query, angles), keys, values, attn_mask=cache.mask(), enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, W, heads * D) to (B, heads, W, D)."""
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, layer: int, config: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(layer, config), MLP(config)
        self.input_layernorm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, x: torch.Tensor, angles: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Parameters have the names of the checkpoint, without ``model.``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.size, self.base = config["hidden_size"], head_size(config), config["rope_theta"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], width)
        self.layers = nn.ModuleList(Block(layer, config) for layer in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(width, config["rms_norm_eps"])
        self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        frequencies = self.base ** (-torch.arange(self.size // 2) * 2 / self.size)
        angles = (positions[..., None] * frequencies)[:, None]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, angles, cache)
        return self.lm_head(self.norm(x))


def head_size(config: Config) -> int:
    return config["hidden_size"] // config["num_attention_heads"]


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """``x`` (B, heads, W, D), its halves turned by ``angles`` (B, 1, W, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def read(checkpoint: Path, positions: int) -> tuple[Decoder, CacheShape]:
    """The module with the checkpoint's weights in float32, of which one at a time is held twice, and its caches."""
    config = json.loads((checkpoint / "config.json").read_text())
    with torch.device("meta"):
        decoder = Decoder(config)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                weight = {name.removeprefix("model."): file.get_tensor(name).float()}
                decoder.load_state_dict(weight, strict=False, assign=True)
    cache = CacheShape(config["num_hidden_layers"], config["num_key_value_heads"], head_size(config), positions)
    return decoder.eval().requires_grad_(False), cache
