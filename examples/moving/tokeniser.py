"""Frames as tokens: a small convolutional autoencoder whose code vectors are rounded to a grid of levels.

Every 4 by 4 pixels of a frame become one of 512 tokens. The encoder gives three numbers for each, which are squashed and rounded to
eight levels (finite scalar quantisation, Mentzer et al., arXiv 2309.15505); gradients pass the rounding as if it were not there.
Frames are coded one by one, so that a frame can be shown as soon as its own tokens are known.

The decoder is a VQGAN's as `coupled_sampling.export.pictures.VqDescription` has it, and its parameters bear the names it asks for.
It looks at the whole frame; the encoder looks at a neighbourhood only, so that what moves in one place changes no tokens elsewhere.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from coupled_sampling.export.pictures import Stage, VqDescription

__all__ = ["CODES", "DESCRIPTION", "GRID", "Tokeniser", "codebook"]

GRID, LEVELS, DIMENSIONS = 8, 8, 3
CODES = LEVELS**DIMENSIONS
DESCRIPTION = VqDescription(
    codes=CODES,
    code_size=DIMENSIONS,
    latent=16,
    stages=(Stage(width=64, blocks=2), Stage(width=48, blocks=1), Stage(width=24, blocks=1)),
    rows=GRID,
    columns=GRID,
    channels=1,
    rounding="nearest",
    groups=8,
)


def codebook() -> torch.Tensor:
    """Code vectors float32 (CODES, DIMENSIONS), in [-1, 1]; the last number varies fastest."""
    levels = np.linspace(-1, 1, LEVELS, dtype=np.float32)
    return torch.from_numpy(np.array(list(itertools.product(levels, repeat=DIMENSIONS)), np.float32))


class Encoder(nn.Module):
    """Frames (N, 1, H, W) in [-1, 1] to numbers (N, DIMENSIONS, H / 4, W / 4) in (-1, 1)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 48, 4, stride=2, padding=1)
        self.second = nn.Conv2d(48, width, 4, stride=2, padding=1)
        # Maps of one place at a time, so that a token depends on 10 by 10 pixels around its own 4 by 4.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)) for _ in range(2)
        )
        self.last = nn.Conv2d(width, DIMENSIONS, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.second(functional.gelu(self.first(frames))))
        for block in self.blocks:
            x = x + block(x)
        return torch.tanh(self.last(x))


class Decoder(nn.Module):
    """What `DESCRIPTION` says, from code vectors (N, DIMENSIONS, GRID, GRID) to frames (N, 1, SIDE, SIDE)."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {}
        for name, shape in DESCRIPTION.weight_shapes().items():
            if name == "codebook":
                continue
            if len(shape) == 4:
                value = torch.empty(shape)
                nn.init.kaiming_uniform_(value, a=5**0.5)
            else:
                value = torch.ones(shape) if ".weight" in name else torch.zeros(shape)
            self.names[name] = name.replace(".", "_")
            self.register_parameter(self.names[name], nn.Parameter(value))

    def weights(self) -> dict[str, np.ndarray]:
        """All by the exporter's names."""
        named = {name: getattr(self, own).detach().numpy() for name, own in self.names.items()}
        return {"codebook": codebook().numpy(), **named}

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self._conv("conv_in", self._conv("post_quant", codes))
        x = self._block("mid.block_1", x)
        x = self._attention("mid.attention", x)
        x = self._block("mid.block_2", x)
        for i, stage in enumerate(DESCRIPTION.stages):
            for j in range(stage.blocks):
                x = self._block(f"stages.{i}.block.{j}", x)
            if i + 1 < len(DESCRIPTION.stages):
                x = self._conv(f"stages.{i}.upsample", functional.interpolate(x, scale_factor=2, mode="nearest"))
        return self._conv("conv_out", functional.silu(self._norm("norm_out", x)))

    def _own(self, name: str) -> torch.Tensor:
        return getattr(self, self.names[name])

    def _conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._own(f"{name}.weight")
        return functional.conv2d(x, weight, self._own(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._own(f"{name}.weight"), self._own(f"{name}.bias")
        return functional.group_norm(x, DESCRIPTION.groups, weight, bias, DESCRIPTION.epsilon)

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        inner = self._conv(f"{name}.conv1", functional.silu(self._norm(f"{name}.norm1", x)))
        inner = self._conv(f"{name}.conv2", functional.silu(self._norm(f"{name}.norm2", inner)))
        return (self._conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self.names else x) + inner

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        normed = self._norm(f"{name}.norm", x)
        query, key, value = (self._conv(f"{name}.{part}", normed).flatten(2) for part in ("query", "key", "value"))
        shares = torch.softmax(query.transpose(1, 2) @ key / x.shape[1] ** 0.5, -1)
        return x + self._conv(f"{name}.output", (value @ shares.transpose(1, 2)).view_as(x))


class Tokeniser(nn.Module):
    """Both halves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def rounded(self, frames: torch.Tensor) -> torch.Tensor:
        """Digits float32 (N, DIMENSIONS, GRID, GRID), 0 to LEVELS - 1, of frames uint8 (N, SIDE, SIDE)."""
        scaled = (self.encoder(frames[:, None].float() / 127.5 - 1) + 1) / 2 * (LEVELS - 1)
        return scaled + (scaled.round() - scaled).detach()

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens int64 (..., GRID * GRID) of frames uint8 (..., SIDE, SIDE)."""
        with torch.no_grad():
            digits = self.rounded(frames.flatten(0, -3)).round().long()
        place = LEVELS ** torch.arange(DIMENSIONS - 1, -1, -1)
        return (digits * place[:, None, None]).sum(1).reshape(*frames.shape[:-2], -1)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Frames uint8 (..., SIDE, SIDE) of tokens int64 (..., GRID * GRID)."""
        with torch.no_grad():
            vectors = codebook()[tokens.flatten(0, -2)].transpose(1, 2).reshape(-1, DIMENSIONS, GRID, GRID)
            frames = self.decoder(vectors)[:, 0]
        return (
            (127.5 * (frames + 1)).round().clamp(0, 255).to(torch.uint8).reshape(*tokens.shape[:-1], *frames.shape[1:])
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (N, SIDE, SIDE) in [-1, 1], more or less, of frames uint8: what is trained."""
        return self.decoder(self.rounded(frames) / (LEVELS - 1) * 2 - 1)[:, 0]
