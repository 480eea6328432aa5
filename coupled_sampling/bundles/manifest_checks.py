"""Whether the parts of a manifest agree with each other: each check raises `BundleError` for the field that contradicts another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.recommended import PaddedPrompt, Prompt
from coupled_sampling.bundles.records import ConditionGraph, PixelGraph, StepGraph, WindowGraph, expect
from coupled_sampling.bundles.window_writings import CausalGraph, TreeGraph

if TYPE_CHECKING:
    from coupled_sampling.bundles.manifest import Manifest

__all__ = ["MANIFEST", "check_manifest"]

MANIFEST = "manifest.json"


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest whose parts contradict each other.

    Raises
    ------
    BundleError
        They do.
    """
    _check_files(manifest)
    _check_tokens(manifest)
    _check_fill(manifest)
    _check_names(manifest.prompts)


def _check_files(manifest: Manifest) -> None:
    if manifest.window_graph.caches == "growing":
        return  # somebody else's files: named where they are, and promised by nobody
    for file, record in manifest.files.items():
        plain = file not in ("", ".", "..", MANIFEST) and not set(file) & set("/\\:\0")
        expect(plain, "a name in files", file, "a plain file name inside the folder")
        digest = len(record.sha256) == 64 and set(record.sha256) <= set("0123456789abcdef")
        expect(digest, f"files[{file!r}].sha256", record.sha256, "64 lower-case hex digits")
        expect(record.bytes >= 0, f"files[{file!r}].bytes", record.bytes, "a size >= 0")
    graphs: dict[str, WindowGraph | PixelGraph | StepGraph | TreeGraph | ConditionGraph | CausalGraph | None] = {
        "window_graph": manifest.window_graph,
        "pixel_graph": manifest.pixel_graph,
        "tree_graph": manifest.tree_graph,
        "condition_graph": manifest.condition_graph,
        "causal_graph": manifest.causal_graph,
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
    expect(
        manifest.condition_graph is None or manifest.causal_graph is None,
        "causal_graph",
        manifest.causal_graph,
        "none beside condition_graph: what attends to a condition has a mask",
    )
    if manifest.causal_graph is not None:
        heads, shared = manifest.causal_graph.heads, manifest.window_graph.kv_heads
        expect(heads % shared == 0, "causal_graph.heads", heads, f"a multiple of window_graph.kv_heads, {shared}")
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
    for token in manifest.prompt_begin:
        apart = 0 <= token < vocab_size and not 0 <= token - generated.first < generated.count
        expect(apart, "prompt_begin", token, f"tokens in [0, {vocab_size}) that are not generated")
    # A prompt has a token at least, and the last token generated is never an input.
    expect(manifest.length <= graph.max_length, "length", manifest.length, f"at most max_length, {graph.max_length}")
    wanted = manifest.frames_of_prompt
    least = 1 if wanted is None or not begun else len(wanted.begin) + wanted.tokens
    room = graph.max_length + 1 - manifest.length  # the last token generated is never an input
    reason = f"length is {manifest.length}, max_length {graph.max_length}"
    expect(least <= room, "prompt_frames", begun, f"frames that make prompts of at most {room} tokens: {reason}")
    for token in manifest.stop_tokens:
        expect(0 <= token < vocab_size, "stop_tokens", token, f"tokens in [0, {vocab_size})")
        whole = not manifest.makes_pictures or not _cuts_short(token, manifest)
        expect(whole, "stop_tokens", token, "none that can be generated before the end of a picture or clip")
    stands = None if manifest.condition_graph is None else manifest.condition_graph.token
    if stands is not None:
        apart = 0 <= stands < vocab_size and not 0 <= stands - generated.first < generated.count
        expect(apart, "condition_graph.token", stands, f"a token in [0, {vocab_size}) that is not generated")
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
        expect(refusal is None, field, "" if frames is None else frames.found(tokens), refusal or "")
        expect(len(tokens) <= room, field, tokens, f"at most {room} tokens: {reason}")
        condition = manifest.condition_graph
        problem = None if condition is None else condition.problem_of_prompt(tokens)
        expect(problem is None, field, tokens, f"a prompt that fits: it {problem}")


def _cuts_short(token: int, manifest: Manifest) -> bool:
    """Whether ``token`` can come before the last of the generated positions."""
    if not manifest.layout:
        return 0 <= token - manifest.generated_tokens.first < manifest.generated_tokens.count
    last = len(manifest.layout) - 1
    return any(
        0 <= token - span.first < span.count and (i < last or span.times > 1) for i, span in enumerate(manifest.layout)
    )


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
