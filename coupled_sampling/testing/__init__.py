"""Tools to prove that a decoder is lossless, this library's or yours.

- exact: `assert_lossless_exactly` compares the exact law of whole outputs with the chain rule's, in floats or in fractions;
  `exact_law` and `exact_law_from_uniforms` give the law itself;
- statistical, for everything too large to enumerate: `equivalence_test` and `assert_equivalent`, with power and a negative
  control in every report;
- parts: `check_provider` for a backend, `check_coupling` for a coupling, `check_processor` for a logits processor; `least_hit_rate`
  bounds how often one of several candidates is right;
- two implementations of a step, given the same noise: `StepComparison` tells float ties from disagreements;
- `coupled_sampling.testing.strategies` for Hypothesis, and a pytest plugin with two profiles of it (needs the extra ``[testing]``);
- models small enough for it: `TableProvider`, `RationalProvider`, `random_table`, `rational_table`.
"""

from coupled_sampling.testing.contracts.couplings import check_coupling, coupling_report
from coupled_sampling.testing.contracts.hit_rates import least_hit_rate
from coupled_sampling.testing.contracts.processors import check_processor, processor_report
from coupled_sampling.testing.contracts.providers import check_provider, provider_report
from coupled_sampling.testing.contracts.report import CheckFailed, Report
from coupled_sampling.testing.exact.enumeration import ExactLaw
from coupled_sampling.testing.exact.laws import (
    EnumeratingNoise,
    autoregressive_law,
    exact_law,
    joint_law,
    total_variation,
)
from coupled_sampling.testing.exact.proof import assert_lossless_exactly, shipped_decoder
from coupled_sampling.testing.exact.rational_models import RationalProvider, rational_table
from coupled_sampling.testing.exact.sampled import sampled_law
from coupled_sampling.testing.exact.uniforms import EnumeratingGenerator, exact_law_from_uniforms
from coupled_sampling.testing.samples.equivalence import Equivalence, assert_equivalent, equivalence_test
from coupled_sampling.testing.steps.ties import StepComparison, StepsDisagree, TieReport
from coupled_sampling.testing.worlds import TableProvider, random_table

__all__ = [
    "CheckFailed",
    "EnumeratingGenerator",
    "EnumeratingNoise",
    "Equivalence",
    "ExactLaw",
    "RationalProvider",
    "Report",
    "StepComparison",
    "StepsDisagree",
    "TableProvider",
    "TieReport",
    "assert_equivalent",
    "assert_lossless_exactly",
    "autoregressive_law",
    "check_coupling",
    "check_processor",
    "check_provider",
    "coupling_report",
    "equivalence_test",
    "exact_law",
    "exact_law_from_uniforms",
    "joint_law",
    "least_hit_rate",
    "processor_report",
    "provider_report",
    "random_table",
    "rational_table",
    "sampled_law",
    "shipped_decoder",
    "total_variation",
]
