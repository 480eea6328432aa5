"""Does a logits provider keep its contract? For the author of a backend, on the real engine.

::

    from coupled_sampling.testing import check_provider

    print(check_provider(engine, tolerance=1e-3))          # raises CheckFailed with every failure by name
    print(provider_report(engine, tolerance=1e-3))         # never raises for a failure

The engine is spoken to through `coupled_sampling.contracts.LogitsProvider` alone. It is its own yardstick: what it
says of a sequence forwarded alone must not change when the same tokens are cut into other windows, sit in other rows, or
follow on a rollback. `coupled_sampling.testing.contracts.provider_checks` holds the checks, and says what they cannot see;
`coupled_sampling.testing.contracts.offer_checks` those of what a provider need not offer, such as ranges of rows and forks, and
`coupled_sampling.testing.contracts.tree_checks` those of windows that are trees.

Differences are the largest absolute difference of two log-probabilities after log-softmax, in float64. The default of
1e-3 suits float32 (real models differ by 1e-6 to 1e-4 between window widths); float16 and bfloat16 engines need about 0.05 to
0.2. A token forbidden on one side only is an infinite difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

from coupled_sampling.contracts import (
    Array,
    LogitsProvider,
    ReadsPrompts,
    RequestObserver,
    RowRanges,
    Selective,
    Trees,
)
from coupled_sampling.testing.arguments import check_callable, check_names, check_tolerance
from coupled_sampling.testing.contracts import offer_checks as offers
from coupled_sampling.testing.contracts import provider_checks as checks
from coupled_sampling.testing.contracts import tree_checks as trees
from coupled_sampling.testing.contracts.probe import Probe, Record
from coupled_sampling.testing.contracts.report import CheckFailed, CheckResult, Report

__all__ = ["PROVIDER_CHECKS", "check_provider", "provider_report"]


def _always(provider: LogitsProvider) -> bool:
    return True


def _offers(protocol: Any) -> Callable[[LogitsProvider], bool]:
    return lambda provider: isinstance(provider, protocol)


class Check(NamedTuple):
    """A check, and what a failure of it usually means."""

    run: Callable[[Probe, Record], None]
    advice: str
    offered: Callable[[LogitsProvider], bool] = _always
    """Whether there is something to check: what is optional need not be there."""


STALE = (
    "State of an earlier call was used: write every slot of the window at its own position, whatever was there before"
)

PROVIDER_CHECKS: dict[str, Check] = {
    "begin": Check(
        offers.begin,
        "begin(row, request) is given a whole Request: its tokens are request.prompt, int64 (L,), and what is asked of the model "
        "besides is request.condition. Copy what is kept",
        _offers(RequestObserver),
    ),
    "takes": Check(
        offers.takes,
        "takes(request) returns None if the model can do what is asked, else why not, in words; it is asked before anything runs",
        _offers(Selective),
    ),
    "shape-and-type": Check(
        checks.shape_and_type,
        "Return floating logits (B, W, V), one row of V for every slot; forbidden tokens are -inf",
    ),
    "deterministic": Check(
        checks.deterministic,
        "The provider appends instead of writing at start, or draws random numbers (dropout?), or its kernels are not "
        "reproducible; for the last, pass the tolerance you can live with",
    ),
    "own-token": Check(
        checks.own_token,
        "Logits are late by one: slot j must answer for position start + j + 1, having seen its own token. A model that truly "
        "ignores its latest token cannot be told from this: skip the check for it",
    ),
    "causal": Check(
        checks.causal,
        "Later tokens reach earlier logits: the mask lets a slot see slots to its right, or logits are early by one slot",
    ),
    "rollback": Check(checks.rollback, STALE + "; mask all cached positions from the slot's own on"),
    "window-split": Check(
        checks.window_split,
        "Logits depend on how tokens are cut into windows: positions, mask or cache writes are wrong where start > 0 or "
        "where a window ends",
    ),
    "ragged-starts": Check(
        checks.ragged_starts,
        "One row's start was used for another: positions, mask and cache writes need start[b] of each row b",
    ),
    "rows-independent": Check(
        checks.rows_independent,
        "Rows share something: look for a cache or mask indexed without the row, or state kept per provider",
    ),
    "row-reuse": Check(checks.row_reuse, STALE + ", and let begin(row, request) touch that row only"),
    "fewer-rows": Check(
        checks.fewer_rows,
        "A call with B rows concerns rows 0 to B - 1 and leaves the others alone; bind or slice the first B rows",
    ),
    "input-untouched": Check(checks.input_untouched, "Copy tokens and start if they are kept or changed"),
    "read-only": Check(
        checks.read_only,
        "Do not write into tokens and start; copy them where a library wants memory of its own (torch.from_numpy, DLPack)",
    ),
    "bounds-refused": Check(
        checks.bounds_refused,
        "Check rows, slots and positions on the host before anything is run: some runtimes clamp writes in silence",
    ),
    "tokens-refused": Check(
        checks.tokens_refused,
        "Check tokens on the host before anything is run: a negative index may wrap around in silence",
    ),
    "whole-length": Check(
        checks.whole_length, "start + W <= max_length must be usable; set max_length to what really fits"
    ),
    "prompt-chunk": Check(
        offers.prompt_chunk,
        "prompt_chunk is the width of calls to forward: at most max_window, and as right as any other width",
        _offers(ReadsPrompts),
    ),
    "row-ranges": Check(
        offers.row_ranges,
        "tokens[i] and start[i] are of row rows.start + i; bind or slice that part of the state, and leave the rest of it alone",
        _offers(RowRanges),
    ),
    "row-ranges-refused": Check(
        offers.row_ranges_refused,
        "Check that rows lie in [0, batch_size) and are as many as tokens has, before anything is run: a slice is cut in silence",
        _offers(RowRanges),
    ),
    "fork": Check(
        offers.fork,
        "Copy the source's state of the positions below length into every target, and share none of it",
        offers.can_fork,
    ),
    "tree-columns": Check(
        trees.tree_columns,
        "max_columns bounds start + W of a tree; it is no less than max_length, so that whatever forward takes is taken as a chain",
        _offers(Trees),
    ),
    "tree-chain": Check(
        trees.tree_chain,
        "Slots whose parents are the slots before them are a window of forward: look at positions, and at where state is written",
        _offers(Trees),
    ),
    "trees": Check(
        trees.trees,
        "A slot sees the state below start, its path and itself, at positions start + depth; a parent of -1 is no slot",
        _offers(Trees),
    ),
    "tree-state": Check(
        trees.tree_state,
        "The state of slot j belongs in column start + j: written by position, a branch replaces the path. A later window sees no "
        "columns but its own at or beyond its start",
        _offers(Trees),
    ),
    "tree-rows": Check(
        trees.tree_rows,
        "forward_tree is for the rows that it is given; bind or slice that part of the state, and leave the rest of it alone",
        lambda provider: isinstance(provider, Trees) and isinstance(provider, RowRanges),
    ),
    "tree-read-only": Check(
        trees.tree_read_only,
        "Do not write into tokens, start and parents; copy them where they are to change",
        _offers(Trees),
    ),
    "trees-refused": Check(
        trees.trees_refused,
        "Call coupled_sampling.bounds.check_tree_window before anything is run",
        _offers(Trees),
    ),
    "reference": Check(
        checks.reference, "Compare positions (are they absolute?), the prompt's first token, and the order of weights"
    ),
}
"""Every check by name but ``attributes``, in the order in which they run: what others rely on comes first.

