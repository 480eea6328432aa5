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
_RESAMPLING = {
    "upsample": {"time": "conv1", "space": "conv2", "mix": "conv3"},
    "downsample": {"space": "conv1", "time": "conv2", "mix": "conv3"},
}
"""Each in the order in which they run."""


def video_places(description: CausalVideoDescription, prefix: str = "", *, encoder: bool = False) -> dict[str, Place]:
    """The place of every weight of the decoder, or of the encoder, in an archive whose names begin with ``prefix``."""
    shapes = description.encoder_shapes() if encoder else description.weight_shapes()
    stages = 0 if encoder else len(description.stages)
    return {name: Place(f"{prefix}{_tensor(name, stages)}", shape) for name, shape in shapes.items()}


def read_video_stages(checkpoint: Checkpoint, prefix: str = "", *, encoder: bool = False) -> tuple[VideoStage, ...]:
    """The decoder's stages, read off the names and shapes of its own tensors or of the encoder's.

    Raises
    ------
    CheckpointError
        There are none, or a kernel has another number of axes.
    """
    names = frozenset(checkpoint.names())
    level, kernel = f"{prefix}{'encoder.down' if encoder else 'decoder.up'}.{{}}", "conv1.0.conv3d.weight"
    count = max(1, _count(names, f"{level}.block.0.{kernel}"))
    stages = []
    for number in reversed(range(count)):
        first = f"{level.format(number)}.block.0.{kernel}"
        shape = checkpoint.info(first).shape  # refuses where there is none, and names what is near
        if len(shape) != 5:
            raise CheckpointError(f"{checkpoint.path}: tensor {first!r} has shape {shape}, expected 5 axes")
        blocks = _count(names, f"{level.format(number)}.block.{{}}.{kernel}")
        # What the encoder halves before this level, the decoder doubles after it.
        kind, owner = ("downsample", number - 1) if encoder else ("upsample", number)
        space, time = (
            f"{level.format(owner)}.{kind}.{_RESAMPLING[kind][axis]}.conv3d.weight" in names
            for axis in ("space", "time")
        )
        stages.append(VideoStage(shape[0], blocks + encoder, space=space, time=time))
    return tuple(stages)


def _count(names: frozenset[str], pattern: str) -> int:
    count = 0
    while pattern.format(count) in names:
        count += 1
    return count


def _tensor(name: str, stages: int) -> str:
    """Name in the archive, without its prefix, of the weight ``name`` of a decoder of ``stages``; of 0, of the encoder."""
    stem, part = name.rsplit(".", 1)
    head, *rest = stem.split(".")
    if head in ("quant", "post_quant"):
        return f"{head}_conv.conv3d.{part}"
    if head == "stages":
        number, kind, *below = rest
        path = [f"up.{stages - 1 - int(number)}" if stages else f"down.{number}", kind]
        path += [_RESAMPLING[kind][below[0]]] if kind in _RESAMPLING else below
    else:
        path = [head, *rest]
    # The two of a pair are in a list, and so are the attentions in space and in time.
    path = [_PARTS.get(one, _AXES.get(one, one)) for one in path]
    owner = "decoder" if stages else "encoder"
    return f"{owner}.{'.'.join(path)}.{'norm' if 'norm' in path[-1] else 'conv3d'}.{part}"
