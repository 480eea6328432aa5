"""Every error this library raises on purpose.

::

    CoupledSamplingError
    ├── InvalidArgument (ValueError)      an argument cannot work; nothing was started
    ├── NotOwner (RuntimeError)           a model or a decoder is in use by another decoder or thread
    ├── RequestFailed                     a request ended by a foreign exception, which is its cause
    ├── CorrectorError                    what predicts laws raised, or returned no logits; nothing was decided
    ├── ProviderError                     a logits provider broke its contract
    │   ├── InvalidLogits                 NaN, +inf or nothing but -inf: names the row and the position
    │   ├── CudaError                     a CUDA call failed: names the call; in `coupled_sampling.backends.cuda`
    │   └── EngineError                   a TensorRT engine cannot be built or run; in `coupled_sampling.backends.trt`
    ├── BundleError                       a model folder is missing, truncated, damaged or not ours
    ├── CheckpointError                   weights to export are missing, truncated, damaged, unsafe or not understood
    ├── MissingDependency (ImportError)   an optional package is needed: names the extra to install
    ├── OutputError (OSError)             a result could not be written; nothing half-written is left
    ├── CheckFailed (AssertionError)      a provider or a coupling fails its checks; in `coupled_sampling.testing`
    └── StepsDisagree (AssertionError)    two implementations of a step differ by more than ties; there, too

`SharedNoise` is a warning. Those of serving are in `coupled_sampling.serving`.

A message names what was wrong, what was received, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "CorrectorError",
    "CoupledSamplingError",
    "InvalidArgument",
    "InvalidLogits",
    "MissingDependency",
    "NotOwner",
    "OutputError",
    "ProviderError",
    "RequestFailed",
    "SharedNoise",
]


class CoupledSamplingError(Exception):
    """Base of all errors of this library."""


class InvalidArgument(CoupledSamplingError, ValueError):  # noqa: N818 - reads as what it is
    """An argument cannot work."""


class NotOwner(CoupledSamplingError, RuntimeError):  # noqa: N818
    """A model belongs to another decoder, or a decoder to another thread."""


class RequestFailed(CoupledSamplingError):  # noqa: N818
    """A request ended by an exception that is not this library's; ``__cause__`` holds it."""


class CorrectorError(CoupledSamplingError):
    """What predicts laws (`coupled_sampling.corrections`) raised or returned no logits; ``__cause__`` holds what it raised."""


class ProviderError(CoupledSamplingError):
    """A logits provider returned something its contract does not allow."""


class InvalidLogits(ProviderError):  # noqa: N818
    """Logits from which no law can be made."""


class BundleError(CoupledSamplingError):
    """A model bundle is missing, truncated, damaged, too new or not a bundle."""


class CheckpointError(CoupledSamplingError):
    """A checkpoint is missing, truncated, damaged, unsafe, or of a kind that is not read."""


class MissingDependency(CoupledSamplingError, ImportError):  # noqa: N818
    """An optional dependency is not installed."""


class OutputError(CoupledSamplingError, OSError):
    """A result could not be written."""


class SharedNoise(UserWarning):
    """A warning: two sequences under way draw with the same noise, so that equal prompts give equal tokens."""
