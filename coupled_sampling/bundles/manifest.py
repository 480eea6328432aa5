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
from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.recommended import TEXT_DEFAULTS, Defaults, PaddedPrompt, Prompt
from coupled_sampling.bundles.records import (
    CorrectionsRecord,
    FileRecord,
    Grid,
    PixelGraph,
    StepGraph,
    TreeGraph,
    WindowGraph,
    default_chunk,
    expect,
)
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = [
    "MANIFEST",
    "TEXT_DEFAULTS",
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

MANIFEST = "manifest.json"


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

    def __post_init__(self) -> None:
        check_fields(self)
        expect(self.name.strip() != "", "name", self.name, "a name")
        _check_files(self)
        _check_tokens(self)
        _check_fill(self)
        _check_names(self.prompts)

    @property
    def prompt_chunk(self) -> int:
        """Most tokens of a prompt to read in one call: what the window graph's record says, or what suits most models."""
        graph = self.window_graph
        return graph.prompt_chunk or default_chunk(self.vocab_size, graph.max_window)

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
        (12, 768, 3)
        """
        grid, pixels = self.grid, self.pixel_graph
        if grid is None or pixels is None or not pixels.frames:
            return 0
        each = grid.rows * grid.columns
        whole = sum(self.free_position((i + 1) * each - 1) < tokens for i in range(grid.frames))
        return decided_frames(pixels.frames, grid.frames + self.prompt_frames, whole + self.prompt_frames)

    @property
    def frames_of_prompt(self) -> PromptFrames | None:
        """The frames that every prompt ends with, if they do; see ``prompt_frames``."""
        if self.grid is None or not self.prompt_frames:
            return None
        tokens = self.prompt_frames * self.grid.rows * self.grid.columns
        first, count = self.generated_tokens.first, self.generated_tokens.count
        return PromptFrames(tokens, first, first + count - 1)

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


def _check_files(manifest: Manifest) -> None:
    if manifest.window_graph.caches == "growing":
        return  # somebody else's files: named where they are, and promised by nobody
    for file, record in manifest.files.items():
        plain = file not in ("", ".", "..", MANIFEST) and not set(file) & set("/\\:\0")
        expect(plain, "a name in files", file, "a plain file name inside the folder")
        digest = len(record.sha256) == 64 and set(record.sha256) <= set("0123456789abcdef")
        expect(digest, f"files[{file!r}].sha256", record.sha256, "64 lower-case hex digits")
        expect(record.bytes >= 0, f"files[{file!r}].bytes", record.bytes, "a size >= 0")
    graphs: dict[str, WindowGraph | PixelGraph | StepGraph | TreeGraph | None] = {
        "window_graph": manifest.window_graph,
        "pixel_graph": manifest.pixel_graph,
        "tree_graph": manifest.tree_graph,
    }
    graphs |= {f"step_graphs[{i}]": graph for i, graph in enumerate(manifest.step_graphs)}
    for field, graph in graphs.items():
        if graph is not None:
            expect(graph.file in manifest.files, f"{field}.file", graph.file, "a file that is listed in files")
    kinds: set[tuple[object, ...]] = set()
    for i, one in enumerate(manifest.step_graphs):
        kind = (one.method, one.warped, one.guided, one.noise, one.corrected, one.tree)
        expect(kind not in kinds, f"step_graphs[{i}]", manifest.step_graphs[i], "another method or variant")
        caches = manifest.tree_graph is not None or not one.tree
        expect(
            caches,
            f"step_graphs[{i}]",
            manifest.step_graphs[i],
            "a tree_graph beside it, which says what caches it has",
        )
        kinds.add(kind)
    named = {"tokenizer": manifest.tokenizer, "chat_template": manifest.chat_template}
    if manifest.corrections is not None:
        named |= {"corrections.file": manifest.corrections.file, "corrections.network": manifest.corrections.network}
    for field, name in named.items():
        expect(name is None or name in manifest.files, field, name, "a file that is listed in files")


def _check_tokens(manifest: Manifest) -> None:
    vocab_size, generated, graph = manifest.vocab_size, manifest.generated_tokens, manifest.window_graph
    expect(vocab_size >= 1, "vocab_size", vocab_size, "an integer >= 1")
    inside = generated.first >= 0 and generated.count >= 1 and generated.first + generated.count <= vocab_size
    expect(inside, "generated_tokens", generated, f"a range inside [0, {vocab_size})")
    expect(manifest.length >= 1, "length", manifest.length, "an integer >= 1")
    if manifest.defaults.branches:
        expect(
            manifest.tree_graph is not None, "defaults.branches", manifest.defaults.branches, "0 without a tree_graph"
        )
    if manifest.tree_graph is not None:
        columns, least = manifest.tree_graph.cache_length, graph.max_length
        expect(columns >= least, "tree_graph.cache_length", columns, f"at least max_length, {least}")
    grid, picture = manifest.grid, manifest.length
    if manifest.layout:
        layout = Layout(manifest.layout)
        expect(layout.length == manifest.length, "layout", layout.length, f"spans that cover length, {manifest.length}")
        # Counted, not listed: `Layout.free` makes an entry for each.
        picture = sum(span.times for span in manifest.layout if span.count > 1)
        for i, span in enumerate(manifest.layout):
            inside = generated.first <= span.first and span.first + span.count <= generated.first + generated.count
            expect(inside, f"layout[{i}]", span, "a range inside generated_tokens")
    covers = grid is None or grid.count == picture
    expect(
        covers,
        "grid",
        grid,
        f"frames, rows and columns that make the {picture} generated positions that are not forced",
    )
    if manifest.pixel_graph is not None and manifest.pixel_graph.frames:
        made = manifest.pixel_graph.frames
        clip = grid is not None and 1 <= grid.frames <= made - manifest.prompt_frames
        expect(clip, "pixel_graph.frames", made, f"a grid with at most so many frames; it is {grid}")
    begun = manifest.prompt_frames
    possible = begun > 0 and grid is not None and grid.frames > 0 and not manifest.layout
    expect(
        begun == 0 or possible,
        "prompt_frames",
        begun,
        "0, or frames of a clip, which has a grid with frames and no layout",
    )
    # A prompt has a token at least, and the last token generated is never an input.
    expect(manifest.length <= graph.max_length, "length", manifest.length, f"at most max_length, {graph.max_length}")
    for token in manifest.stop_tokens:
        expect(0 <= token < vocab_size, "stop_tokens", token, f"tokens in [0, {vocab_size})")
    prompts = {f"prompts[{name!r}].tokens": prompt.tokens for name, prompt in manifest.prompts.items()}
    said = manifest.unconditional_prompt
    if isinstance(said, PaddedPrompt):
        expect(0 <= said.pad < vocab_size, "unconditional_prompt.pad", said.pad, f"a token in [0, {vocab_size})")
    elif said is not None:
        prompts["unconditional_prompt"] = said
    for field, tokens in prompts.items():
        usable = len(tokens) >= 1 and all(0 <= token < vocab_size for token in tokens)
        expect(usable, field, tokens, f"one or more tokens in [0, {vocab_size})")
        frames = manifest.frames_of_prompt
        refusal = None if frames is None else frames.refusal(tokens)
        expect(refusal is None, field, f"{len(tokens)} tokens", refusal or "")
        room = graph.max_length + 1 - manifest.length  # the last token generated is never an input
        reason = f"length is {manifest.length}, max_length {graph.max_length}"
        expect(len(tokens) <= room, field, tokens, f"at most {room} tokens: {reason}")


def _check_fill(manifest: Manifest) -> None:
    token, generated = manifest.fill_token, manifest.generated_tokens
    if token is None:
        return
    possible = 0 <= token - generated.first < generated.count
    expect(possible, "fill_token", token, f"one of generated_tokens, {generated.count} from {generated.first} on")
    if manifest.layout:
        first = manifest.layout[0]
        begins = 0 <= token - first.first < first.count
        expect(begins, "fill_token", token, f"what layout[0] lets begin, {first.count} from {first.first} on")


def _check_names(prompts: Mapping[str, Prompt]) -> None:
    owners: dict[str, str] = {}
    for name, prompt in prompts.items():
        for alias in {word.casefold() for word in (name, *prompt.aliases)}:
            expect(alias not in owners, f"prompts[{name!r}]", alias, f"a name {owners.get(alias)!r} does not have")
            owners[alias] = name
