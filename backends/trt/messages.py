"""What TensorRT says: its log kept, and its errors turned into ours with the node and the option to try.

TensorRT says in a log why something failed. That it failed, its Python says in one of three ways: None or False is returned,
``TypeError`` is raised where an object could not be made by its class, and ``RuntimeError`` by some setters. The first logger of a
process is the one it goes on using, so there is one for each flavour, and each piece of work reads what was said since it began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.errors import ProviderError

__all__ = ["EngineError", "MessageLog", "message_log"]

_KEPT = 200
_REMEDIES = (
    ("not supported by a dedicated kernel", "pass decomposable=True, the default"),
    (
        "required to be 4D",
        "TensorRT knows caches of 4 axes only: step graphs with a noise ring run with ONNX Runtime (OrtStep)",
    ),
    (
        "UNSUPPORTED_NODE",
        "this operator is not TensorRT's; run the bundle with ONNX Runtime (OrtProvider), or export it again",
    ),
    ("CUDA initialization failure", "install or update the NVIDIA driver; `nvidia-smi` must work"),
    ("insufficient", "install or update the NVIDIA driver; `nvidia-smi` must work"),
    ("out of memory", "close other programs on the GPU, or use fewer row buckets, narrower windows or workspace_bytes"),
    ("OutOfMemory", "close other programs on the GPU, or use fewer row buckets, narrower windows or workspace_bytes"),
    ("Could not find any implementation", "raise workspace_bytes or optimization_level, or use another precision"),
    ("different", "the engine belongs to another GPU or version; delete it, it is built again"),
    (
        "compute capability",
        "this GPU is not one this package supports; use the other flavour (tensorrt or tensorrt-rtx)",
    ),
)
_GENERAL = "see docs/tensorrt.md, or run the bundle with ONNX Runtime (OrtProvider)"


class EngineError(ProviderError):
    """TensorRT failed: its own message, and what to try."""


class MessageLog:
    """What TensorRT said, newest last.

    Attributes
    ----------
    logger
        The ``ILogger`` to hand to TensorRT.
    messages
        (severity, text) of warnings and errors; 0 and 1 are errors.
    """

    def __init__(self, module: Any) -> None:
        self.messages: list[tuple[int, str]] = []
        messages = self.messages

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= 2:
                    messages.append((int(severity), message))
                    del messages[:-_KEPT]

        self.logger = Logger()

    def clear(self) -> None:
        """Begin a piece of work."""
        self.messages.clear()

    def error(self, doing: str, detail: str = "", otherwise: str = "TensorRT gave no reason") -> EngineError:
        """The error for a failure of ``doing``; ``detail`` is what TensorRT says better than in its log, ``otherwise`` worse."""
        said = dict.fromkeys(" ".join(text.split()) for severity, text in self.messages if severity <= 1)
        text = detail or "; ".join(said) or otherwise
        remedy = next((remedy for sign, remedy in _REMEDIES if sign in text), _GENERAL)
        return EngineError(f"{doing} failed: {text}; to do: {remedy}")

    def done(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function``, of TensorRT, returns.

        Raises
        ------
        EngineError
            It returned False, or raised.
        """
        try:
            result = function(*arguments)
        except (RuntimeError, TypeError) as error:
            raise self.error(doing, otherwise=str(error)) from error
        if result is False:
            raise self.error(doing)
        return result

    def made(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The object that ``function``, of TensorRT, makes.

        Raises
        ------
        EngineError
            It made none.
        """
        result = self.done(doing, function, *arguments)
        if result is None:
            raise self.error(doing)
        return result


_LOGS: dict[str, MessageLog] = {}


def message_log(flavour: Flavour) -> MessageLog:
    """The log of ``flavour`` in this process."""
    log = _LOGS.get(flavour.name)
    if log is None or not isinstance(log.logger, flavour.module.ILogger):
        log = _LOGS[flavour.name] = MessageLog(flavour.module)
    return log
