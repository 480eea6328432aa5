"""`TrtProvider`: a bundle's window graph as a logits provider, run by TensorRT on a GPU.

How it is run is in `coupled_sampling.backends.trt.runner`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from coupled_sampling.backends.cuda.streams import DeviceArray
from coupled_sampling.backends.place import Place
from coupled_sampling.backends.trt.options import BuildOptions, bucket_of
from coupled_sampling.backends.trt.progress import Progress
from coupled_sampling.backends.trt.runner import OnEngine, Runner
from coupled_sampling.backends.window_tensors import window_tensors
from coupled_sampling.bounds import check_window
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers

__all__ = ["TrtProvider"]


class TrtProvider(OnEngine):
    """A `coupled_sampling.contracts.LogitsProvider` over a bundle.

    `coupled_sampling.backends.open_model` makes one; `open` makes one with an engine built by options of its own.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract; ``batch_size`` and ``max_window`` are the largest buckets.
    bundle, flavour, device, stream, options
        What runs where. Work is on ``stream``.
    runs
        What runs it.
    on_device
        Whether `forward` leaves the logits on the GPU.
    fingerprint
        Of the engine in use.
    built_because
        Why the engine was built when this provider was opened; "" if it was there.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair but what its window covers, padding included, which the next call writes
    again. One provider must not be called from two threads at once.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.backends import Place
    >>> from coupled_sampling.backends.trt import BuildOptions, TrtProvider
    >>> options = BuildOptions(row_buckets=(4,), window_buckets=(1, 8, 32), precision="float16")

    Not run here, since it needs a GPU with TensorRT:

    >>> with TrtProvider.open("fashion", Place("tensorrt"), options) as provider:  # doctest: +SKIP
    ...     pictures = generate(provider, [[258]] * 4, length=196, window=32)
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, "host")
        self.on_device = "logits" not in runner.host

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        place: Place,
        options: BuildOptions,
        *,
        on_device: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """A provider whose engine is built by ``options``, if there is none that fits.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        place
            With the back end ``tensorrt`` or ``tensorrt-rtx``; ``max_window`` is that of ``options``.
        options
            What the engine is built for.
        on_device
            Whether `forward` leaves the logits on the GPU, as a `DeviceArray`, for steps that run there.
        progress
            Told how far a build is.

        Raises
        ------
        BundleError, CudaError, EngineError, InvalidArgument, MissingDependency, OutputError, ProviderError
            As from `coupled_sampling.backends.trt.runner.Runner.open`.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        crossing = {"input_ids", "start"} | (set() if on_device else {"logits"})
        return cls(Runner.open(opened, window_tensors(opened.manifest), crossing, place, options, progress))

    @property
    def prompt_chunk(self) -> int:
        """The largest window bucket. See `coupled_sampling.contracts.ReadsPrompts`."""
        return self.max_window

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`, whose bounds are checked.

        Returns
        -------
        Array
            float32 logits (B, W, V), -inf for tokens that are never generated: a numpy array, or with ``on_device`` a `DeviceArray`
            whose content is still being made on ``stream``. The next call writes over them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            TensorRT or CUDA failed.
        """
        check_window(self, tokens, start)
        runner, width = self._runner, tokens.shape[1]
        # Padded logits would not lie together on the device, so there each width has a graph of its own.
        fit = runner.begin(start, width, width if self.on_device else bucket_of(self.options.window_buckets, width))
        runner.fill(fit, tokens)
        runner.run(fit)
        if self.on_device:
            shape = (fit.shape.rows, fit.shape.width, self.vocab_size)
            return DeviceArray(runner.memories["logits"].address, shape, np.float32, self.stream)
        self.stream.synchronize()
        return runner.value("logits", fit)[:, :width]

    def _run_blank(self, rows: int, width: int) -> None:
        self.forward(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64))
