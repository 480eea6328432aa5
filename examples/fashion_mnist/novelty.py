"""Are the model's pictures new? Distance of each to its nearest training picture, beside that of held-out pictures.

    python examples/fashion_mnist/novelty.py [--count 200]

A model that looked training pictures up would come much closer to them than pictures it has never seen do. Distances are root mean
square differences of pixels (0 to 255); held-out pictures pass through the codebook first, as the model's own do.
"""

from __future__ import annotations

import argparse

import data
import numpy as np
import torch

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.ort.provider import OrtProvider


def nearest_distance(pictures: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Distance (N,) of each of ``pictures`` to its nearest neighbour in ``train``."""
    every = torch.tensor(train.reshape(len(train), -1)).float()
    own = torch.from_numpy(pictures.reshape(len(pictures), -1)).float()
    return (torch.cdist(own, every).min(1).values / 28).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    bundle = open_bundle("fashion")
    prompts = [prompt.tokens for prompt in bundle.manifest.prompts.values()]
    tokens, _ = generate(
        OrtProvider.open(bundle), [prompts[i % len(prompts)] for i in range(count)], length=196, drafting="copy:14"
    )
    decode = PixelDecoder.open(bundle)
    train, _ = data.load("train")
    held, _ = data.load("t10k")
    codebook = decode(np.repeat(np.arange(256), 196).reshape(256, 196))[:, :2, :2, 0].reshape(256, 4)
    coded = data.detokenise(data.tokenise(held[:count], codebook), codebook)
    for name, pictures in (("generated", decode(np.stack(tokens))[..., 0]), ("held out", coded)):
        distance = nearest_distance(pictures, train)
        print(f"{name}: median {np.median(distance):.1f}, smallest {distance.min():.1f}")


if __name__ == "__main__":
    main()
