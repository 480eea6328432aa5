"""What a manifest says of its files: a checksum for each, and what each graph promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coupled_sampling.arguments import shown
from coupled_sampling.corrections import check_lags
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_fields
from coupled_sampling.methods import find_method
from coupled_sampling.sampling import Integers

__all__ = [
    "USES",
    "ConditionGraph",
    "CorrectionsRecord",
    "FileRecord",
    "Grid",
    "GrowingGraph",
    "PixelGraph",
    "StepGraph",
    "WindowGraph",
    "default_chunk",
    "expect",
]

_CHUNK, _LEAST_CHUNK = 256, 32
_MOST_LOGITS = 2**25
_MOST_LAYERS = 10_000
"""Whoever opens a graph makes names for two caches of each, before it sees whether they are there."""


def default_chunk(vocab_size: int, most: int) -> int:
    """In how wide calls to read prompts, of at most ``most`` tokens, where nobody says.

    For the same tokens chunks of 32 take 1.4 to 1.6 times as long as chunks of 256 on two cores, and chunks of 1,024 0.9 times;
    other rows wait for a chunk. Each slot has logits, of which a step graph makes laws: large vocabularies get narrower chunks.
    """
    return min(most, _CHUNK, max(_LEAST_CHUNK, _MOST_LOGITS // vocab_size))


def expect(condition: bool, field: str, found: object, expected: str) -> None:
    """Refuse ``field`` of a manifest unless ``condition`` holds: `BundleError`."""
    if not condition:
        raise BundleError(f"{field} is {shown(found)}, expected {expected}; export the bundle again")


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be: its SHA-256 (64 lower-case hex digits) and its size in bytes.

    Examples
    --------
    >>> from coupled_sampling.bundles import FileRecord
    >>> FileRecord(sha256="0" * 64, bytes=1024).bytes
    1024
    """

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class WindowGraph:
    """What the window graph promises; its inputs and outputs are in ``docs/bundle-format.md``.

    Parameters
    ----------
    file
        Name of the ONNX file in the bundle.
    opset
        Version of the default ONNX operator set.
    dtype
        Type of the caches, e.g. "float32"; logits are always float32.
    layers, kv_heads, head_size
        There are ``2 * layers`` caches (B, kv_heads, cache_length, head_size).
    cache_length
        S, the static number of cache columns.
    max_length
        Positions that may be used, at most S.
    max_window
        Most slots in one call, at most ``max_length``.
    has_kv_length
        Whether the graph has the input ``kv_length``.
    prompt_chunk
        Most tokens of a prompt to read in one call, at most ``max_window``; None leaves it to `Manifest.prompt_chunk`.
    domains
        Domains of operators that it has beside ONNX's own, such as "com.microsoft"; a back end without them refuses it.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> graph = open_bundle("fashion").manifest.window_graph
    >>> (graph.layers, graph.kv_heads, graph.cache_length, graph.head_size)
    (6, 6, 196, 32)
    """

    file: str
    opset: int
    dtype: str
    layers: int
    kv_heads: int
    head_size: int
    cache_length: int
    max_length: int
    max_window: int
    has_kv_length: bool
    prompt_chunk: int | None = None
    domains: tuple[str, ...] = ()

    caches: ClassVar[str] = "static"
    """Whether caches are "static", written into where a row is, or "growing"."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("opset", "layers", "kv_heads", "head_size", "cache_length", "max_length", "max_window"):
            expect(getattr(self, name) >= 1, f"window_graph.{name}", getattr(self, name), "an integer >= 1")
        expect(self.layers <= _MOST_LAYERS, "window_graph.layers", self.layers, f"at most {_MOST_LAYERS}")
        for name, limit in (("max_length", "cache_length"), ("max_window", "max_length")):
            value, most = getattr(self, name), getattr(self, limit)
            expect(value <= most, f"window_graph.{name}", value, f"at most {limit}, {most}")
        chunk = self.prompt_chunk
        fits = chunk is None or 1 <= chunk <= self.max_window
        expect(fits, "window_graph.prompt_chunk", chunk, f"an integer from 1 to max_window, {self.max_window}")


@dataclass(frozen=True)
class GrowingGraph(WindowGraph):
    """A decoder graph of somebody else: ``past`` caches go in, and ``present`` caches come out that are longer by the window.

    It is in no bundle's folder: manifests with one are made in memory, of files whose hashes nobody wrote down. ``cache_length`` is
    the most columns that a row will have.
    """

    caches: ClassVar[str] = "growing"


@dataclass(frozen=True)
class ConditionGraph:
    """From a request's ``condition``, float (n, size), to further inputs of the window graph; see ``docs/bundle-format.md``.

    Parameters
    ----------
    file
        Name of the ONNX file in the bundle.
    length
        Most vectors of a condition.
    size
        Entries of a vector.
    token
        Stands for a vector in prompts, which then begin with ``length`` tokens: there and nowhere else. None where vectors have no
        positions of their own.

    Examples
    --------
    >>> from coupled_sampling.bundles import ConditionGraph
    >>> graph = ConditionGraph("condition.onnx", length=3, size=2048, token=9)
    >>> graph.problem_of_prompt([9, 9, 9, 4]) is None
    True
    >>> print(graph.problem_of_prompt([9, 4]))
    has a prompt of 2 tokens, expected 3 or more: the first 3 positions are for the condition, where the token 9 stands for a vector
    """

    file: str
    length: int
    size: int
    token: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("length", "size"):
            expect(getattr(self, name) >= 1, f"condition_graph.{name}", getattr(self, name), "an integer >= 1")

    def problem_of_prompt(self, prompt: Sequence[int] | Integers) -> str | None:
        """What is wrong with a prompt's tokens (L,), as a sentence without its subject; None if nothing is."""
        if self.token is None:
            return None
        first = (
            f"the first {self.length} positions are for the condition, where the token {self.token} stands for a vector"
        )
        if len(prompt) < self.length:
            return f"has a prompt of {len(prompt)} tokens, expected {self.length} or more: {first}"
        late = np.flatnonzero(np.asarray(prompt)[self.length :] == self.token)
        if late.size:
            return f"has the token {self.token} at position {self.length + int(late[0])}, expected it before {self.length}: {first}"
        return None


