"""Picture decoders, which turn a model's tokens into pixels, written as the pixel graph of a bundle.

- `VqDescription` says what a VQGAN is, for pictures and for Emu3's clips, `write_vq_pixel_graph` writes it, with the
  `PictureTokens` that say which tokens are its codes;
- `CausalVideoDescription` says what a tokenizer of videos is, `write_video_pixel_graph` writes its decoder, and
  `write_video_token_graph` its encoder, which makes prompts of frames;
- `reference_pixels` and `reference_video_pixels` compute the same in numpy and float64.

Which decoder belongs to a checkpoint is for its family to say (`coupled_sampling.export.families`). VQGANs' encoders, which turn
pixels into tokens, are not exported.
"""

from coupled_sampling.export.pictures.description import CausalFrames, FirstFrame, Stage, VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.pixel_graph import write_vq_pixel_graph
from coupled_sampling.export.pictures.reference import reference_pixels
from coupled_sampling.export.pictures.video_description import CausalVideoDescription, VideoStage
from coupled_sampling.export.pictures.video_pixel_graph import write_video_pixel_graph
from coupled_sampling.export.pictures.video_reference import reference_video_pixels
from coupled_sampling.export.pictures.video_token_graph import write_video_token_graph

__all__ = [
    "CausalFrames",
    "CausalVideoDescription",
    "FirstFrame",
    "PictureTokens",
    "Stage",
    "VideoStage",
    "VqDescription",
    "reference_pixels",
    "reference_video_pixels",
    "write_video_pixel_graph",
    "write_video_token_graph",
    "write_vq_pixel_graph",
]
