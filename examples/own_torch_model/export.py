"""A decoder of one's own, written in PyTorch, exported as a bundle and decoded without PyTorch.

    python examples/own_torch_model/export.py --out build/own

The model is a small one with rotary positions and grouped queries; its weights are random. What an own model needs to
change is marked by its use of ``cache``: `write` in place of appending to a cache, `mask` in place of a causal mask, and
rotary angles from ``positions``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from coupled_sampling import generate
from coupled_sampling.backends import open_model
from coupled_sampling.export.torch.module import CacheShape, ModuleSettings, WindowCache, export_module

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, POSITIONS = 64, 48, 2, 6, 2, 8, 128


class Attention(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.query = nn.Linear(WIDTH, HEADS * HEAD_SIZE, bias=False)
        self.key = nn.Linear(WIDTH, KV_HEADS * HEAD_SIZE, bias=False)
        self.value = nn.Linear(WIDTH, KV_HEADS * HEAD_SIZE, bias=False)
        self.out = nn.Linear(HEADS * HEAD_SIZE, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        query = rotated(split(self.query(x), HEADS), angles)
        key = rotated(split(self.key(x), KV_HEADS), angles)
        keys, values = cache.write(self.layer, key, split(self.value(x), KV_HEADS))
        mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=cache.mask(), enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = Attention(layer)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, angles: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(layer) for layer in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(HEAD_SIZE // 2) * 2 / HEAD_SIZE))

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, cache: WindowCache) -> torch.Tensor:
        x = self.embedding(input_ids)
        angles = (positions[..., None] * self.frequencies)[:, None]
        for block in self.blocks:
            x = block(x, angles, cache)
        return 3 * self.head(self.norm(x))


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, W, heads * D) to (B, heads, W, D)."""
    return x.unflatten(2, (heads, HEAD_SIZE)).transpose(1, 2)


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """``x`` (B, heads, W, D), its halves turned by ``angles`` (B, 1, W, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/own"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    bundle = export_module(
        Decoder().eval(),
        out,
        CacheShape(LAYERS, KV_HEADS, HEAD_SIZE, POSITIONS),
        ModuleSettings(
            name="own",
            description="A small rotary decoder with random weights.",
            prompts={"start": [0], "other": [1, 2, 3]},
            length=60,
            licence="Apache-2.0",
        ),
        check=open_model,
    )
    print(f"wrote {bundle.folder}; ONNX Runtime agrees with the module")
    prompts = [prompt.tokens for prompt in bundle.manifest.prompts.values()]
    tokens = {}
    for method in ("ar", "scd-match", "scd-gumbel"):
        with open_model(bundle, rows=len(prompts)) as model:
            result = generate(model, prompts, length=60, method=method, window=8, drafting="random", seed=1)
        tokens[method] = [row.tolist() for row in result.tokens]
        print(f"{method}: {tokens[method][0][:12]} ...")
    if tokens["scd-match"] != tokens["ar"]:
        raise SystemExit("scd-match differs from ar: the graph is not the same model for all widths of window")
    print("scd-match gives the tokens of ar")


if __name__ == "__main__":
    main()