@dataclass(frozen=True)
class StepGraph:
    """A graph for a whole step of one method; see ``docs/step-graph.md``.

    Parameters
    ----------
    file
        Name of the ONNX file in the bundle.
    method
        Name of the decoding method.
    warped
        Whether rows may have top-k, top-p and min-p.
    guided
        Whether it is for classifier-free guidance.
    scales
        What has a guidance scale of its own: each "row", or each "slot", so that scales may change with the position. Graphs that
        are not guided have neither, and say "row".
    noise
        Where race noise comes from: "ring" is a memory inside the graph, "window" an input with noise for each slot, which is how
        TensorRT takes it.
    corrected
        Whether redrafts are drawn from corrected laws, by tables that are inputs; see `coupled_sampling.corrections`.
    tree
        Whether windows may have branches. It has the caches of the bundle's `TreeGraph` then.

    Examples
    --------
    >>> from coupled_sampling.bundles import StepGraph
    >>> StepGraph("step-scd-match.onnx", "scd-match").guided
    False
    """

    file: str
    method: str
    warped: bool = False
    guided: bool = False
    noise: str = "ring"
    corrected: bool = False
    tree: bool = False
    scales: str = "row"

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            find_method(self.method)
        except InvalidArgument as error:
            raise BundleError(f"step_graphs: {error}") from error
        expect(self.noise in ("ring", "window"), "step_graphs: noise", self.noise, "'ring' or 'window'")
        usable = self.scales == "row" or (self.scales == "slot" and self.guided)
        expect(usable, "step_graphs: scales", self.scales, "'row', or 'slot' of a guided graph")

    def __str__(self) -> str:
        variant = " warped" * self.warped + " guided" * self.guided + " corrected" * self.corrected
        return f"{self.method}{variant}{' for trees' * self.tree}{' for TensorRT' * (self.noise == 'window')}"


