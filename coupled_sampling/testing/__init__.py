"""Tools to prove that a decoder is lossless, this library's or yours.

- exact: `assert_lossless_exactly` compares the exact law of whole outputs with the chain rule's, in floats or in fractions;
  `exact_law` and `exact_law_from_uniforms` give the law itself;
- statistical, for everything too large to enumerate: `equivalence_test` and `assert_equivalent`, with power and a negative
  control in every report;
- parts: `check_provider` for a backend, `check_coupling` for a coupling;
- two implementations of a step, given the same noise: `StepComparison` tells float ties from disagreements;
- `coupled_sampling.testing.strategies` for Hypothesis, and a pytest plugin with two profiles of it (needs the extra ``[testing]``);
- models small enough for it: `TableProvider`, `RationalProvider`, `random_table`, `rational_table`.
"""

from coupled_sampling.testing.contracts.couplings import COUPLING_CHECKS, check_coupling, coupling_report
from coupled_sampling.testing.contracts.providers import PROVIDER_CHECKS, check_provider, provider_report
from coupled_sampling.testing.contracts.report import CheckFailed, CheckResult, Report
from coupled_sampling.testing.exact.enumeration import Choice, ExactLaw, PathEstimate
from coupled_sampling.testing.exact.laws import (
    EnumeratingNoise,
    autoregressive_law,
    exact_law,
    expected_paths,
    joint_law,
    total_variation,
)
from coupled_sampling.testing.exact.proof import assert_lossless_exactly, shipped_decoder
from coupled_sampling.testing.exact.rational import RationalArray
from coupled_sampling.testing.exact.rational_models import RationalProvider, rational_table
from coupled_sampling.testing.exact.uniforms import EnumeratingGenerator, UnknownUniform, exact_law_from_uniforms
from coupled_sampling.testing.samples.equivalence import Equivalence, assert_equivalent, equivalence_test
from coupled_sampling.testing.steps.ties import Difference, StepComparison, StepsDisagree, TieReport
from coupled_sampling.testing.worlds import TableProvider, random_table

__all__ = [
    "COUPLING_CHECKS",
    "PROVIDER_CHECKS",
    "CheckFailed",
    "CheckResult",
    "Choice",
    "Difference",
    "EnumeratingGenerator",
    "EnumeratingNoise",
    "Equivalence",
    "ExactLaw",
    "PathEstimate",
    "RationalArray",
    "RationalProvider",
    "Report",
    "StepComparison",
    "StepsDisagree",
    "TableProvider",
    "TieReport",
    "UnknownUniform",
    "assert_equivalent",
    "assert_lossless_exactly",
    "autoregressive_law",
    "check_coupling",
    "check_provider",
    "coupling_report",
    "equivalence_test",
    "exact_law",
    "exact_law_from_uniforms",
    "expected_paths",
    "joint_law",
    "provider_report",
    "random_table",
    "rational_table",
    "shipped_decoder",
    "total_variation",
]
