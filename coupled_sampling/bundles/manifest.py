"""What a bundle says about its model: frozen dataclasses that mirror ``manifest.json`` field by field.

Every class checks itself when it is made, and `Manifest` checks that its parts agree with each other, so that a
manifest that exists is one that can work, whether an exporter made it or a file. ``docs/bundle-format.md`` is the
reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.records import (
    ConditionGraph,
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
from coupled_sampling.contracts import Sampling
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_fields
from coupled_sampling.methods import find_method

__all__ = [
    "MANIFEST",
    "TEXT_DEFAULTS",
    "ConditionGraph",
    "CorrectionsRecord",
    "Defaults",
    "FileRecord",
    "GeneratedTokens",
    "Grid",
    "Manifest",
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
class Prompt:
    """A prompt with a name: its tokens, other names it goes by, and a title for people.

    Examples
    --------
    >>> from coupled_sampling.bundles import Prompt
    >>> Prompt(tokens=(263,), aliases=("shoe",), title="Sneaker").tokens
    (263,)
    """

    tokens: tuple[int, ...]
    aliases: tuple[str, ...]
    title: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Defaults:
    """Settings the exporter recommends. ``drafting`` is what ``coupled_sampling.generate`` takes, as text.

    Examples
    --------
    >>> from coupled_sampling.bundles import Defaults
    >>> Defaults(method="scd-gumbel", window=16, drafting="copy:14", top_k=100).sampling().top_k
    100
    """

    method: str
    window: int
    drafting: str
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0
    branches: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            method = find_method(self.method)
            self.sampling()
        except InvalidArgument as error:
            raise BundleError(f"defaults: {error}") from error
        expect(self.window >= 1, "defaults.window", self.window, "an integer >= 1")
        most = max(0, self.window - 2) if method.refuses_branches is None else 0
        expect(0 <= self.branches <= most, "defaults.branches", self.branches, f"an integer from 0 to {most}")
        expect(math.isfinite(self.guidance), "defaults.guidance", self.guidance, "a finite number; 1 is none")

    def sampling(self) -> Sampling:
        """The settings that shape the target law."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


TEXT_DEFAULTS = Defaults(method="scd-match", window=4, drafting="ngram")
"""What suits text, where drafts are seldom right: few of them, looked up, and the tokens that one at a time would give."""


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
    prompts
        Prompts by name.
    unconditional_prompt
        The prompt that says nothing, for classifier-free guidance; None if the model was not trained for it.
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
    unconditional_prompt: tuple[int, ...] | None = None
    layout: tuple[Span, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    tokenizer: str | None = None
    step_graphs: tuple[StepGraph, ...] = ()
    chat_template: str | None = None
    corrections: CorrectionsRecord | None = None
    fill_token: int | None = None
    tree_graph: TreeGraph | None = None
    condition_graph: ConditionGraph | None = None

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
    def shortest_prompt(self) -> int:
        """Fewest tokens of a prompt."""
        graph = self.condition_graph
        return 1 if graph is None or graph.token is None else graph.length

    @property
    def makes_pictures(self) -> bool:
        """Whether its tokens are a picture's, or some other thing's of a fixed length; else they are a text's."""
        return self.pixel_graph is not None or self.grid is not None or bool(self.layout)

    @property
    def frame_tokens(self) -> int:
        """How far apart the tokens of a place in two frames are, forced ones between them included; 0 where there are no frames."""
        if self.grid is None or self.grid.frames < 2:
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
        time and its first frame stands alone.

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
        return max(0, pixels.frames - (grid.frames - whole) * -(-pixels.frames // grid.frames)) if whole else 0

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
    graphs: dict[str, WindowGraph | PixelGraph | StepGraph | TreeGraph | ConditionGraph | None] = {
        "window_graph": manifest.window_graph,
        "pixel_graph": manifest.pixel_graph,
        "tree_graph": manifest.tree_graph,
        "condition_graph": manifest.condition_graph,
    }
    graphs |= {f"step_graphs[{i}]": graph for i, graph in enumerate(manifest.step_graphs)}
    for field, graph in graphs.items():
        if graph is not None:
            expect(graph.file in manifest.files, f"{field}.file", graph.file, "a file that is listed in files")
    expect(
        manifest.condition_graph is None or not manifest.step_graphs,
        "step_graphs",
        [one.file for one in manifest.step_graphs],
        "none beside condition_graph: a step cannot be told a condition",
    )
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
        clip = grid is not None and 1 <= grid.frames <= manifest.pixel_graph.frames
        expect(
            clip, "pixel_graph.frames", manifest.pixel_graph.frames, f"a grid with at most so many frames; it is {grid}"
        )
    # A prompt has a token at least, and the last token generated is never an input.
    expect(manifest.length <= graph.max_length, "length", manifest.length, f"at most max_length, {graph.max_length}")
    for token in manifest.stop_tokens:
        expect(0 <= token < vocab_size, "stop_tokens", token, f"tokens in [0, {vocab_size})")
    stands = None if manifest.condition_graph is None else manifest.condition_graph.token
    if stands is not None:
        apart = 0 <= stands < vocab_size and not 0 <= stands - generated.first < generated.count
        expect(apart, "condition_graph.token", stands, f"a token in [0, {vocab_size}) that is not generated")
    prompts = {f"prompts[{name!r}].tokens": prompt.tokens for name, prompt in manifest.prompts.items()}
    if manifest.unconditional_prompt is not None:
        prompts["unconditional_prompt"] = manifest.unconditional_prompt
    for field, tokens in prompts.items():
        usable = len(tokens) >= 1 and all(0 <= token < vocab_size for token in tokens)
        expect(usable, field, tokens, f"one or more tokens in [0, {vocab_size})")
        room = graph.max_length + 1 - manifest.length  # the last token generated is never an input
        reason = f"length is {manifest.length}, max_length {graph.max_length}"
        expect(len(tokens) <= room, field, tokens, f"at most {room} tokens: {reason}")
        condition = manifest.condition_graph
        problem = None if condition is None else condition.problem_of_prompt(tokens)
        expect(problem is None, field, tokens, f"a prompt that fits: it {problem}")


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
