"""What a family of models is to the exporter: a function from a checkpoint to a description, weights and ways of decoding.

A family is one file with one class. It reads the configuration through a
`coupled_sampling.export.families.config.ConfigReader`, so that a key it does not know is refused and never ignored, and gives
every canonical weight of `coupled_sampling.export.graphs.description.DecoderDescription` a place in the checkpoint. What decoding
needs beside the model, such as the tokens a picture is made of and how they are laid out, goes into `Decoding` and from
there into the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid, PaddedPrompt, Prompt
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.pictures.contract import PictureDecoder

__all__ = ["Decoding", "Exportable", "Family", "NamedByTensors", "PictureFamily"]


@dataclass(frozen=True)
class Decoding:
    """What decoding needs beside the model; the manifest's entries of the same names.

    Parameters
    ----------
    length
        Tokens per generation; 0 if the family has no usual length, as text has none.
    grid
        Rows and columns of the picture, if there is one; of a clip, with all its frames.
    prompt_frames
        Of a clip, how many of its first frames a prompt holds. The manifest's grid has the others.
    prompt_begin
        Tokens that every prompt begins with; never generated.
    layout
        Which tokens may stand where; None where all may everywhere.
    prompts
        Prompts by name, for models whose prompts are not text: classes, or an empty picture.
    unconditional_prompt
        For classifier-free guidance; None if the model was not trained for it.
    stop_tokens
        Tokens that end a sequence.
    window, drafting, temperature, top_k, top_p, guidance
        Recommended settings, those of the model's authors where they are known. Without a window it is that of other models.
    notes
        What a user must know and the manifest has no entry for, one sentence each.

    Examples
    --------
    >>> from coupled_sampling.bundles import Grid, Prompt
    >>> from coupled_sampling.export.families import Decoding
    >>> decoding = Decoding(length=196, grid=Grid(14, 14), prompts={"shirt": Prompt((258,), (), "Shirt")}, drafting="repeat")
    >>> decoding.stop_tokens, decoding.guidance
    ((), 1.0)
    """

    length: int = 0
    grid: Grid | None = None
    prompt_frames: int = 0
    prompt_begin: tuple[int, ...] = ()
    layout: Layout | None = None
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    unconditional_prompt: tuple[int, ...] | PaddedPrompt | None = None
    stop_tokens: tuple[int, ...] = ()
    window: int | None = None
    drafting: str = "random"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def generated_grid(self) -> Grid | None:
        """The part of ``grid`` that is generated."""
        if self.grid is None or not self.prompt_frames:
            return self.grid
        return replace(self.grid, frames=self.grid.frames - self.prompt_frames)

    def after(self, prompt_frames: int) -> Decoding:
        """The same after prompts of so many frames: the others of the clip are generated.

        Raises
        ------
        InvalidArgument
            This model's prompts hold no frames, or there are not so many.

        Examples
        --------
        >>> from coupled_sampling.bundles import Grid
        >>> from coupled_sampling.export.families import Decoding
        >>> Decoding(length=12, grid=Grid(2, 2, frames=5), prompt_frames=2).after(1).length
        16
        """
        if self.grid is None or not self.prompt_frames:
            raise InvalidArgument(
                f"prompt_frames is {prompt_frames}, but the prompts of this model, as it is exported, hold no frames; leave it out"
            )
        if not 1 <= prompt_frames < self.grid.frames:
            raise InvalidArgument(
                f"prompt_frames is {prompt_frames}, expected 1 to {self.grid.frames - 1} of the {self.grid.frames} frames of a clip"
            )
        changed = replace(self, prompt_frames=prompt_frames)
        assert changed.generated_grid is not None
        return replace(changed, length=changed.generated_grid.count)


@dataclass(frozen=True)
class Exportable:
    """A checkpoint understood.

    Parameters
    ----------
    family
        Name of the family.
    description
        The decoder.
    weights
        From a canonical name of ``description.weight_shapes()`` to the array, read from the checkpoint when it is called.
    decoding
        What decoding needs.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import DecoderDescription, reference_logits
    >>> from coupled_sampling.export.families import Decoding, Exportable
    >>> description = DecoderDescription(vocab_size=8, positions=16, width=4, layers=1, heads=2, mlp_width=8)
    >>> zeros = {name: np.zeros(shape, np.float32) for name, shape in description.weight_shapes().items()}
    >>> model = Exportable("mine", description, zeros.__getitem__, Decoding(length=4))
    >>> reference_logits(model.description, model.weights, np.array([0, 1])).shape
    (2, 8)
    """

    family: str
    description: DecoderDescription
    weights: Callable[[str], NDArray[Any]]
    decoding: Decoding


class Family(Protocol):
    """A family of checkpoints.

    Examples
    --------
    >>> from coupled_sampling.export.families import FAMILIES, Family
    >>> from coupled_sampling.export.families.gpt2 import Gpt2
    >>> family: Family = Gpt2()
    >>> family.name in FAMILIES, family.recognises({"model_type": "gpt2"}), family.recognises({"model_type": "llama"})
    (True, True, False)
    """

    @property
    def name(self) -> str:
        """What ``--family`` calls it."""
        ...

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this configuration is of the family."""
        ...

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        """Understand ``checkpoint``; ``positions`` shortens the longest sequence, None keeps the checkpoint's.

        Raises
        ------
        CheckpointError
            A key of the configuration is unknown or has a value that is not supported, or a tensor is missing, has another
            shape, or is left over.
        """
        ...


@runtime_checkable
class NamedByTensors(Family, Protocol):
    """A family that tells its checkpoints by the names of their tensors, where the configuration does not say what they are."""

    def recognises_tensors(self, names: Collection[str]) -> bool:
        """Whether a checkpoint with tensors of these names is of the family."""
        ...


@runtime_checkable
class PictureFamily(Family, Protocol):
    """A family that knows the decoder of its pictures, too."""

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The picture decoder of ``model``, which has a grid.

        Parameters
        ----------
        model, checkpoint
            What `load` made, and of what.
        separate
            A checkpoint of the picture decoder alone; None if there is none.

        Returns
        -------
        PictureDecoder or None
            None if neither checkpoint holds one.

        Raises
        ------
        CheckpointError
            As for `load`, or it has other codes than the model has picture tokens.
        InvalidArgument
            ``separate`` is given, but the decoder lies in ``checkpoint``.
        """
        ...
