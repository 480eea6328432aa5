"""`PixelDecoder`: a bundle's pixel graph, tokens to pictures or clips, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import BundleError, InvalidArgument

__all__ = ["PixelDecoder"]


class PixelDecoder:
    """Pictures, or clips, of generated tokens. Make one with `open`.

    Attributes
    ----------
    shape
        (height, width, channels) of a picture, (frames, height, width, channels) of a clip.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends import PixelDecoder
    >>> decoder = PixelDecoder.open("fashion")
    >>> pictures = decoder(np.full((1, 196), 7))  # a picture that is all code 7
    >>> pictures.shape, pictures.dtype
    ((1, 28, 28, 1), dtype('uint8'))
    """

    def __init__(self, bundle: Bundle, session: Any) -> None:
        graph = bundle.manifest.pixel_graph
        if graph is None:
            raise BundleError(f"{bundle.folder} has no pixel graph: its model makes no pictures; use the tokens")
        self.bundle = bundle
        self.shape = graph.shape
        self._session = session

    @classmethod
    def open(cls, bundle: Bundle | str | Path, threads: int | None = None) -> PixelDecoder:
        """A decoder for a bundle, or for what `coupled_sampling.open_bundle` takes.

        ``threads`` within an operator; None lets ONNX Runtime choose.

        Raises
        ------
        BundleError
            The bundle cannot be opened or has no pixel graph.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        graph = opened.pixel_graph
        return cls(opened, None if graph is None else open_session(graph, threads))

    def __call__(self, tokens: Integers) -> NDArray[np.uint8]:
        """Pictures uint8 (B, height, width, channels), or clips uint8 (B, frames, height, width, channels), of tokens int64 (B, N).

        Raises
        ------
        InvalidArgument
            The shape or type is wrong, or a token has no pixels.
        """
        manifest = self.bundle.manifest
        shape, wanted = getattr(tokens, "shape", None), manifest.pixel_tokens
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int64 or tokens.shape[1:] != (wanted,):
            found = f"{getattr(tokens, 'dtype', type(tokens).__name__)} {shape}"
            begun = ", of Manifest.picture_tokens: those of the prompt's frames first" if manifest.prompt_frames else ""
            raise InvalidArgument(f"tokens is {found}, expected a numpy int64 array (pictures, {wanted}){begun}")
        first, count = manifest.generated_tokens.first, manifest.generated_tokens.count
        outside = np.argwhere((tokens < first) | (tokens >= first + count))
        if len(outside):
            row, index = outside[0]
            raise InvalidArgument(
                f"picture {row}, token {index} is {tokens[row, index]}, expected tokens in [{first}, {first + count}): "
                "only generated tokens have pixels"
            )
        # One at a time: a convolutional decoder needs hundreds of megabytes for each picture in a call.
        pixels = [self._session.run(["pixels"], {"tokens": row[None]})[0] for row in tokens]
        return np.concatenate(pixels) if pixels else np.zeros((0, *self.shape), np.uint8)