Those of what is optional are run where it is offered: ``begin``, ``takes``, ``prompt-chunk``, ``row-ranges``,
``row-ranges-refused``, ``fork``, and of windows that are trees ``tree-columns``, ``tree-chain``, ``trees``, ``tree-state``,
``tree-rows``, ``tree-read-only`` and ``trees-refused``.
"""


class Sequences(TypedDict, total=False):
    """Which sequences `provider_report` forwards, as keywords."""

    seed: int
    tokens: Sequence[int] | None
    prompts: Sequence[Sequence[int]] | None
    length: int | None
    conditions: Sequence[object] | None


class ProviderSettings(Sequences, total=False):
    """All keywords of `provider_report`."""

    tolerance: float
    reference: Callable[..., Array] | None
    fresh: Callable[[], LogitsProvider] | None
    skip: Collection[str]


def provider_report(
    provider: LogitsProvider,
    *,
    tolerance: float = 1e-3,
    reference: Callable[..., Array] | None = None,
    fresh: Callable[[], LogitsProvider] | None = None,
    skip: Collection[str] = (),
    **sequences: Unpack[Sequences],
) -> Report:
    """What every check found. Failures are in the report, none is raised.

    Parameters
    ----------
    provider
        The provider under test. Its state is overwritten.
    tolerance
        Largest difference of log-probabilities that passes.
    reference
        ``reference(tokens (T,)) -> logits (T, V)``, the model computed in some other way; ``[j]`` is for position j + 1. With
        ``conditions`` it is ``reference(tokens, condition)``.
    fresh
        Makes another provider that was never used and has the same model. With it, sequences alone are forwarded by
        new providers, so that one row that keeps its very first tokens for ever cannot be its own alibi.
    skip
        Names of checks to leave out, see `PROVIDER_CHECKS`: for example ``bounds-refused``
        for an engine that crashes the process.
    **sequences
        Which sequences are forwarded. ``seed=0`` chooses their tokens, among ``tokens`` (default: the whole vocabulary).
        ``prompts`` is what they begin with, row b's with ``prompts[b % len(prompts)]``; told to a provider that has ``begin``. By
        default nothing, or one token for a provider that has ``begin``. ``conditions`` are what requests carry, row b's
        ``conditions[b % len(conditions)]``: give two or more to a model that reads them. ``length`` is positions per sequence,
        prompt included; by default 40 more than the longest prompt, or ``max_length`` if that is less. The cost is about 60
        sequences of this length, and 40 more where trees are offered.

    Returns
    -------
    Report
        One result per check that applies. After a failure of ``attributes``, ``begin`` or ``shape-and-type`` nothing else is run.

    Raises
    ------
    InvalidArgument
        A name in ``skip`` is unknown, or prompts, tokens or length do not fit the provider.

    Examples
    --------
    >>> from coupled_sampling.testing import TableProvider, provider_report, random_table
    >>> provider_report(TableProvider(random_table(0, 5), 5), length=16).passed
    True
    """
    skip = check_names("skip", skip, PROVIDER_CHECKS)
    check_tolerance("tolerance", tolerance)
    told = 1 if sequences.get("conditions") is None else 2
    for name, given, arguments in (("reference", reference, told), ("fresh", fresh, 0)):
        if given is not None:
            check_callable(name, given, arguments)
    record = Record("attributes", "Give it the attributes of LogitsProvider, as integers", tolerance)
    checks.attributes(provider, record)
    results = [record.result()]
    if record.failure is None:
        chosen: Sequences = {
            "seed": 0,
            "tokens": None,
            "prompts": None,
            "length": None,
            "conditions": None,
            **sequences,
        }
        probe = Probe(provider, fresh=fresh, reference=reference, **chosen)
        names = [name for name, check in PROVIDER_CHECKS.items() if name not in skip and check.offered(provider)]
        results += _results(probe, tolerance, names)
    return Report(type(provider).__name__, tolerance, tuple(results))


def _results(probe: Probe, tolerance: float, names: Sequence[str]) -> list[CheckResult]:
    """Outcomes of the checks ``names``; a failure of ``begin`` or ``shape-and-type`` leaves nothing for the others to look at."""
    results = []
    for name in names:
        record = Record(name, PROVIDER_CHECKS[name].advice, tolerance)
        try:
            PROVIDER_CHECKS[name].run(probe, record)
        except Exception as error:
            # A provider may raise anything; what it was asked for was within its bounds.
            record.fail(f"{type(error).__name__}: {error}")
        results.append(record.result())
        if name in ("begin", "shape-and-type") and record.failure is not None:
            break
    return results


def check_provider(provider: LogitsProvider, **settings: Unpack[ProviderSettings]) -> Report:
    """`provider_report`, raising if anything failed. Parameters are the same.

    Raises
    ------
    CheckFailed
        A check failed: an AssertionError that lists all failures by name.
    InvalidArgument
        As for `provider_report`.

    Examples
    --------
    A provider that forgets what lies before its window is found:

    >>> import numpy as np
    >>> from coupled_sampling.testing import check_provider
    >>> class Forgetful:
    ...     vocab_size, batch_size, max_length = 4, 1, 32
    ...     def forward(self, tokens, start):
    ...         return np.cumsum(tokens, axis=1)[..., None] * np.arange(4.0) / 8
    >>> check_provider(Forgetful(), skip=["bounds-refused", "tokens-refused"])
    Traceback (most recent call last):
    coupled_sampling.testing.contracts.report.CheckFailed: Forgetful fails ...
    """
    report = provider_report(provider, **settings)
    if not report.passed:
        raise CheckFailed(report)
    return report