@dataclass(frozen=True)
class Grid:
    """How the generated tokens lie in the picture, row by row; in a clip, frame by frame. ``frames`` is 0 for a picture.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> open_bundle("fashion").manifest.grid
    Grid(rows=14, columns=14, frames=0)
    """

    rows: int
    columns: int
    frames: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = {"rows": self.rows >= 1, "columns": self.columns >= 1, "frames": self.frames >= 0}
        for name, right in sizes.items():
            expect(
                right,
                f"grid.{name}",
                getattr(self, name),
                "an integer >= 1" + ", or 0 of a picture" * (name == "frames"),
            )

    @property
    def count(self) -> int:
        """How many tokens it has."""
        return max(1, self.frames) * self.rows * self.columns


@dataclass(frozen=True)
class PixelGraph:
    """A graph from ``tokens`` int64 (B, N) to ``pixels`` uint8 (B, height, width, channels), or of clips (B, frames, height, ...).

    ``frames`` is 0 for pictures. What frame j of a clip shows depends on the tokens up to its own frame of the grid only, see
    `coupled_sampling.bundles.Manifest.frames_of`.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> graph = open_bundle("fashion").manifest.pixel_graph
    >>> (graph.height, graph.width, graph.channels)
    (28, 28, 1)
    """

    file: str
    height: int
    width: int
    channels: int
    frames: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("height", "width", "channels"):
            expect(getattr(self, name) >= 1, f"pixel_graph.{name}", getattr(self, name), "an integer >= 1")
        expect(self.frames >= 0, "pixel_graph.frames", self.frames, "an integer >= 1 of a clip, or 0 of a picture")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture, (height, width, channels), or of one clip, (frames, height, width, channels)."""
        return (*((self.frames,) if self.frames else ()), self.height, self.width, self.channels)


USES = ("match", "rejection")
"""What correction tables are fitted for: the ways in which methods accept drafts."""


@dataclass(frozen=True)
class CorrectionsRecord:
    """What a bundle says of its correction tables; see `coupled_sampling.bundles.correction_tables`.

    Parameters
    ----------
    file
        Name of the file of arrays in the bundle.
    lags
        How far before a position the neighbours stand that the tables look at.
    fingerprint
        64 lower-case hex digits of what the tables were made for.
    uses
        What there is a table for: "match", "rejection" or both.
    provenance
        By use, how the table was fitted and what it did on samples kept apart: ``temperature``, ``guidance``, ``window``,
        ``samples``, ``loss``, ``method``, ``held_out``. Free JSON.
    network
        Name of the ONNX file of a network that predicts better than the tables and costs more; None if there is none.

    Examples
    --------
    >>> from coupled_sampling.bundles import CorrectionsRecord
    >>> CorrectionsRecord("corrections.npz", (1, 14), "0" * 64, ("match",), {"match": {"temperature": 1.0}}).lags
    (1, 14)
    """

    file: str
    lags: tuple[int, ...]
    fingerprint: str
    uses: tuple[str, ...]
    provenance: Mapping[str, Any]
    network: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            check_lags(self.lags)
        except InvalidArgument as error:
            raise BundleError(f"corrections: {error}") from error
        digest = len(self.fingerprint) == 64 and set(self.fingerprint) <= set("0123456789abcdef")
        expect(digest, "corrections.fingerprint", self.fingerprint, "64 lower-case hex digits")
        known = 1 <= len(self.uses) == len(set(self.uses) & set(USES))
        expect(known, "corrections.uses", self.uses, f"some of {', '.join(USES)}, each once")
