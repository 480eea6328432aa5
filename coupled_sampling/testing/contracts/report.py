"""What a suite of named checks found: one result per check, and the error that lists all failures.

Shared by the conformance suites (`check_provider`, `check_coupling`). A report is data: it can be printed, stored or
asked for its failures; raising is left to the functions whose name begins with ``check``.
"""

from __future__ import annotations

from dataclasses import dataclass

from coupled_sampling.errors import CoupledSamplingError
from coupled_sampling.testing.arguments import check_kind

__all__ = ["CheckFailed", "CheckResult", "Report"]


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Parameters
    ----------
    name
        The check's name, such as ``"rollback"``.
    difference
        Largest difference it measured, in the unit the suite states; None where it measures nothing.
    failure
        What is wrong: what was done, where, how much, the likely cause and what to do. None where it passed.
    notes
        What the reader should know though it is no failure: what could not be seen, and why.

    Examples
    --------
    >>> from coupled_sampling.testing.contracts.report import CheckResult
    >>> CheckResult("rollback", difference=0.5, failure="state of a refused draft was kept").failure
    'state of a refused draft was kept'
    """

    name: str
    difference: float | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results, in the order in which the checks ran. Printing it gives a line per check.

    Parameters
    ----------
    subject
        What was checked, for the reader.
    tolerance
        What differences were compared with.
    results
        One per check; checks that were skipped have none.

    Examples
    --------
    >>> from coupled_sampling.testing import TableProvider, provider_report, random_table
    >>> report = provider_report(TableProvider(random_table(0, 5), 5), length=16)
    >>> report.passed, report.failures, report.differences["causal"]
    (True, {}, 0.0)
    """

    subject: str
    tolerance: float
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> dict[str, str]:
        """What is wrong, by the name of the check that found it; in order, so the first is the one to look at."""
        return {result.name: result.failure for result in self.results if result.failure is not None}

    @property
    def differences(self) -> dict[str, float]:
        """Largest difference by name of the check, for those that measure one."""
        return {result.name: result.difference for result in self.results if result.difference is not None}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """Notes by name of the check."""
        return {result.name: result.notes for result in self.results if result.notes}

    def __str__(self) -> str:
        lines = [
            f"{self.subject}: {len(self.results)} checks, {len(self.failures)} failed, tolerance {self.tolerance:g}"
        ]
        for result in self.results:
            measured = "" if result.difference is None else f"  largest difference {result.difference:.3g}"
            lines.append(f"  {'passed' if result.failure is None else 'FAILED'}  {result.name}{measured}")
            lines += [f"          note: {note}" for note in result.notes]
            if result.failure is not None:
                lines.append(f"          {result.failure}")
        return "\n".join(lines)


class CheckFailed(CoupledSamplingError, AssertionError):  # noqa: N818 - reads as what it is
    """At least one check failed. The message lists every failure by the name of its check.

    Attributes
    ----------
    report
        The whole `Report`.
    """

    def __init__(self, report: Report) -> None:
        check_kind("report", report, Report)
        self.report = report
        listed = "\n".join(f"- {name}: {failure}" for name, failure in report.failures.items())
        super().__init__(
            f"{report.subject} fails {len(report.failures)} of {len(report.results)} checks; look at the first one first, "
            f"the others may follow from it\n{listed}"
        )
