"""Calling the kernels: their argument tables, and the few things they ask of a device.

Four kernels make a step's decisions from its logits: ``measure``, ``settle``, ``target_laws`` and ``decide``; in windows with
branches ``walk`` takes the place of the last one. ``sweep`` draws redrafts anew where laws are corrected
(`coupled_sampling.backends.cuda.correction_tables`), and ``rank`` finds candidates where they are wanted. All have one argument, a
`DECISION`. It points to B entries of `ROW`. Both tables are laid out as the structs of the same names in
``kernels/tables.cuh``; every field has 8 bytes. ``docs/cuda-kernels.md`` says what each one means.

Two of the kernels read the logits, with several blocks for each slot where there are few slots; `blocks_per_slot` says how many.
No outcome depends on it.

`Launcher` is all that is asked of a device, in raw addresses and a stream handle.
`coupled_sampling.backends.cuda.pinned_launcher.PinnedLauncher` is one over cuda-python; an emulator can be another.

Compiled and emulated; never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.compile import CHUNK, PART_THREADS
from coupled_sampling.methods import Method

__all__ = [
    "DECISION",
    "DRAWS",
    "ROW",
    "WINDOW_DRAWS",
    "Launcher",
    "RoundTrip",
    "Span",
    "blocks_per_slot",
    "decide",
    "method_codes",
    "scratch_bytes",
    "window_noise",
]

_WHOLE, _WORD, _REAL = np.int64, np.uint64, np.float64

ROW = np.dtype(
    [
        *((name, _WHOLE) for name in ("start", "known", "recycled", "fresh", "draws", "round")),
        *((name, _WORD) for name in ("seed", "sequence", "draft_laws")),
        ("draft_laws_ahead", _WHOLE),
        ("laws", _WORD),
        *((name, _REAL) for name in ("temperature", "top_p", "min_p")),
        ("top_k", _WHOLE),
        ("guidance", _REAL),
        *((name, _WHOLE) for name in ("guidance_lag", "branches")),
    ]
)
"""One row of a batch."""

DECISION = np.dtype(
    [
        ("logits", _WORD),
        *((name, _WHOLE) for name in ("logits_type", "guided", "width", "vocab_size")),
        *((name, _WORD) for name in ("rows", "tokens_in")),
        *((name, _WHOLE) for name in ("redraft", "acceptance")),
        *((name, _WORD) for name in ("tokens", "committed", "highest_logits", "scratch")),
        ("parts", _WHOLE),
        ("corrections", _WORD),
        *((name, _WHOLE) for name in ("neighbours", "rank")),
        *((name, _WORD) for name in ("parents", "depth")),
        ("candidates", _WHOLE),
        *((name, _WORD) for name in ("candidate_tokens", "candidate_scores")),
    ]
)
"""The argument of the kernels of a step."""

DRAWS = np.dtype(
    [
        *((name, _WORD) for name in ("seed", "sequence")),
        *((name, _WHOLE) for name in ("position", "round", "vocab_size")),
        *((name, _WORD) for name in ("uniforms", "words", "weights")),
    ]
)
"""The argument of ``noise``: a position's uniforms float64 (4,), words uint64 (V,) and race weights float32 (V,); 0 for none."""

WINDOW_DRAWS = np.dtype(
    [("rows", _WORD), ("width", _WHOLE), ("vocab_size", _WHOLE), ("weights", _WORD)],
)
"""The argument of ``window_noise``: `ROW` (B,), and race weights float32 (B, W, V), slot j's those of position start + j + 1."""

_REDRAFTS = {"none": 0, "dropped": 0, "independent": 1, "maximal": 2, "gumbel": 3}
_ACCEPTANCES = {"none": 0, "rejection": 1, "match": 2}

SHARING = ("measure", "target_laws")
"""Kernels with ``parts`` blocks of `PART_THREADS` threads for each slot."""

