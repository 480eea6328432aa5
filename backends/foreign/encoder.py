"""`Encoder`: the first half of an encoder-decoder model, run once for each input.

Encoders differ in what they read: Whisper's a spectrogram, Moonshine's sound as it is, T5's tokens. Whatever it is, it goes in for
one input alone, so there is no padding to hide, and what comes out is the ``condition`` of a request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.foreign.graph import FLOATING, INTEGER
from coupled_sampling.backends.foreign.opening import open_foreign_session
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.fields import check_path
from coupled_sampling.running import Closing

__all__ = ["Encoder"]

NAME = "encoder_model.onnx"
FEATURES = ("input_features", "input_values", "input_ids")
OUTPUT = "last_hidden_state"


class Encoder(Closing):
    """An exported encoder on the CPU. Make one with `open`.

    Attributes
    ----------
    input
        What it reads: ``input_features`` (Whisper: a spectrogram), ``input_values`` (Moonshine: sound) or ``input_ids``
        (T5: tokens).

    Examples
    --------
    A bundle's graph is a decoder, and is refused:

    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import Encoder
    >>> Encoder.open(open_bundle("fashion").window_graph)
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: ...

    An encoder that was exported before (not run here, since it has to be exported first):

    >>> encoder = Encoder.open("whisper-tiny")  # doctest: +SKIP
    >>> encoder.input  # doctest: +SKIP
    'input_features'
    >>> encoder.encode(spectrogram).shape  # (80, 3000) in, (1500, 384) out  # doctest: +SKIP
    (1500, 384)
    """

    def __init__(self, path: Path, session: Any) -> None:
        inputs = {value.name: value for value in session.get_inputs()}
        named = [name for name in FEATURES if name in inputs]
        outputs = [value.name for value in session.get_outputs()]
        unknown = sorted(set(inputs) - {*named, "attention_mask"})
        if len(named) != 1 or unknown or OUTPUT not in outputs:
            raise BundleError(
                f"{path} has the inputs {', '.join(list(inputs)[:8])} and the outputs {', '.join(outputs[:8])}, expected one of "
                f"{', '.join(FEATURES)}, at most attention_mask beside it, and the output {OUTPUT}: give {NAME}"
            )
        self.input = named[0]
        self._path = path
        self._shape = inputs[self.input].shape[1:]
        types = {**FLOATING, **INTEGER}
        for name, value in inputs.items():
            if value.type not in types:
                raise BundleError(f"{path}: input {name!r} is {value.type}, expected one of {', '.join(types)}")
        self._types = {name: types[value.type] for name, value in inputs.items()}
        self._session = session

    @classmethod
    def open(cls, path: str | Path, threads: int | None = None) -> Encoder:
        """An encoder of a file, or of the folder of an export that has an ``encoder_model.onnx``.

        Raises
        ------
        BundleError
            The file is missing or no ONNX, its external data is missing, or its inputs and outputs are not an encoder's.
        InvalidArgument
            ``threads`` is no number of threads.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        given = check_path("path", path)
        found = [file for file in (given, given / NAME, given / "onnx" / NAME) if file.is_file()]
        if not found:
            raise BundleError(f"{given} is no file and no folder with {NAME}; give the encoder's file")
        session, _ = open_foreign_session(found[0], threads)
        return cls(found[0], session)

    def encode(self, features: ArrayLike) -> NDArray[np.floating[Any]]:
        """What the encoder says of one input.

        Parameters
        ----------
        features
            One input without padding and without an axis for a batch: float (mel bins, frames) for Whisper, float (samples,) for
            Moonshine, int (tokens,) for T5.

        Returns
        -------
        ndarray
            Floating (S, D): a request's ``condition``.

        Raises
        ------
        InvalidArgument
            ``features`` has another shape or type than the encoder reads.
        ProviderError
            ONNX Runtime failed, or the encoder was closed.
        """
        self._refuse_if_closed()
        array, wanted = np.asarray(features), self._types[self.input]
        fits = array.ndim == len(self._shape) and array.size and np.can_cast(array.dtype, wanted, "same_kind")
        fits = fits and all(
            size == given for size, given in zip(self._shape, array.shape, strict=True) if isinstance(size, int)
        )
        if not fits:
            raise InvalidArgument(
                f"features is {array.dtype} {array.shape}, expected {wanted} {tuple(self._shape)}: one {self.input} without an "
                "axis for a batch"
            )
        feeds = {self.input: np.ascontiguousarray(array, wanted)[None]}
        if "attention_mask" in self._types:
            feeds["attention_mask"] = np.ones((1, array.shape[-1]), self._types["attention_mask"])
        try:
            states: NDArray[np.floating[Any]]
            [[states]] = self._session.run([OUTPUT], feeds)
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed in {self._path} on features {array.shape}: {in_one_line(error)}"
            ) from error
        return states

    def close(self) -> None:
        """Give back all memory; the encoder cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        self._session = None
