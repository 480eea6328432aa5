"""Picture decoders: VQGANs that turn a model's tokens into pixels, written as the pixel graph of a bundle.

- `VqDescription` says what a decoder is, `write_vq_pixel_graph` writes it, with the `PictureTokens` that say which tokens are its
  codes;
- `reference_pixels` computes the same in numpy and float64.

Which decoder belongs to a checkpoint is for its family to say (`coupled_sampling.export.families`). Encoders, which turn pixels
into tokens, are not exported.
"""

from coupled_sampling.export.pictures.description import CausalFrames, FirstFrame, Stage, VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.pixel_graph import write_vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_pixels

__all__ = [
    "CausalFrames",
    "FirstFrame",
    "PictureTokens",
    "Stage",
    "VqDescription",
    "reference_pixels",
    "write_vq_pixel_graph",
]