_SITE_BYTES, _CHUNK_BYTES, _ROW_BYTES, _ALIGNMENT = 48, 16, 16, 16
_BLOCKS_PER_PROCESSOR = 1024 // PART_THREADS  # PART_BLOCKS in block.cuh


def method_codes(method: Method) -> tuple[int, int]:
    """The fields ``redraft`` and ``acceptance`` of `DECISION`.

    Examples
    --------
    >>> from coupled_sampling import METHODS
    >>> from coupled_sampling.backends.cuda import method_codes
    >>> method_codes(METHODS["scd-gumbel"])
    (3, 1)
    """
    return _REDRAFTS[method.redraft], _ACCEPTANCES[method.acceptance]


def _chunks(vocab_size: int) -> int:
    return -(-vocab_size // CHUNK)


def _in_fours(count: int) -> int:
    return -(-count // 4) * 4


def scratch_bytes(rows: int, width: int, vocab_size: int, rank: int | None = None, *, candidates: bool = False) -> int:
    """Size of the memory at ``scratch`` of a `DECISION`, through which its kernels tell each other what they found.

    With corrections it depends on their ``rank``: a row's corrected logits lie there, too, those of one slot at a time, or of all
    where ``candidates`` are wanted, since these are found in them afterwards.

    Examples
    --------
    >>> from coupled_sampling.backends.cuda import scratch_bytes
    >>> scratch_bytes(rows=1, width=64, vocab_size=65536)
    19472
    """
    without = rows * (width * (_SITE_BYTES + _CHUNK_BYTES * _chunks(vocab_size)) + _ROW_BYTES)
    if rank is None:
        return without
    slots = width if candidates else 1
    return without + _ALIGNMENT + 4 * rows * (slots * _in_fours(vocab_size) + _in_fours(rank))


def blocks_per_slot(slots: int, vocab_size: int, processors: int) -> int:
    """How many blocks share a slot.

    Parameters
    ----------
    slots
        B times W.
    vocab_size
        V. A block has at least one chunk of `CHUNK` tokens.
    processors
        Of the device. Once it has as many blocks as run at a time, more would only repeat what each of them does once.

    Returns
    -------
    int
        From 1 to the number of chunks: as few as give no block more chunks than need be. Reasoned, not measured.
    """
    chunks = _chunks(vocab_size)
    chunks_per_block = -(-chunks // max(1, processors * _BLOCKS_PER_PROCESSOR // slots))
    return -(-chunks // chunks_per_block)


class Span(NamedTuple):
    """Device memory: its address and how many bytes of it are meant."""

    pointer: int
    size: int


class RoundTrip(Protocol):
    """What goes to the device before some launches and what comes back after them: fill ``given``, `run`, read ``made``."""

    @property
    def given(self) -> NDArray[np.uint8]:
        """What is uploaded; always the same array."""
        ...

    @property
    def made(self) -> NDArray[np.uint8]:
        """What was downloaded; always the same array, written over by the next `run`."""
        ...

    def run(self) -> None:
        """Upload, launch, download, and wait for it."""
        ...


class Launcher(Protocol):
    """Device memory and launches, all in one stream, which orders them.

    Examples
    --------
    One that only says what would be launched shows what a step asks of a device:

    >>> import numpy as np
    >>> from coupled_sampling.backends.cuda import DECISION, decide
    >>> class Printing:
    ...     processors, stream = 132, 0
    ...     def launch(self, kernel, grid, parameters):
    ...         print(kernel, grid)
    >>> parameters = np.zeros((), DECISION)
    >>> parameters["width"], parameters["vocab_size"] = 16, 65536
    >>> decide(Printing(), parameters, rows=2)
    measure (256, 2)
    settle (16, 2)
    target_laws (256, 2)
    decide (16, 2)
    """

    @property
    def processors(self) -> int:
        """Streaming multiprocessors of the device; only `blocks_per_slot` asks."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        ...

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes."""
        ...

    def release(self, pointer: int) -> None:
        """Give back what `allocate` gave, once all work in the stream is done."""
        ...

    def upload(self, pointer: int, values: NDArray[Any]) -> None:
        """Copy contiguous ``values`` to the device; they may be changed as soon as this returns."""
        ...

    def download(self, pointer: int, into: NDArray[Any]) -> None:
        """Fill contiguous ``into`` from the device, after all work in the stream."""
        ...

    def wait(self, stream: int) -> None:
        """Work launched from now on begins after what is in ``stream`` now."""
        ...

    def launch(self, kernel: str, grid: tuple[int, int], parameters: NDArray[Any]) -> None:
        """Run ``kernel`` on a grid of blocks with its one argument, an array () of a structured type."""
        ...

    def round_trip(self, given: Span, made: Span, launch: Callable[[], None]) -> RoundTrip:
        """An upload to ``given``, ``launch``, whose launches are the same every time, and a download from ``made``."""
        ...


def decide(launcher: Launcher, parameters: NDArray[Any], rows: int) -> None:
    """Make a step's decisions: launch the kernels for ``rows`` rows with a `DECISION` () that is filled in.

    ``parts`` of 0 stands for `blocks_per_slot`; laws are corrected where ``corrections`` is an address, windows are trees where
    ``parents`` is one, and candidates are found where ``candidates`` is a number. Nothing is allocated and nothing waited for, so
    that launches can be captured in a CUDA graph.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends.cuda import DECISION, decide
    >>> class Printing:  # in place of a launcher, which needs a GPU
    ...     processors, stream = 132, 0
    ...     def launch(self, kernel, grid, parameters):
    ...         print(kernel, "by", int(parameters["parts"]), "blocks for a slot" if grid[0] > 16 else "(one does the work)")
    >>> parameters = np.zeros((), DECISION)
    >>> parameters["width"], parameters["vocab_size"], parameters["parts"] = 16, 65536, 4
    >>> decide(Printing(), parameters, rows=1)
    measure by 4 blocks for a slot
    settle by 4 (one does the work)
    target_laws by 4 blocks for a slot
    decide by 4 (one does the work)
    """
    width, parts = int(parameters["width"]), int(parameters["parts"])
    if not parts:
        parts = blocks_per_slot(rows * width, int(parameters["vocab_size"]), launcher.processors)
        parameters = parameters.copy()
        parameters["parts"] = parts
    for kernel in ("measure", "settle", "target_laws"):
        launcher.launch(kernel, (width * parts if kernel in SHARING else width, rows), parameters)
    if parameters["parents"]:
        launcher.launch("walk", (1, rows), parameters)
    else:
        launcher.launch("decide", (width, rows), parameters)
    if parameters["corrections"]:
        launcher.launch("sweep", (1, rows), parameters)
    if parameters["candidates"]:
        launcher.launch("rank", (width, rows), parameters)


def window_noise(launcher: Launcher, rows: int, count: int, width: int, vocab_size: int, weights: int) -> None:
    """Make the race weights of the deciding slots of a window; other slots' memory is not written.

    Parameters
    ----------
    launcher
        Where. One launch, which can be captured in a CUDA graph: ``rows`` are read when it runs.
    rows
        Address of ``count`` `ROW`.
    count, width, vocab_size
        B, W, V.
    weights
        Address of float32 (B, W, V).

    Examples
    --------
    >>> from coupled_sampling.backends.cuda import window_noise
    >>> class Printing:  # in place of a launcher, which needs a GPU
    ...     def launch(self, kernel, grid, parameters):
    ...         print(kernel, grid, parameters)
    >>> window_noise(Printing(), rows=4096, count=2, width=8, vocab_size=10000, weights=8192)
    window_noise (24, 2) (4096, 8, 10000, 8192)
    """
    parameters = np.array((rows, width, vocab_size, weights), WINDOW_DRAWS)
    launcher.launch("window_noise", (width * _chunks(vocab_size), count), parameters)
