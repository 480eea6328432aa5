"""Clips of clothes that move: pictures of Fashion-MNIST, drawn anew in every frame over a background with texture.

An item glides across the frame at a steady speed and comes back from the borders, while it turns and grows or shrinks as
steadily. The item, its path and the texture are drawn once per clip. Grain, as a camera's, is drawn for every frame anew: without
it most tokens of the background would be those of the frame before, as in no film. Items of the train split are for training and
those of the test split for figures, and no clip is ever made twice.

``motion`` says what the drawing does to the frames of a clip:

``moving``   as above;
``still``    the first frame again and again, each time with its own grain;
``cuts``     every frame is of another clip (of the same class), as if each were a new shot.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(1, str(Path(__file__).parents[1] / "fashion_mnist"))
from data import CLASSES, DATA, load

__all__ = ["CLASSES", "DATA", "FRAMES", "GRAIN", "MOTIONS", "SIDE", "Items", "load"]

FRAMES, SIDE = 16, 32
"""Frames of a clip, and pixels of a frame in each direction."""
GRAIN = 3.0
"""Standard deviation of the grain, in levels of 255."""
MOTIONS = ("moving", "still", "cuts")
_MARGIN = 11.0
"""How near to the border an item's middle comes, in pixels."""


class Items:
    """The items of a split of Fashion-MNIST, ready to be drawn.

    Parameters
    ----------
    split
        "train" or "t10k".
    folder
        Where the data is.
    """

    def __init__(self, split: str, folder: Path = DATA) -> None:
        pixels, labels = load(split, folder)
        self.labels = torch.from_numpy(labels)
        self.pictures = torch.tensor(pixels)

    def clips(
        self, count: int, generator: torch.Generator, motion: str = "moving", frames: int = FRAMES, grain: float = GRAIN
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips uint8 (count, frames, SIDE, SIDE) and the classes int64 (count,) of their items."""
        chosen = torch.randint(len(self.labels), (count,), generator=generator)
        labels = self.labels[chosen]
        if motion == "moving":
            drawn = self._drawn(chosen, frames, generator)
        elif motion == "still":
            drawn = self._drawn(chosen, 1, generator).expand(-1, frames, -1, -1)
        elif motion == "cuts":
            shots = torch.stack([self._another(label, frames, generator) for label in labels.tolist()])
            drawn = self._drawn(shots.flatten(), 1, generator).view(count, frames, SIDE, SIDE)
        else:
            raise ValueError(f"motion is {motion!r}, expected one of {', '.join(map(repr, MOTIONS))}")
        if grain:
            drawn = drawn + grain * torch.randn(drawn.shape, generator=generator)
        return drawn.round().clamp(0, 255).to(torch.uint8), labels

    def _another(self, label: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """``count`` items of the class ``label``."""
        same = torch.nonzero(self.labels == label).flatten()
        return same[torch.randint(len(same), (count,), generator=generator)]

    def _drawn(self, chosen: torch.Tensor, frames: int, generator: torch.Generator) -> torch.Tensor:
        """A clip of each of the items ``chosen``, in levels of 255."""
        count = len(chosen)
        place, angle, size = _paths(count, frames, generator)
        item = self.pictures[chosen].float()[:, None] / 255
        layers = torch.cat([item, _outline(item)], 1)
        grid = _grid(place, angle, size)
        repeated = layers[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        drawn = functional.grid_sample(repeated, grid, mode="bilinear", align_corners=False)
        drawn = drawn.view(count, frames, 2, SIDE, SIDE)
        item, alpha = drawn[:, :, 0], drawn[:, :, 1]
        shade = 0.36 * alpha + 0.64 * item
        below = _texture(count, generator)[:, None]
        return 255 * (shade + (1 - alpha) * below)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _paths(count: int, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Middle (count, frames, 2) in pixels, angle and size (count, frames) of the items."""
    time = torch.arange(frames)
    speed = _uniform(count, 0.5, 1.6, generator)
    heading = _uniform(count, 0, 2 * math.pi, generator)
    velocity = torch.stack([speed * heading.cos(), speed * heading.sin()], -1)
    low, room = _MARGIN, SIDE - 2 * _MARGIN
    first = torch.stack([_uniform(count, 0, room, generator) for _ in range(2)], -1)
    line = first[:, None] + velocity[:, None] * time[None, :, None]
    # A path that comes back from both borders is a triangle wave.
    place = low + (room - (line.remainder(2 * room) - room).abs())
    turn = _uniform(count, -0.07, 0.07, generator)
    angle = _uniform(count, -0.3, 0.3, generator)[:, None] + turn[:, None] * time
    pace = _uniform(count, -0.35, 0.35, generator)
    phase = _uniform(count, 0, 2 * math.pi, generator)
    size = _uniform(count, 0.72, 0.86, generator)[:, None] * (1 + 0.13 * (phase[:, None] + pace[:, None] * time).sin())
    return place, angle, size


def _outline(item: torch.Tensor) -> torch.Tensor:
    """Where an item (N, 1, 28, 28) covers what is behind it, 0 to 1: its pixels and the small holes between them."""
    covered = (item > 0.04).float()
    wide = functional.max_pool2d(covered, 3, stride=1, padding=1)
    closed = 1 - functional.max_pool2d(1 - wide, 3, stride=1, padding=1)
    return torch.maximum(closed, covered)


def _grid(place: torch.Tensor, angle: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Where in the item each pixel of the frames looks, (count * frames, SIDE, SIDE, 2), in [-1, 1] and beyond."""
    middle = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    right = x - place[..., 0, None, None]
    down = y - place[..., 1, None, None]
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    half = 14 * size[..., None, None]
    return torch.stack([(cos * right + sin * down) / half, (cos * down - sin * right) / half], -1).flatten(0, 1)


def _texture(count: int, generator: torch.Generator) -> torch.Tensor:
    """Backgrounds (count, SIDE, SIDE), dark, 0 to 0.35: three plane waves."""
    middle = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    total = torch.zeros(count, SIDE, SIDE)
    for _ in range(3):
        length = _uniform(count, 6, 20, generator)
        heading = _uniform(count, 0, 2 * math.pi, generator)
        phase = _uniform(count, 0, 2 * math.pi, generator)
        wave = 2 * math.pi / length[:, None] * torch.stack([heading.cos(), heading.sin()], -1)
        total += (wave[:, 0, None, None] * x + wave[:, 1, None, None] * y + phase[:, None, None]).sin()
    strength = _uniform(count, 0.025, 0.05, generator)
    base = _uniform(count, 0.13, 0.2, generator)
    return base[:, None, None] + strength[:, None, None] * total
