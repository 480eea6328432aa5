"""`PixelDecoder`: a bundle's pixel graph, tokens to pictures or clips, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError

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
        found = {value.name: (value.type, value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}
        wanted: dict[str, tuple[str, list[int]]] = {
            "tokens": ("tensor(int64)", [bundle.manifest.pixel_tokens]),
            "pixels": ("tensor(uint8)", [*graph.shape]),
        }
        if not all(name in found and _agree(found[name], promised) for name, promised in wanted.items()):
            raise self._broken(f"has the inputs and outputs {found}", str(wanted))

    @classmethod
    def open(cls, bundle: Bundle | str | Path, threads: int | None = None) -> PixelDecoder:
        """A decoder for a bundle, or for what `coupled_sampling.open_bundle` takes.

        ``threads`` within an operator; None lets ONNX Runtime choose.

        Raises
        ------
        BundleError
            The bundle cannot be opened or has no pixel graph, or this is not what the manifest promises.
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
        BundleError, ProviderError
            The graph made something else than the manifest promises; ONNX Runtime failed.
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
        return np.stack([self._made(row) for row in tokens]) if len(tokens) else np.zeros((0, *self.shape), np.uint8)

    def _made(self, tokens: Integers) -> NDArray[np.uint8]:
        try:
            (pixels,) = self._session.run(["pixels"], {"tokens": tokens[None]})
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on the pixels of {len(tokens)} tokens: {in_one_line(error)}"
            ) from error
        if pixels.shape != (1, *self.shape):
            raise self._broken(f"made {pixels.shape}", str((1, *self.shape)))
        made: NDArray[np.uint8] = pixels[0]
        return made

    def _broken(self, found: str, promised: str) -> BundleError:
        return BundleError(
            f"{self.bundle.pixel_graph} {found}, the manifest promises {promised}; export the bundle again"
        )


def _agree(found: tuple[str, list[int | str]], promised: tuple[str, list[int]]) -> bool:
    """Whether a tensor's type is as promised, and its axes, those that the graph leaves open aside."""
    (kind, shape), (wanted, sizes) = found, promised
    open_or_equal = (not isinstance(own, int) or own == size for own, size in zip(shape, sizes, strict=False))
    return kind == wanted and len(shape) == len(sizes) and all(open_or_equal)
