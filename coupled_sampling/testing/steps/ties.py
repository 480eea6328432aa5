"""Two implementations of a step, in lockstep: a difference must be *shown* to be a float tie, or it is a disagreement.

Two correct implementations given the same noise may still differ: exponentials and sums of different libraries differ in
their last bit, and where a uniform or a race falls within that of its threshold, so do tokens. `StepComparison` runs a
`HostStep` and another step on the same windows and goes on with the first one's outcome, so that one difference does not
make all later ones. Where a site differs, both decisions are judged in float64 from the reference's logits and the same
noise (see `coupled_sampling.testing.steps.margins`). If each is within a bound of being right, it is a tie; else a
disagreement. The bound is that of `coupled_sampling.testing.steps.rounding`: a function of the laws at hand, not a number
that was tuned.

Where steps correct laws by a `coupled_sampling.corrections.LowRank`, each implementation's redrafts are judged by what the table
predicts under its own tokens; see `coupled_sampling.testing.steps.corrected_sites`.

What the bound covers: float32 arithmetic (or whatever ``unit`` says) in everything after the logits. Logits are taken to be equal
bit for bit; where the other implementation computes its own, and they are known to differ, say by how much with ``logits_error``.
What it does not cover: sites at which both decide the same wrong thing. Those are the business of the exact tests.

Sites between two ends of an accepted run are not comparable (one implementation accepts there, the other redrafts), but are
judged all the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import (
    Closeable,
    CoupledStep,
    LogitsProvider,
    Outcome,
    Runs,
    Window,
    max_window,
)
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.host_step import HostStep
from coupled_sampling.noise import uniforms
from coupled_sampling.processor_runs import run_processors
from coupled_sampling.refusals import refusal_of
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing
from coupled_sampling.testing.arguments import check_model, check_number, check_tolerance
from coupled_sampling.testing.steps.corrected_sites import corrected_sites, table_of
from coupled_sampling.testing.steps.margins import Site, chance, judge, worst
from coupled_sampling.testing.steps.recorded import Recorded
from coupled_sampling.testing.steps.rounding import (
    FLOAT32,
    IMPOSSIBLE,
    Margin,
    RoundedLaw,
    given_law,
    point_law,
    rounded_laws,
)

__all__ = ["Difference", "StepComparison", "StepsDisagree", "TieReport"]

_EXAMPLES = 20


@dataclass(frozen=True)
class Difference:
    """One site at which the two implementations differ.

    Examples
    --------
    >>> from coupled_sampling.testing.steps.ties import Difference
    >>> difference = Difference(
    ...     row=0, position=7, round=3, expected=4, found=9, committed=(2, 2), kind="race", margin=1e-8, bound=1e-6
    ... )
    >>> difference.tie
    True
    """

    row: int
    position: int
    round: int
    expected: int
    """The reference's token."""
    found: int
    """The other one's."""
    committed: tuple[int, int]
    """What both committed in this step."""
    kind: str
    """Which threshold, see `coupled_sampling.testing.steps.rounding.Margin`."""
    margin: float
    bound: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it."""
        return self.margin <= self.bound

    def __str__(self) -> str:
        return (
            f"row {self.row}, position {self.position}, round {self.round}: token {self.found} instead of {self.expected}, "
            f"committed {self.committed[1]} instead of {self.committed[0]}; "
            f"{self.kind} margin {self.margin:.3g}, bound {self.bound:.3g}"
        )


@dataclass(frozen=True)
class TieReport:
    """What a comparison saw.

    Examples
    --------
    >>> from coupled_sampling import Decoder, HostStep, Request
    >>> from coupled_sampling.testing import StepComparison, TableProvider, random_table
    >>> model = lambda: TableProvider(random_table(0, 5), 5)
    >>> comparison = StepComparison(model(), HostStep(model(), "sjd"))
    >>> decoder = Decoder(comparison, window=4)
    >>> _ = decoder.add(Request([0], length=12))
    >>> while decoder.active or decoder.waiting:
    ...     _ = decoder.step()
    >>> report = comparison.report().check()
    >>> report.sites > 12, report.disagreements
    (True, 0)
    """

    method: str
    steps: int
    sites: int
    """Sites compared."""
    ties: int
    disagreements: int
    expected_ties: float
    """No more ties than this are to be expected of the noise: the chance, summed over sites, of a margin below its bound."""
    largest_margin: float
    """Of a tie."""
    largest_share: float
    """Of a tie: margin / bound."""
    unit: float
    logits_error: float
    examples: tuple[Difference, ...]
    """Disagreements first."""

    def __str__(self) -> str:
        head = (
            f"{self.method}: {self.sites} sites in {self.steps} steps, {self.ties} ties "
            f"(at most {self.expected_ties:.3g} expected), {self.disagreements} disagreements"
        )
        if self.ties:
            head += f"; largest margin of a tie {self.largest_margin:.3g}, {self.largest_share:.2g} of its bound"
        return "\n".join([head, *(f"  {'tie' if d.tie else 'DISAGREEMENT'}: {d}" for d in self.examples)])

    def to_json(self) -> str:
        """All of it; infinite numbers as text."""
        fields = asdict(self)
        for example in fields["examples"]:
            example.update(
                {key: repr(x) for key, x in example.items() if isinstance(x, float) and not math.isfinite(x)}
            )
        return json.dumps(fields, indent=2, allow_nan=False)

    @property
    def most_ties(self) -> int:
        """Ties past this number have a chance below one in a million, if ``expected_ties`` is their mean (Chernoff)."""
        mean, most = self.expected_ties, math.ceil(self.expected_ties)
        while mean > 0 and most - mean - most * math.log(most / mean) > math.log(1e-6):
            most += 1
        return most

    def check(self, share: float = 1e-3) -> TieReport:
        """Raise unless all differences are ties, no more than ``share`` of the sites and than the noise makes likely.

        Raises
        ------
        InvalidArgument
            ``share`` is no share.
        StepsDisagree
            The message is the report.
        """
        if check_number("share", share, "a share of the sites, in [0, 1]") < 0:
            raise InvalidArgument(f"share is {share}, expected a share of the sites, in [0, 1]")
        if not self.sites:
            raise StepsDisagree(f"nothing was compared\n{self}")
        if self.disagreements or self.ties > share * self.sites or self.ties > self.most_ties:
            raise StepsDisagree(f"expected no disagreement, ties <= {share:g} of sites and <= {self.most_ties}\n{self}")
        return self


class StepsDisagree(CoupledSamplingError, AssertionError):  # noqa: N818 - reads as what it is
    """Two implementations of a step differ by more than float ties. The message lists where."""


class StepComparison(Closing):
    """A coupled step that runs two and goes on with the first: give it to a `coupled_sampling.Decoder` in place of a model.

    Parameters
    ----------
    provider
        The model, for a `HostStep` that is the reference.
    other
        Another implementation over the same model, with the library's noise (`coupled_sampling.noise.CounterNoise`). The reference
        gets its table, if it has one.
    logits_error
        By how much, absolutely, the logits that ``other`` computes may differ from those of ``provider``. Measure it; 0 says
        that they are equal.
    unit
        The spacing at 1 of the shortest precision in which either computes laws.

    Raises
    ------
    InvalidArgument
        The two do not fit together.

    Examples
    --------
    A step in float32 beside one in float64; what differs must be a tie:

    >>> import numpy as np
    >>> from coupled_sampling import HostStep, generate
    >>> from coupled_sampling.testing import StepComparison, TableProvider, random_table
    >>> class Single(TableProvider):
    ...     def forward(self, tokens, start):
    ...         return super().forward(tokens, start).astype(np.float32)
    >>> table = random_table(0, 5)
    >>> comparison = StepComparison(Single(table, 5), HostStep(Single(table, 5), "scd-maximal"))
    >>> _ = generate(comparison, [[0]], length=12, window=4)
    >>> comparison.report().disagreements
    0
    """

    def __init__(
        self, provider: LogitsProvider, other: CoupledStep, *, logits_error: float = 0.0, unit: float = FLOAT32
    ) -> None:
        check_model("provider", provider)
        check_model("other", other, "step")
        check_tolerance("logits_error", logits_error)
        check_tolerance("unit", unit)
        if (provider.vocab_size, provider.batch_size) != (other.vocab_size, other.batch_size):
            raise InvalidArgument(
                f"provider has {provider.vocab_size} tokens and {provider.batch_size} rows, other has {other.vocab_size} and "
                f"{other.batch_size}; give both the same model and rows"
            )
        if not unit > 0:
            raise InvalidArgument(f"unit is {unit}, expected a number > 0, such as 2**-23 for float32")
        self._recorded, self.other = Recorded(provider), other
        self._table = table_of(other)
        self.reference = HostStep(self._recorded, other.method, corrections=self._table)
        self.method, self.noise = other.method, self.reference.noise
        self.vocab_size, self.batch_size = other.vocab_size, other.batch_size
        self.max_length = min(provider.max_length, other.max_length)
        self.max_window = min(max_window(self._recorded), max_window(other))
        self._error, self._unit = logits_error, unit
        self._laws: dict[int, dict[int, dict[int, list[RoundedLaw]]]] = {}
        self._steps = self._sites = self._ties = 0
        self._expected = 0.0
        self._ties_seen: list[Difference] = []
        self._disagreements: list[Difference] = []
        self._largest = (0.0, 0.0)
        self._disagreed = 0

    @property
    def runs(self) -> Runs:
        """What runs the step that is compared."""
        return self.other.runs

    def close(self) -> None:
        """Close the step that is compared, and the provider if it can be closed."""
        self.other.close()
        if isinstance(self._recorded.provider, Closeable):
            self._recorded.provider.close()

    def takes(self, request: Request) -> str | None:
        """What the other one cannot do, or the reference."""
        if self._table is not None and request.sampling.processors:
            return "the request has logits processors, and steps with corrections are not compared with them; leave one of them out"
        return self.other.takes(request) or refusal_of(self._recorded.provider, request)

    def begin(self, row: int, request: Request) -> None:
        """Tell both."""
        self._laws.pop(row, None)
        self.other.begin(row, request)
        self.reference.begin(row, request)

    def step(self, window: Window) -> Outcome:
        """Run both, compare, and return the reference's outcome."""
        found, expected = self.other.step(window), self.reference.step(window)
        self._steps += 1
        for b in np.flatnonzero(window.draws).tolist():
            self._compare(b, window, found, expected)
        return expected

    def report(self) -> TieReport:
        """What was seen so far."""
        return TieReport(
            self.method.name, self._steps, self._sites, self._ties, self._disagreed, self._expected, *self._largest,
            self._unit, self._error, tuple((self._disagreements + self._ties_seen)[:_EXAMPLES]),
        )  # fmt: skip

    def _compare(self, b: int, window: Window, found: Outcome, expected: Outcome) -> None:
        sites = self._sites_of(b, window)
        slots = slice(int(window.known[b]) - 1, int(window.known[b]) - 1 + len(sites))
        self._compare_closed(b, window, slots.stop, found, expected)
        if not sites:
            return
        both = [outcome.tokens[b, slots] for outcome in (expected, found)]
        counts = int(expected.committed[b]), int(found.committed[b])
        views = [self._corrected(sites, tokens, count) for tokens, count in zip(both, counts, strict=True)]
        self._keep(b, int(window.round[b]), views)
        self._expected += sum(chance(self.method, site) for site in views[0])
        ends = min(counts) - 1, max(counts) - 1
        maximal = self.method.redraft == "maximal" or self.method.acceptance == "match"
        apart = [not maximal and ends[0] < s <= ends[1] for s in range(len(sites))]
        open_ = [not self.method.recycles and s > ends[0] for s in range(len(sites))]
        self._sites += sum(not (a or o) for a, o in zip(apart, open_, strict=True))
        if counts[0] == counts[1] and np.array_equal(*(tokens[~np.array(open_)] for tokens in both)):
            return
        judged = [
            judge(self.method, view, tokens[: len(view)], count)
            for view, tokens, count in zip(views, both, counts, strict=True)
        ]
        settled = min(map(len, views))  # behind it a table makes no law, and both must have ended the row's drafts
        if any((tokens[settled:] >= 0).any() for tokens in both) and settled < len(sites):
            where = sites[settled].position
            self._note(b, where, int(window.round[b]), both[0][settled], both[1][settled], counts, IMPOSSIBLE)
        for s, margins in enumerate(zip(*judged, strict=False)):
            margin = worst(*margins)
            differs = both[0][s] != both[1][s] or (counts[0] != counts[1] and s == ends[0])
            beyond = not margin.strain <= 1
            if (differs and not open_[s] and not apart[s]) or (beyond and (apart[s] or ends[0] == s)):
                self._note(b, sites[s].position, int(window.round[b]), both[0][s], both[1][s], counts, margin)

    def _corrected(self, sites: list[Site], tokens: NDArray[np.int64], committed: int) -> list[Site]:
        """The sites with the laws that redrafts have behind what an implementation decided."""
        if self._table is None:
            return sites
        return corrected_sites(self._table, sites, tokens, committed, logits_error=self._error, unit=self._unit)

    def _keep(self, b: int, round_: int, views: list[list[Site]]) -> None:
        """Keep the laws of redrafts for the round after: both, where a tie before them has made two of them."""
        held = self._laws[b][round_]
        for one, other in zip(*views, strict=False):
            held[one.position] = one.targets if one.targets is other.targets else [*one.targets, *other.targets]

    def _compare_closed(self, b: int, window: Window, first: int, found: Outcome, expected: Outcome) -> None:
        """From the first slot of which no law can be made on, both must have ended the row's drafts."""
        end = int(window.known[b] + window.recycled[b] + window.fresh[b])
        both = [outcome.tokens[b, first:end] for outcome in (expected, found)]
        self._sites += end > first
        if any((tokens >= 0).any() for tokens in both):
            counts = int(expected.committed[b]), int(found.committed[b])
            position = int(window.start[b]) + first + 1
            self._note(b, position, int(window.round[b]), both[0][0], both[1][0], counts, IMPOSSIBLE)

    def _note(
        self, b: int, position: int, round_: int, expected: Any, found: Any, counts: tuple[int, int], margin: Margin
    ) -> None:
        seen = Difference(
            b, position, round_, int(expected), int(found), counts, margin.kind, margin.margin, margin.bound
        )
        if not margin.strain <= 1:
            self._disagreed += 1
            self._disagreements = [*self._disagreements, seen][:_EXAMPLES]
            return
        self._ties += 1
        self._largest = max(self._largest[0], margin.margin), max(self._largest[1], margin.strain)
        self._ties_seen = [*self._ties_seen, seen][:_EXAMPLES]

    def _sites_of(self, b: int, window: Window) -> list[Site]:
        """The row's sites, up to the first of which no law can be made; keeps their laws for the round after."""
        info = window.rows[b]
        if info is None:
            raise InvalidArgument(f"window.rows[{b}] is None, but the row draws")
        known, recycled, round_ = (int(x[b]) for x in (window.known, window.recycled, window.round))
        start, end = window.decided_positions(b)
        count = end - start
        logits = self._recorded.logits[b, known - 1 : known - 1 + count, ...]
        logits = run_processors(logits, info.sampling, window.contexts[b], start + np.arange(count))
        wide = np.asarray(to_host(logits), np.float64)
        dead = np.flatnonzero(~np.isfinite(wide.max(axis=-1)))
        settings = {"logits_error": self._error, "unit": self._unit}
        laws = [rounded_laws(row, info.sampling, **settings) for row in wide[: dead[0] if dead.size else None]]
        held = self._laws.setdefault(b, {})
        before = held.get(round_ - 1, {})
        self._laws[b] = {round_ - 1: before, round_: {start + i: law for i, law in enumerate(laws)}}
        drawn = uniforms(info.seed, info.sequence, round_, start, count)
        drafts = window.tokens[b, known : known + count - 1].tolist()
        carried = window.fresh_laws[b]
        sites = []
        for i, law in enumerate(laws):
            own: list[RoundedLaw] | None = None
            if i < recycled:
                own = before.get(start + i, [])
            elif i < count - 1:
                given = None if carried is None else np.asarray(to_host(carried), np.float64)[i - recycled]
                point = point_law(drafts[i], self.vocab_size, self._unit)
                own = [point if given is None else given_law(given, self._unit)]
            sites.append(Site(law, own, drafts[i] if i < count - 1 else 0, drawn[i], info, start + i, wide[i]))
        return sites
