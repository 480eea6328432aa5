"""What Cosmos' archives call the weights of a tokenizer of videos, and where they are in one.

Stages are counted in the order in which the decoder runs them, which the archives count from the end. A pair of convolutions is a
list of two. Names of `CausalVideoDescription.weight_shapes` and of the archive have the same shapes.

Source: nvidia-cosmos/cosmos-predict1 at 4ed35fa, ``cosmos_predict1/autoregressive/tokenizer/modules.py``.
"""

from __future__ import annotations

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place
from coupled_sampling.export.pictures.video_description import CausalVideoDescription, VideoStage

__all__ = ["read_video_stages", "video_places"]

_PARTS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "proj_out",
    "shortcut": "nin_shortcut",
    "attention": "attn_1",
}
_AXES = {"space": "0", "time": "1"}
_RESAMPLING = {"time": "conv1", "space": "conv2", "mix": "conv3"}


def video_places(description: CausalVideoDescription, prefix: str = "") -> dict[str, Place]:
    """The place of every weight of the decoder in an archive whose names begin with ``prefix``."""
    stages = len(description.stages)
    shapes = description.weight_shapes()
    return {name: Place(f"{prefix}{_tensor(name, stages)}", shape) for name, shape in shapes.items()}


def read_video_stages(checkpoint: Checkpoint, prefix: str = "") -> tuple[VideoStage, ...]:
    """The stages, read off the names and shapes of tensors.

    Raises
    ------
    CheckpointError
        There are none, or a kernel has another number of axes.
    """
    names = frozenset(checkpoint.names())
    count = _count(names, f"{prefix}decoder.up.{{}}.block.0.conv1.0.conv3d.weight")
    stages = []
    for i in range(max(1, count)):
        stage = f"{prefix}decoder.up.{max(1, count) - 1 - i}"
        kernel = f"{stage}.block.0.conv1.0.conv3d.weight"
        shape = checkpoint.info(kernel).shape  # refuses where there is none, and names what is near
        if len(shape) != 5:
            raise CheckpointError(f"{checkpoint.path}: tensor {kernel!r} has shape {shape}, expected 5 axes")
        blocks = _count(names, f"{stage}.block.{{}}.conv1.0.conv3d.weight")
        time, space = (f"{stage}.upsample.{_RESAMPLING[axis]}.conv3d.weight" in names for axis in ("time", "space"))
        stages.append(VideoStage(shape[0], blocks, space=space, time=time))
    return tuple(stages)


def _count(names: frozenset[str], pattern: str) -> int:
    count = 0
    while pattern.format(count) in names:
        count += 1
    return count


def _tensor(name: str, stages: int) -> str:
    """Name in the archive, without its prefix, of the weight ``name``."""
    stem, part = name.rsplit(".", 1)
    head, *rest = stem.split(".")
    if head == "post_quant":
        return f"post_quant_conv.conv3d.{part}"
    if head == "stages":
        number, kind, *below = rest
        path = [f"up.{stages - 1 - int(number)}", kind]
        path += [_RESAMPLING[below[0]]] if kind == "upsample" else below
    else:
        path = [head, *rest]
    # The two of a pair are in a list, and so are the attentions in space and in time.
    path = [_PARTS.get(one, _AXES.get(one, one)) for one in path]
    return f"decoder.{'.'.join(path)}.{'norm' if 'norm' in path[-1] else 'conv3d'}.{part}"
