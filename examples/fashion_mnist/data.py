"""Fashion-MNIST pictures as sequences of codebook tokens.

A 28x28 picture is cut into 14x14 patches of 2x2 pixels; each patch becomes the index of its nearest codebook entry,
found by k-means (Lloyd 1982) on training patches. Entries are sorted by brightness so that token ids can be read by a
human.

The data is the Debian package ``dataset-fashion-mnist`` (MIT licence, Zalando SE; Xiao, Rasul, Vollgraf, arXiv
1708.07747).
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

DATA = Path("/usr/share/datasets/fashion-mnist")
GRID, PATCH = 14, 2
TOKENS = GRID * GRID
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


def load(split: str, folder: Path = DATA) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (N, 28, 28) and labels int64 (N,) of ``split`` ("train" or "t10k")."""
    images = folder / f"{split}-images-idx3-ubyte.gz"
    if not images.exists():
        raise SystemExit(f"{images} is missing: apt-get install dataset-fashion-mnist, or pass --data FOLDER")
    with gzip.open(images) as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return pixels, labels


def patches(pixels: np.ndarray) -> np.ndarray:
    """Patches float32 (N, 196, 4) of pictures (N, 28, 28), row by row."""
    cut = pixels.reshape(-1, GRID, PATCH, GRID, PATCH).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(pixels), TOKENS, PATCH * PATCH).astype(np.float32)


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index (N,) of the nearest of ``centres`` (K, D) to each of ``points`` (N, D)."""
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(100_000)])


def fit_codebook(pixels: np.ndarray, entries: int = 256, rounds: int = 25, seed: int = 0) -> np.ndarray:
    """Codebook uint8 (entries, 4) by Lloyd's algorithm on a tenth of the patches; empty clusters are reseeded."""
    generator = torch.Generator().manual_seed(seed)
    everything = torch.from_numpy(patches(pixels).reshape(-1, PATCH * PATCH))
    points = everything[torch.randperm(len(everything), generator=generator)[: len(everything) // 10]]
    distinct = points[torch.randperm(len(points), generator=generator)[: entries * 50]].unique(dim=0)
    centres = distinct[torch.randperm(len(distinct), generator=generator)[:entries]]
    for _ in range(rounds):
        owner = nearest(points, centres)
        count = torch.bincount(owner, minlength=entries).float()
        total = torch.zeros_like(centres).index_add_(0, owner, points)
        fresh = points[torch.randint(len(points), (entries,), generator=generator)]
        centres = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), fresh)
    order = centres.sum(1).argsort()
    return centres[order].round().clamp(0, 255).to(torch.uint8).numpy()


def tokenise(pixels: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Tokens int64 (N, 196) of pictures (N, 28, 28)."""
    points = torch.from_numpy(patches(pixels).reshape(-1, PATCH * PATCH))
    return nearest(points, torch.from_numpy(codebook.astype(np.float32))).numpy().reshape(-1, TOKENS)


def detokenise(tokens: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, 28, 28) of tokens (N, 196)."""
    cut = codebook[tokens].reshape(-1, GRID, GRID, PATCH, PATCH).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, GRID * PATCH, GRID * PATCH)
