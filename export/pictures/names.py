"""What checkpoints call the weights of a VQGAN decoder, and where they are in one.

Everybody's decoder descends from taming-transformers and keeps most of its names; `Naming` says what differs. Stages are counted
in the order in which they run, which taming-transformers counts from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, read_places
from coupled_sampling.export.pictures.description import TAPS, Stage, VqDescription

__all__ = [
    "LLAMAGEN",
    "TAMING",
    "TRANSFORMERS_EMU3",
    "TRANSFORMERS_JANUS",
    "Naming",
    "places",
    "read_stages",
    "weights",
]

_PARTS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "proj_out",
    "shortcut": "nin_shortcut",
    "upsample": "upsample.conv",
}
_LINEAR_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
_CONDITIONS = {"scale": "conv_y", "shift": "conv_b"}
_STATISTICS = {"mean": "running_mean", "variance": "running_var"}
_LAST_TAP = -1


@dataclass(frozen=True)
class Naming:
    """Names in one kind of checkpoint.

    Parameters
    ----------
    block_1, attention, block_2
        The middle.
    stages
        The list of stages.
    last_first
        Whether the stages are counted from the one that runs last.
    block
        The list of blocks in a stage.
    linear
        Whether maps of attentions are linear layers, and their norms are beside them (transformers' Emu3).
    """

    block_1: str = "mid.block_1"
    attention: str = "mid.attn_1"
    block_2: str = "mid.block_2"
    stages: str = "up"
    last_first: bool = False
    block: str = "block"
    linear: bool = False

    def stage(self, number: int, count: int) -> str:
        """Name of stage ``number`` of ``count``, in the order in which they run."""
        return f"decoder.{self.stages}.{count - 1 - number if self.last_first else number}"


TAMING = Naming(last_first=True)
"""taming-transformers, Chameleon's and BAAI's Emu3."""

TRANSFORMERS_JANUS = Naming()

LLAMAGEN = Naming("mid.0", "mid.1", "mid.2", stages="conv_blocks", block="res")
"""LlamaGen and DeepSeek's Janus."""

TRANSFORMERS_EMU3 = Naming(
    "middle_block.block_1",
    "middle_block.attn_1",
    "middle_block.block_2",
    stages="up_block.up",
    last_first=True,
    linear=True,
)


def places(description: VqDescription, naming: Naming, prefix: str) -> dict[str, Place]:
    """The place of every weight of ``description`` in a checkpoint whose names begin with ``prefix``."""
    found = {}
    for name, shape in description.weight_shapes().items():
        tensor = _tensor(name, naming, len(description.stages), frame=description.frame is not None)
        stored, weight = shape, _as_stored
        if description.frame is not None and len(shape) == 4 and name.startswith(("frame.", "post_quant.")):
            stored = (*shape[:2], TAPS, *shape[2:])
            weight = _last_tap
        elif naming.linear and tensor.endswith(tuple(f"{part}.weight" for part in _LINEAR_PARTS.values())):
            stored, weight = shape[:2], partial(_reshaped, shape)
        found[name] = Place(f"{prefix}{tensor}", stored, weight)
    return found


def weights(
    checkpoint: Checkpoint, description: VqDescription, naming: Naming, prefix: str = "", unused: Collection[str] = ()
) -> Callable[[str], NDArray[Any]]:
    """Check that all weights are in ``checkpoint``; what comes back reads one by its canonical name.

    Parameters
    ----------
    prefix
        What the names of the decoder's tensors begin with.
    unused
        Beginnings, after ``prefix``, of tensors that a decoder does not use. Everything that has another beginning than
        ``prefix`` is of no concern.

    Raises
    ------
    CheckpointError
        A tensor is missing, has another shape, or is left over.
    """
    ignored = tuple(f"{prefix}{beginning}" for beginning in unused)
    others = [name for name in checkpoint.names() if not name.startswith(prefix) or name.startswith(ignored)]
    return read_places(checkpoint, places(description, naming, prefix), (*others, ".num_batches_tracked"))


def read_stages(checkpoint: Checkpoint, naming: Naming, prefix: str = "") -> tuple[Stage, ...]:
    """The stages, read off the names and shapes of tensors, for checkpoints that say them nowhere else.

    Raises
    ------
    CheckpointError
        There are none.
    """
    count = _count(checkpoint, f"{prefix}decoder.{naming.stages}.{{}}.{naming.block}.0.conv1.weight")
    if not count:
        checkpoint.info(
            f"{prefix}{naming.stage(0, 1)}.{naming.block}.0.conv1.weight"
        )  # refuses, and names what is near
    stages = []
    for i in range(count):
        stage = f"{prefix}{naming.stage(i, count)}"
        shape = checkpoint.info(f"{stage}.{naming.block}.0.conv1.weight").shape
        if len(shape) != 4:
            raise CheckpointError(
                f"{checkpoint.path}: tensor '{stage}.{naming.block}.0.conv1.weight' has shape {shape}, expected 4 axes"
            )
        blocks = _count(checkpoint, f"{stage}.{naming.block}.{{}}.conv1.weight")
        stages.append(Stage(shape[0], blocks, any(name.startswith(f"{stage}.attn.") for name in checkpoint.names())))
    return tuple(stages)


def _count(checkpoint: Checkpoint, pattern: str) -> int:
    count = 0
    while pattern.format(count) in checkpoint:
        count += 1
    return count


def _tensor(name: str, naming: Naming, stages: int, *, frame: bool) -> str:
    """Name in the checkpoint, without its prefix, of the weight ``name``."""
    if name == "codebook":
        return "quantize.embedding.weight"
    stem, part = name.rsplit(".", 1)
    if stem == "post_quant":
        return f"post_quant_conv.conv.{part}" if frame else f"post_quant_conv.{part}"
    head, *rest = stem.split(".")
    if head == "frame":
        return _frame_tensor(rest, _STATISTICS.get(part, part))
    if head == "mid":
        return f"{_inner_tensor(f'decoder.{getattr(naming, rest[0])}', rest[1:], naming, frame=frame)}.{part}"
    if head == "stages":
        number, kind, *below = rest
        stage = naming.stage(int(number), stages)
        if kind == "upsample":
            return f"{stage}.{_PARTS[kind]}.{part}"
        kind = "attn" if kind == "attention" else naming.block
        return f"{_inner_tensor(f'{stage}.{kind}.{below[0]}', below[1:], naming, frame=frame)}.{part}"
    return f"{_inner_tensor('decoder', [head, *rest], naming, frame=frame)}.{part}"


def _inner_tensor(owner: str, path: list[str], naming: Naming, *, frame: bool) -> str:
    """Name of a convolution or norm inside a block or an attention called ``owner``."""
    kind, *condition = path
    if "norm" in kind:
        if kind == "norm" and naming.linear:
            # decoder.middle_block.attn_1 has its norm in attn_norm, up.3.attn.0 in attn_norms.0.
            beside = owner.replace(".attn_1", ".attn_norm").replace(".attn.", ".attn_norms.")
        else:
            beside = f"{owner}.{kind}"
        if condition:
            return f"{beside}.{_CONDITIONS[condition[0]]}"
        return f"{beside}.norm_layer" if frame else beside
    table = _PARTS | _LINEAR_PARTS if naming.linear else _PARTS
    return f"{owner}.{table.get(kind, kind)}"


def _frame_tensor(path: list[str], part: str) -> str:
    kind, number, *below = path
    if kind == "convolution":
        return f"decoder.time_conv.{number}.conv.conv.{part}"
    inner = f"{below[0]}.conv" if below[0].startswith("conv") else below[0]
    return f"decoder.time_res_stack.{number}.{inner}.{part}"


def _as_stored(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _last_tap(array: NDArray[Any]) -> NDArray[Any]:
    return array[:, :, _LAST_TAP]


def _reshaped(shape: tuple[int, ...], array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(shape)
