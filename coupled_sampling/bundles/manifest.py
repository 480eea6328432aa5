"""What a bundle says about its model: frozen dataclasses that mirror ``manifest.json`` field by field.

Every class checks itself when it is made, and `Manifest` checks that its parts agree with each other, so that a
manifest that exists is one that can work, whether an exporter made it or a file. ``docs/bundle-format.md`` is the
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coupled_sampling.bundles.clips import PromptFrames, decided_frames
from coupled_sampling.bundles.layouts import Span
from coupled_sampling.bundles.manifest_checks import MANIFEST, check_manifest
from coupled_sampling.bundles.recommended import TEXT_DEFAULTS, Defaults, PaddedPrompt, Prompt
from coupled_sampling.bundles.records import (
    ConditionGraph,
    CorrectionsRecord,
    FileRecord,
    Grid,
    PixelGraph,
    StepGraph,
    WindowGraph,
    default_chunk,
    expect,
)
from coupled_sampling.bundles.window_writings import CausalGraph, TreeGraph
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = [
    "MANIFEST",
    "TEXT_DEFAULTS",
    "CausalGraph",
    "ConditionGraph",
    "CorrectionsRecord",
    "Defaults",
    "FileRecord",
    "GeneratedTokens",
    "Grid",
    "Manifest",
    "PaddedPrompt",
    "PixelGraph",
    "Prompt",
    "StepGraph",
    "TreeGraph",
    "WindowGraph",
]


@dataclass(frozen=True)
class GeneratedTokens:
    """The tokens the model can generate: ``first``, ..., ``first + count - 1``. Logits of others are -inf.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> open_bundle("fashion").manifest.generated_tokens
    GeneratedTokens(first=0, count=256)
    """

    first: int
    count: int

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its graphs.

    Parameters
    ----------
    name, description
        For people.
    files
        Every file but the manifest itself.
    window_graph, pixel_graph, tree_graph
        What the graphs promise; a model need not make pictures, nor take windows that are trees.
    step_graphs
        Graphs for whole steps, at most one for each method and variant.
    vocab_size
        V: tokens are ints in [0, V).
    generated_tokens
        The part of the vocabulary that can be generated.
    length
        Tokens per generation.
    grid
        Where they lie in the picture or clip, if they make one.
    prompt_frames
        How many frames like those of ``grid`` every prompt ends with, in tokens of the same kind: the beginning of the clip, which
        goes into the pixel graph with what is generated. 0 where prompts are no part of what is seen.
    prompt_begin
        Tokens that every prompt begins with and that are never generated, such as one that begins a video. The frames, if there are
        any, come right behind them. Empty where nobody wants certain ones.
    prompts
        Prompts by name.
    unconditional_prompt
        The prompt that says nothing, for classifier-free guidance; or how it is made of the prompt itself, a `PaddedPrompt`. None
        if the model was not trained for it.
    layout
        Which tokens may stand at which generated positions, as `coupled_sampling.bundles.layouts.Span` records; empty if all may
        everywhere. A span of one token is forced, and is no part of the picture.
    stop_tokens
        Tokens that end a sequence before its ``length``.
    tokenizer
        A file of the ``tokenizers`` library that turns text into tokens and back; None if prompts are not text.
    chat_template
        A file with the model's `coupled_sampling.bundles.ChatTemplate`; None if it has none.
    corrections
        Tables that predict laws under changed neighbours; None if none were fitted.
    defaults
        Recommended settings.
    fill_token
        What to guess at a sequence's first positions, where rules that copy have nothing to go by: the token that the model is
        likeliest to begin with. None if nobody knows. It changes how many passes are needed, and no law.
    condition_graph
        What makes inputs of the window graph of a request's ``condition``; None for a model that looks at its tokens only.
    causal_graph
        The window graph without masks; None if there is none.
    licence
        SPDX identifier.
    provenance
        Where weights and data come from, their licences, and training figures. Free JSON.

    Raises
    ------
    BundleError
        A field contradicts another one.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from coupled_sampling import open_bundle
    >>> manifest = open_bundle("fashion").manifest
    >>> manifest.name, manifest.vocab_size, manifest.licence
    ('fashion', 267, 'Apache-2.0')
    >>> replace(manifest, length=300)
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: grid is Grid(rows=14, columns=14, frames=0), expected frames, rows and columns that make...
    """

    name: str
    description: str
    files: Mapping[str, FileRecord]
    window_graph: WindowGraph
    vocab_size: int
    generated_tokens: GeneratedTokens
    length: int
    prompts: Mapping[str, Prompt]
    defaults: Defaults
    licence: str
    provenance: Mapping[str, Any]
    pixel_graph: PixelGraph | None = None
    grid: Grid | None = None
    unconditional_prompt: tuple[int, ...] | PaddedPrompt | None = None
    layout: tuple[Span, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    tokenizer: str | None = None
    step_graphs: tuple[StepGraph, ...] = ()
    chat_template: str | None = None
    corrections: CorrectionsRecord | None = None
    fill_token: int | None = None
    tree_graph: TreeGraph | None = None
    prompt_frames: int = 0
    prompt_begin: tuple[int, ...] = ()
    condition_graph: ConditionGraph | None = None
    causal_graph: CausalGraph | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        expect(self.name.strip() != "", "name", self.name, "a name")
        check_manifest(self)

    @property
    def prompt_chunk(self) -> int:
        """Most tokens of a prompt to read in one call: what the window graph's record says, or what suits most models."""
        graph = self.window_graph
        return graph.prompt_chunk or default_chunk(self.vocab_size, graph.max_window)

    @property
    def shortest_prompt(self) -> int:
        """Fewest tokens of a prompt."""
        graph = self.condition_graph
        return 1 if graph is None or graph.token is None else graph.length

    @property
    def makes_pictures(self) -> bool:
        """Whether its tokens are a picture's, or some other thing's of a fixed length; else they are a text's."""
        return self.pixel_graph is not None or self.grid is not None or bool(self.layout)

    @property
    def makes_clips(self) -> bool:
        """Whether its pixels are clips of several frames."""
        return self.pixel_graph is not None and self.pixel_graph.frames > 0

    @property
    def frame_tokens(self) -> int:
        """How far apart the tokens of a place in two frames are, forced ones between them included; 0 where there are no frames."""
        if self.grid is None or self.grid.frames + self.prompt_frames < 2:
            return 0
        return self.free_position(self.grid.rows * self.grid.columns) - self.free_position(0)

    def free_position(self, index: int) -> int:
        """Where token ``index`` of the picture stands among the generated ones: forced tokens, such as a row's end, are none."""
        position = left = 0
        for span in self.layout:
            if span.count > 1:
                if left + span.times > index:
                    break
                left += span.times
            position += span.times
        return position + index - left

    def frames_of(self, tokens: int) -> int:
        """How many frames of pixels the first ``tokens`` generated ones decide; their pixels then never change.

        A frame of the grid makes one or several frames of pixels, alike but for the first one, where the decoder is causal in
        time and its first frame stands alone. Frames of the prompt are decided before anything is generated.

        Examples
        --------
        >>> from coupled_sampling import open_bundle
        >>> manifest = open_bundle("moving").manifest
        >>> manifest.grid.frames, manifest.length, manifest.frames_of(3 * 64 + 1)
        (16, 1024, 3)
        """
        grid, pixels = self.grid, self.pixel_graph
        if grid is None or pixels is None or not pixels.frames:
            return 0
        each = grid.rows * grid.columns
        whole = sum(self.free_position((i + 1) * each - 1) < tokens for i in range(grid.frames))
        return decided_frames(pixels.frames, grid.frames + self.prompt_frames, whole + self.prompt_frames)

    @property
    def frames_of_prompt(self) -> PromptFrames | None:
        """The frames that every prompt ends with and what it begins with, if anything; see ``prompt_frames``, ``prompt_begin``."""
        if not self.prompt_frames and not self.prompt_begin:
            return None
        tokens = 0 if self.grid is None else self.prompt_frames * self.grid.rows * self.grid.columns
        first, count = self.generated_tokens.first, self.generated_tokens.count
        return PromptFrames(tokens, first, first + count - 1, self.prompt_begin)

    @property
    def pixel_tokens(self) -> int:
        """How many tokens the pixel graph takes: a generation, and the frames of the prompt, if it holds some."""
        frames = self.frames_of_prompt
        return self.length + (0 if frames is None else frames.tokens)

    def picture_tokens(self, prompt: Sequence[int], tokens: Sequence[int] | Integers) -> Integers:
        """What the pixel graph takes: the generated ``tokens``, after those of the frames that ``prompt`` ends with.

        Examples
        --------
        >>> from coupled_sampling import open_bundle
        >>> manifest = open_bundle("fashion").manifest  # whose prompts are a class
        >>> manifest.picture_tokens([257], [3, 1, 4])
        array([3, 1, 4])
        """
        frames = self.frames_of_prompt
        begun = prompt[len(prompt) - frames.tokens :] if frames is not None else ()
        return np.concatenate([np.asarray(begun, np.int64), np.asarray(tokens, np.int64)])

    @property
    def why_no_trees(self) -> str:
        """What to say where there is no `tree_graph`, and what to do."""
        if self.window_graph.caches == "growing":
            return (
                f"{self.name} is an ONNX file of somebody else's without position_ids, or without an attention_mask of 4 axes, "
                "which say what a branch sees; export the checkpoint that it was made of"
            )
        return (
            f"the bundle {self.name} has no graph for trees; `coupled-sampling step-graphs` makes a copy that has one"
        )

    def find_prompt(self, name: str) -> tuple[int, ...]:
        """Tokens of the prompt called ``name``, or with that alias; case does not matter.

        Raises
        ------
        InvalidArgument
            There is none; the message lists what there is.
        """
        wanted = name.casefold()
        for key, prompt in self.prompts.items():
            if wanted in (key.casefold(), *(alias.casefold() for alias in prompt.aliases)):
                return prompt.tokens
        listed = (
            f"{key} ({', '.join(prompt.aliases)})" if prompt.aliases else key for key, prompt in self.prompts.items()
        )
        if not self.prompts:
            raise InvalidArgument(
                f"prompt is {name!r}, but the bundle {self.name} has no prompts by name; give tokens instead"
            )
        raise InvalidArgument(f"prompt is {name!r}, expected one of: {', '.join(listed)}")
