"""How a bundle's model is decoded: what was asked for, over what the bundle recommends, checked once and frozen.

`Bundle.settings` makes a `DecodingSettings`, the same for the command line, a server and a script. Its parts go on to what takes
them: ``open_model(bundle, **settings.model)``, ``Decoder(model, **settings.decoder)`` and ``settings.request(prompt)``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from coupled_sampling.arguments import check_count, checked_tokens, shown
from coupled_sampling.branching import check_room
from coupled_sampling.bundles.clips import PromptFrames
from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.settings_parts import DecoderPart, Given, ModelPart
from coupled_sampling.contracts import Sampling
from coupled_sampling.drafting import Copy, Drafting, NGram, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.guided_rows import Scale
from coupled_sampling.methods import Method, find_method
from coupled_sampling.requests import Guidance, Request, StopRule, read_interval
from coupled_sampling.windows import find_window_rule

__all__ = [
    "CORRECTIONS",
    "DecoderPart",
    "DecodingSettings",
    "Given",
    "ModelPart",
    "check_corrections",
    "decoding_settings",
]

CORRECTIONS = ("auto", "none", "plain", "fitted", "network")
"""What predicts laws under changed neighbours: the best that the bundle has, nothing, running averages, its table, its network."""

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class DecodingSettings:
    """How a model is decoded.

    Parameters
    ----------
    length
        Most tokens per sequence, fewer where a stop token comes.
    method
        Name of a method.
    window
        Slots per pass, or "auto".
    branches
        How many of these are for branches, see `coupled_sampling.branching`: 0 for none, None for what the window "auto" finds
        best, where the model can have any. For methods whose tokens are ``ar``'s.
    drafting
        Where first guesses come from.
    guidance
        Classifier-free guidance scale; 1 is none.
    guidance_interval
        "FIRST:END": the generated tokens FIRST, ..., END - 1 are guided, others drawn as without guidance. None is all of them.
    sampling
        What shapes the target law, but for the layout.
    layout
        Which tokens may stand at which generated positions; empty if all may everywhere.
    stop
        Tokens that end a sequence.
    stop_rule
        A function that ends a sequence, such as `coupled_sampling.bundles.StopStrings`.
    prompt_chunk
        Most tokens of a long prompt to read in one call; None is the model's own width.
    condition
        What the model is told besides, see `coupled_sampling.Request`.
    corrections
        What predicts the laws of redrafts whose neighbours changed, one of `CORRECTIONS`; see `Bundle.corrector`. No law and no
        losslessness depends on it. A table holds for the temperature it was fitted at and below; above it gains less.
    prompt_frames
        The frames that every prompt ends with, and what it begins with; None where it may be anything. Other prompts are refused.
    positions
        The model's positions, where ``length`` is only a wish: a longer prompt then leaves fewer tokens. None where the length is
        fixed, or was asked for.

    Raises
    ------
    InvalidArgument
        There is no such method, or a number cannot work.

    Examples
    --------
    >>> from coupled_sampling import Decoder, open_bundle
    >>> from coupled_sampling.backends import open_model
    >>> bundle = open_bundle("fashion")
    >>> settings = bundle.settings(method="scd-match", temperature=0.9)
    >>> settings.window, settings.drafting, settings.sampling.temperature
    (16, Copy(lag=14, fill=0, generated=None), 0.9)
    >>> with open_model(bundle, **settings.model) as model:
    ...     decoder = Decoder(model, **settings.decoder)
    ...     _ = decoder.add(settings.request(bundle.manifest.find_prompt("shoe"), seed=1))
    ...     while decoder.active or decoder.waiting:
    ...         commits = decoder.step()
    >>> commits[0].reason, commits[0].trace.tokens
    ('length', 196)
    """

    length: int
    method: str = "scd-gumbel"
    window: int | str = 16
    drafting: str | Drafting = "random"
    guidance: float = 1.0
    sampling: Sampling = field(default_factory=Sampling)
    layout: tuple[Span, ...] = ()
    stop: tuple[int, ...] = ()
    stop_rule: StopRule | None = None
    prompt_chunk: int | None = None
    positions: int | None = None
    corrections: str = "auto"
    branches: int | None = 0
    guidance_interval: str | None = None
    prompt_frames: PromptFrames | None = None
    condition: object = field(default=None, compare=False)  # arrays are neither equal nor unequal

    def __post_init__(self) -> None:
        find_window_rule(self.window, sys.maxsize)  # how wide the model's graphs are is asked when there is a model
        _check_branches(self.branches, self.window, find_method(self.method))
        check_corrections(self.corrections)
        check_count("length", self.length)
        if self.prompt_chunk is not None:
            check_count("prompt_chunk", self.prompt_chunk)
        if not isinstance(self.guidance, int | float) or not math.isfinite(self.guidance):
            raise InvalidArgument(f"guidance is {self.guidance!r}, expected a finite number; 1 is none")
        read_interval(self.guidance_interval or ":")
        if self.guidance_interval is not None and not self.guided:
            raise InvalidArgument(
                f"guidance_interval is {self.guidance_interval!r}, but guidance is 1: none; give it, too"
            )

    @property
    def guided(self) -> bool:
        """Whether there is guidance."""
        return self.guidance != 1

    @property
    def scale(self) -> Scale:
        """The guidance scale: a number, or with an interval a function of the index of a generated token."""
        if self.guidance_interval is None:
            return self.guidance
        within = Guidance.within(*read_interval(self.guidance_interval), self.guidance).scale
        return self.guidance if within is None else within

    @property
    def trees(self) -> bool | None:
        """Whether the model is to take windows with branches; None if it can."""
        return None if self.branches is None else self.branches > 0

    @property
    def model(self) -> ModelPart:
        """Keywords for `coupled_sampling.backends.open_model`."""
        return {
            "method": self.method,
            "guidance": self.scale,
            "warped": self.sampling.warps,
            "corrections": self.corrections,
            "trees": self.trees,
        }

    @property
    def decoder(self) -> DecoderPart:
        """Keywords for `coupled_sampling.Decoder`."""
        return {
            "method": self.method,
            "window": self.window,
            "drafting": self.drafting,
            "prompt_chunk": self.prompt_chunk,
            "branches": self.branches,
        }

    def by(self, method: str, widest: int) -> DecodingSettings:
        """These settings for another method, beside this one.

        One that takes no branches has none, and as many slots as before; ``ar``, which guesses nothing, has as many of these as the
        model takes in one pass, ``widest``.

        Raises
        ------
        InvalidArgument
            There is no such method.

        Examples
        --------
        >>> from coupled_sampling import open_bundle
        >>> settings = open_bundle("fashion").settings(method="scd-match", window=256, branches=192)
        >>> [(own.window, own.branches) for own in (settings.by(name, 196) for name in ("speculative-match", "ar"))]
        [(256, 192), (196, 0)]
        """
        found = find_method(method)
        branches = self.branches if found.refuses_branches is None else 0
        guesses = found.drafts or isinstance(self.window, str)
        window = self.window if guesses else min(int(self.window), widest)
        return replace(self, method=found.name, branches=branches, window=window)

    def request(self, prompt: Sequence[int], **changes: Any) -> Request:
        """A request to continue ``prompt``; ``changes`` are other fields of it, such as ``seed``, ``sequence`` or ``stop_rule``.

        Raises
        ------
        InvalidArgument
            A field cannot work.
        """
        (sampling,) = self.samplings([prompt])
        fields: dict[str, Any] = {"length": self.length_after(len(prompt)), "stop": self.stop, "sampling": sampling}
        return Request(prompt, **{**fields, "stop_rule": self.stop_rule, "condition": self.condition, **changes})

    def length_after(self, prompt: int) -> int:
        """Most tokens to generate after a prompt of that many: what fits, where no length was asked for."""
        if self.positions is None:
            return self.length
        # The last token generated is never an input, so it needs no position. A prompt without room for one more is refused later.
        return max(1, min(self.length, self.positions + 1 - prompt))

    def samplings(self, prompts: Sequence[Sequence[int]]) -> list[Sampling]:
        """What shapes the target law of each prompt's continuation: a layout begins where its prompt ends.

        Raises
        ------
        InvalidArgument
            A prompt has not the frames that the model goes on from.
        """
        frames = self.prompt_frames
        for prompt in prompts if frames is not None else ():
            assert frames is not None
            given = checked_tokens("prompt", prompt)
            refusal = frames.refusal(given)
            if refusal is not None:
                raise InvalidArgument(
                    f"prompt has {frames.found(given)}, expected {refusal}; give the tokens of a clip's beginning"
                )
        if not self.layout:
            return [self.sampling] * len(prompts)
        layout, others = Layout(self.layout), self.sampling.processors
        return [replace(self.sampling, processors=(*others, layout.processor(len(prompt)))) for prompt in prompts]


def decoding_settings(manifest: Manifest, given: Given | None = None) -> DecodingSettings:
    """What was given, over the defaults of a bundle.

    Parameters
    ----------
    manifest
        The bundle's manifest. Drafting rules guess what its model can generate: ``random`` draws from these tokens, and ``copy``,
        ``repeat`` and ``ngram`` begin with its fill token. Where prompts hold frames, ``copy`` and ``repeat`` copy these, too.
    given
        What the user set; by default nothing.

    Raises
    ------
    InvalidArgument
        A value cannot work, or the model has no place for it: a length of its own, guidance without an unconditional prompt, a
        window that is too wide.
    """
    chosen, defaults = given or Given(), manifest.defaults
    unknown = set(chosen) - set(Given.__annotations__)
    if unknown:
        raise InvalidArgument(
            f"settings have no {sorted(unknown)[0]}, expected some of {', '.join(Given.__annotations__)}"
        )
    widest = manifest.window_graph.max_window
    asked = chosen.get("drafting")
    drafting = _suited(find_drafting(defaults.drafting if asked is None else asked), manifest)
    window, length, chunk = chosen.get("window"), chosen.get("length"), chosen.get("prompt_chunk")
    method, branches = _or(chosen.get("method"), defaults.method), chosen.get("branches")
    if branches is None:
        # Those of the bundle go with its window, where the method takes them.
        takes = find_method(method).refuses_branches is None
        branches = defaults.branches if window is None and takes else 0
        if isinstance(window, str) and window == "auto" and takes and manifest.tree_graph is not None:
            branches = None
    elif branches:
        _check_trees(manifest)
    columns = widest if not branches or manifest.tree_graph is None else manifest.tree_graph.cache_length
    guidance = _or(chosen.get("guidance"), defaults.guidance)
    settings = DecodingSettings(
        length=_or(length, manifest.length),
        method=method,
        window=min(defaults.window, columns) if window is None else window,
        branches=branches,
        drafting=drafting,
        guidance=guidance,
        guidance_interval=_or(chosen.get("guidance_interval"), defaults.guidance_interval if guidance != 1 else None),
        sampling=Sampling(
            temperature=_or(chosen.get("temperature"), defaults.temperature),
            top_k=_or(chosen.get("top_k"), defaults.top_k),
            top_p=_or(chosen.get("top_p"), defaults.top_p),
            min_p=_or(chosen.get("min_p"), defaults.min_p),
        ),
        layout=manifest.layout,
        stop=manifest.stop_tokens,
        prompt_chunk=chunk,
        corrections=_or(chosen.get("corrections"), "auto"),
        prompt_frames=manifest.frames_of_prompt,
        positions=_positions(manifest, guided=guidance != 1)
        if length is None and not manifest.makes_pictures
        else None,
    )
    find_window_rule(settings.window, columns)
    if chunk is not None and chunk > widest:
        raise InvalidArgument(f"prompt_chunk is {chunk}, the model takes at most {widest} slots at once; ask for fewer")
    if settings.length != manifest.length and manifest.makes_pictures:
        raise InvalidArgument(f"length is {settings.length}, but this model makes exactly {manifest.length} tokens")
    interval = chosen.get("guidance_interval")
    if interval is not None and manifest.makes_pictures and read_interval(interval)[0] >= manifest.length:
        raise InvalidArgument(
            f"guidance_interval is {interval!r}, which guides none of the {manifest.length} tokens from 0 on; begin it earlier"
        )
    if settings.guided and manifest.unconditional_prompt is None:
        raise InvalidArgument(
            f"guidance is {settings.guidance}, but the bundle {manifest.name} has no unconditional prompt; leave it at 1"
        )
    return settings


def _check_branches(branches: object, window: int | str, method: Method) -> None:
    """Refuse ``branches`` that are no number, or that a method or a window has no slots for: `InvalidArgument`."""
    if branches is None:
        if window != "auto":
            raise InvalidArgument(
                f'branches is None, but window is {shown(window)}; only "auto" finds how many there should be'
            )
        return
    if isinstance(branches, bool) or not isinstance(branches, int) or branches < 0:
        raise InvalidArgument(f"branches is {shown(branches)}, expected a number of slots >= 0")
    if branches and method.refuses_branches is not None:
        raise InvalidArgument(f"branches is {branches}, but {method.refuses_branches}")
    if not isinstance(window, str):
        check_room(branches, window)


def _check_trees(manifest: Manifest) -> None:
    """Refuse branches for a model that has no graph for them: `InvalidArgument`."""
    if manifest.tree_graph is None:
        raise InvalidArgument(f"branches are asked for, but {manifest.why_no_trees}")


def check_corrections(kind: object) -> None:
    """Refuse what names no kind of corrections: `InvalidArgument`."""
    if not isinstance(kind, str) or kind not in CORRECTIONS:
        raise InvalidArgument(f"corrections is {shown(kind)}, expected one of {', '.join(CORRECTIONS)}")


def _suited(rule: Drafting, manifest: Manifest) -> Drafting:
    """``rule`` with what the model can generate, and its fill token, where the rule leaves them open."""
    tokens, fill = manifest.generated_tokens, manifest.fill_token
    if rule == Random():
        return Random(tokens.first, tokens.count)
    if isinstance(rule, Copy | NGram):
        # A lookup searches every prompt. A copy takes nothing of one but frames that go on.
        told = manifest.prompt_frames > 0 if isinstance(rule, Copy) else tokens.count != manifest.vocab_size
        some = (tokens.first, tokens.count) if told else None
        return replace(rule, fill=_or(rule.fill, fill), generated=_or(rule.generated, some))
    return rule


def _positions(manifest: Manifest, *, guided: bool) -> int:
    """Positions that a sequence may have: beside it, an unconditional prompt of several tokens may need more of them."""
    prompt = manifest.unconditional_prompt
    # One that is made of the prompt is no longer than it.
    longer = max(0, len(prompt) - manifest.shortest_prompt) if guided and isinstance(prompt, tuple) else 0
    return manifest.window_graph.max_length - longer


def _or(given: _T | None, default: _U) -> _T | _U:
    return default if given is None else given
