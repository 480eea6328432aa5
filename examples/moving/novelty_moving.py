"""Are the model's clips new? Distance of each item to its nearest training item, beside that of held-out and of training clips.

    python examples/moving/novelty_moving.py [--count 200]

A model that looked training items up would come as near to them as clips of the training split do, which were drawn from them; one
that did not stays as far off as clips of items that it has never seen. Items are cut out of a clip's middle frame by their
brightness, moved to the middle, brought to one size and compared at angles from -70 to 70 degrees. Distances are root mean square
differences of brightness (0 to 255); what is compared with the model's clips goes through the tokeniser first, as these do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import clips
import numpy as np
import torch
from tokeniser import Tokeniser
from torch.nn import functional

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import OrtProvider, PixelDecoder

SIZE, BRIGHT, SPREAD = 28, 0.42, 6.0
"""Pixels of what is compared, the least brightness of an item, and the root of its mean square radius after scaling."""


def cut_out(frames: torch.Tensor) -> torch.Tensor:
    """Items float (N, SIZE, SIZE) of frames uint8 (N, H, W), upright or not, black around them."""
    values = frames.float() / 255
    values = torch.where(values > BRIGHT, values, 0)
    height, width = frames.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    mask = (values > 0).float()
    count = mask.sum((1, 2)).clamp(min=1)
    middle_x, middle_y = ((mask * axis).sum((1, 2)) / count for axis in (x, y))
    square = (x - middle_x[:, None, None]) ** 2 + (y - middle_y[:, None, None]) ** 2
    spread = ((mask * square).sum((1, 2)) / count).sqrt().clamp(min=1)
    own = (torch.arange(SIZE) + 0.5 - SIZE / 2) / SPREAD
    down, right = torch.meshgrid(own, own, indexing="ij")
    place_x = middle_x[:, None, None] + right * spread[:, None, None]
    place_y = middle_y[:, None, None] + down * spread[:, None, None]
    grid = torch.stack([2 * place_x / width - 1, 2 * place_y / height - 1], -1)
    return functional.grid_sample(values[:, None], grid, align_corners=False)[:, 0]


def turned(items: torch.Tensor, degrees: float) -> torch.Tensor:
    """Items (N, SIZE, SIZE), turned."""
    angle = torch.tensor(degrees * torch.pi / 180)
    matrix = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    grid = functional.affine_grid(matrix.expand(len(items), -1, -1), [len(items), 1, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(items[:, None], grid, align_corners=False)[:, 0]


def nearest(items: torch.Tensor, train: torch.Tensor) -> np.ndarray:
    """Distance (N,) of each of ``items`` to its nearest training item, at its best angle."""
    every = train.flatten(1)
    found = [torch.cdist(turned(items, degrees).flatten(1), every).min(1).values for degrees in range(-70, 71, 10)]
    return (255 * torch.stack(found).min(0).values / SIZE).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument(
        "--build", type=Path, default=Path("build/moving"), help="where train_moving.py wrote the tokeniser"
    )
    parser.add_argument("--data", type=Path, default=clips.DATA)
    arguments = parser.parse_args()
    tokeniser = Tokeniser().eval()
    tokeniser.load_state_dict(torch.load(arguments.build / "tokeniser.pt", weights_only=True))
    bundle = open_bundle("moving")
    prompts = [prompt.tokens for prompt in bundle.manifest.prompts.values()]
    settings = bundle.settings(method="scd-match")
    asked = [prompts[i % len(prompts)] for i in range(arguments.count)]
    tokens, _ = generate(OrtProvider.open(bundle), asked, length=settings.length, **settings.decoder)
    made = torch.from_numpy(PixelDecoder.open(bundle)(np.stack(tokens))[..., 0])
    kinds = {"generated": made}
    for split, name in (("t10k", "held out"), ("train", "training")):
        drawn, _ = clips.Items(split, arguments.data).clips(arguments.count, torch.Generator().manual_seed(1))
        kinds[name] = tokeniser.decode(tokeniser.encode(drawn))
    items = clips.Items("train", arguments.data).pictures.float()[:, None] / 255
    shades = torch.where(items > 0.04, 0.36 + 0.64 * items, 0)[:, 0]
    train = torch.cat([cut_out((255 * part).to(torch.uint8)) for part in shades.split(5000)])
    for name, frames in kinds.items():
        distance = nearest(cut_out(frames[:, frames.shape[1] // 2]), train)
        print(f"{name}: median {np.median(distance):.1f}, smallest {distance.min():.1f}")


if __name__ == "__main__":
    main()
