"""ONNX Runtime's TensorRT execution provider over its CUDA one: what it is told, and where its engines lie.

**Written, never run**: there was neither a GPU nor ``libnvinfer``. Tested on a stand-in, and with ``onnxruntime-gpu`` 1.28.0 and
1.31.1 as far as their refusal to load TensorRT. For whole engines see `coupled_sampling.backends.trt`.

ONNX Runtime gives TensorRT what TensorRT's parser takes and keeps the rest on CUDA. By default three operators are kept from it:

- ``Attention``, which its parser takes since 10.14: in float32 there is no fused kernel (tried with TensorRT-RTX 1.7), so that an
  engine can only be built with the layer's ``decomposable`` set after parsing, which ONNX Runtime has no option for;
- ``TensorScatter``, which its parser takes in 10.15: it must write past and present at one address, which a binding gives to a
  whole graph, and nobody promises for the parts that it is cut into; CUDA's own kernel writes in place;
- ``Slice``, which has nothing to compute, and would send the caches through TensorRT between those two.

So TensorRT gets matrices, norms and activations, in several engines. Each is tuned for the shapes seen so far and is built again
when one lies outside, so `OrtCudaProvider` runs the largest and the smallest window when it opens. Explicit profiles
(``trt_profile_min_shapes`` and its siblings) must name every input of every part, which depend on how ONNX Runtime cuts the graph;
to set them nevertheless, use ``more``.

ONNX Runtime names engines by the names in a graph, not by its weights: a model trained further would be run with the engines of
the old weights. So every fingerprint (graph, weights, version, options) has a folder of its own here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coupled_sampling.backends.ort.gpu_session import TENSORRT
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import InvalidArgument, OutputError, ProviderError

__all__ = ["TensorrtOptions", "engines_folder", "refuse_idle_tensorrt"]

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


@dataclass(frozen=True)
class TensorrtOptions:
    """What ONNX Runtime's TensorRT execution provider is told.

    Parameters
    ----------
    engines
        Folder of the engines; None is ``<bundle>.engines`` beside the bundle's folder. Engines contain code: let only yourself
        write there.
    fp16
        Whether TensorRT may compute in float16. The law is then that of the rounded computation.
    tf32
        Whether TensorRT may round float32 products to 10 bits of mantissa. It does by default, and ONNX Runtime has no option
        for it: with False, the environment variable NVIDIA_TF32_OVERRIDE must be 0 before CUDA is first used, and it is refused
        otherwise.
    max_window
        Most slots in a call, for which engines are tuned; None is the bundle's.
    excluded
        Operators kept from TensorRT.
    more
        Further options of the execution provider, by their names (``trt_...``). They are not checked.

    Raises
    ------
    InvalidArgument
        An option is none of the values it can have, or TF32 is neither allowed nor switched off.
    """

    engines: Path | str | None = None
    fp16: bool = False
    tf32: bool = False
    max_window: int | None = None
    excluded: Sequence[str] = ("Attention", "TensorScatter", "Slice")
    more: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("fp16", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgument(f"{name} is {getattr(self, name)!r}, expected True or False")
        width = self.max_window
        if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
            raise InvalidArgument(f"max_window is {width!r}, expected a number of slots >= 1, or None")
        if isinstance(self.excluded, str):
            raise InvalidArgument(f"excluded is {self.excluded!r}, expected a sequence of operators' names")
        foreign = [name for name in self.more if not name.startswith("trt_")]
        if foreign:
            raise InvalidArgument(f"more has {foreign[0]!r}, expected options of TensorRT, which begin with 'trt_'")
        if not self.tf32 and os.environ.get(TF32_OVERRIDE) != "0":
            raise InvalidArgument(
                f"tf32 is False, but {TF32_OVERRIDE} is {os.environ.get(TF32_OVERRIDE)!r}: TensorRT rounds float32 products to 10 "
                f"bits of mantissa unless that variable is 0, and ONNX Runtime has no option for it. Start Python with "
                f"{TF32_OVERRIDE}=0, or allow it with tf32=True"
            )

    def settings(self, device: int, folder: Path) -> dict[str, str]:
        """Options of the execution provider on a GPU, with engines in ``folder``."""
        return {
            "device_id": str(device),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
            "trt_fp16_enable": str(int(self.fp16)),
            "trt_op_types_to_exclude": ",".join(self.excluded),
            **self.more,
        }

    def folder(self, bundle: Bundle, device: int, version: str) -> Path:
        """Where the engines of this graph, these weights and these options lie, for that version of ONNX Runtime."""
        files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
        facts = [bundle.manifest.window_graph.file, files, self.settings(device, Path()), self.tf32, version]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        place = bundle.folder.absolute()
        beside = place.with_name(f"{place.name}.engines") if self.engines is None else Path(self.engines)
        return beside / f"onnxruntime-{digest}"


@contextlib.contextmanager
def engines_folder(folder: Path) -> Iterator[None]:
    """Make ``folder``; it goes again, and the one it is in, if the block fails and nothing is in them.

    Raises
    ------
    OutputError
        It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; pass engines=, a folder that is yours") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write into {folder}: no permission; pass engines=, a folder that is yours")
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a folder with something in it stays
            folder.rmdir()
            folder.parent.rmdir()
        raise


def refuse_idle_tensorrt(placed: Mapping[str, Counter[str]], graph: Path) -> None:
    """Raise `ProviderError` if TensorRT, which was asked for, takes no node."""
    if not placed.get(TENSORRT):
        elsewhere = ", ".join(f"{name} ({sum(found.values())})" for name, found in sorted(placed.items()))
        raise ProviderError(
            f"TensorRT takes no node of {graph}, all are on others: {elsewhere}; ONNX Runtime's log says why. Use the backend "
            "'cuda', which is the same"
        )
