"""The numbers that docs/losslessness.md takes from a benchmark are those of its results."""

import re

from standins import ROOT

RESULTS = (ROOT / "benchmarks" / "results" / "false-alarms.txt").read_text(encoding="utf-8")
TEXT = " ".join((ROOT / "docs" / "losslessness.md").read_text(encoding="utf-8").split())
RATE = re.compile(r"(0\.\d{3}) \((0\.\d{3})-(0\.\d{3})\)(!?)")


def test_rates_of_false_alarms():
    rows = [RATE.findall(line) for line in RESULTS.splitlines() if RATE.search(line)]
    levels = list(zip(*rows, strict=True))  # a column for each level
    for column in levels:
        rates = [float(rate) for rate, *_ in column if float(rate) > 0]
        assert f"{min(rates):.3f} to {max(rates):.3f}" in TEXT
    marked = [cell for row in rows for cell in row if cell[3]]
    assert len(marked) == 1
    assert f"Of {sum(map(len, rows))} rates one lies above its level" in TEXT
    rate, low, high, _ = marked[0]
    assert f"{rate}, interval {low} to {high}" in TEXT


def test_coverage_of_intervals():
    shares = [float(line.split()[-2]) for line in RESULTS.split("coverage of", 1)[1].splitlines()[2:] if line.strip()]
    assert f"in {100 * min(shares):.1f} to {100 * max(shares):.0f} % of cases" in TEXT
