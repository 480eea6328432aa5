"""The conformance suite passes providers that keep the contract, and names the check that a broken one fails.

Every broken provider differs from `TableProvider` in one respect only.
"""

import numpy as np
import pytest

from coupled_sampling import GuidedProvider
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from coupled_sampling.testing.contracts.providers import PROVIDER_CHECKS, check_provider, provider_report
from coupled_sampling.testing.contracts.report import CheckFailed
from standins.broken_providers import (
    BROKEN,
    LENGTH,
    TABLE,
    Appending,
    Clamping,
    Context,
    Late,
    LosesChunkEnds,
    NonCausal,
    Stale,
    StaleRight,
    V,
    Wrapping,
    WritesTokens,
)

TREES = {name for name in PROVIDER_CHECKS if "tree" in name}
"""Stand-ins here are broken in forward alone, and say of trees what a right one says."""


def table(kind=TableProvider, rows=3, seed=4, length=LENGTH, vocab_size=V):
    return kind(random_table(seed, vocab_size, zeros=0.2), vocab_size, rows, length)


@pytest.mark.cases(16)
@pytest.mark.parametrize(("kind", "name"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("seed", range(2))
def test_a_broken_provider_is_named(kind, name, seed):
    with pytest.raises(CheckFailed, match=f"- {name}: ") as caught:
        check_provider(table(kind, seed=seed), seed=seed, skip=TREES)
    assert name in caught.value.report.failures


@pytest.mark.parametrize(
    "kind", [Late, NonCausal, StaleRight, Appending, LosesChunkEnds, Clamping, Wrapping, WritesTokens]
)
def test_most_of_it_is_seen_with_one_row(kind):
    assert BROKEN[kind] in provider_report(table(kind, rows=1), skip=TREES).failures


def test_one_row_that_keeps_its_first_tokens_for_ever_is_seen_beside_a_fresh_provider():
    stale = table(Stale, rows=1)
    alone = provider_report(stale)
    assert "no memory" in alone.notes["own-token"][0]
    assert "rollback" in provider_report(table(Stale, rows=1), fresh=lambda: table(Stale, rows=1)).failures


@pytest.mark.cases(10)
@pytest.mark.parametrize("seed", range(30))
def test_a_correct_provider_never_fails(seed):
    random = np.random.default_rng(seed)
    rows, vocab_size, length = (int(random.integers(low, high)) for low, high in ((1, 5), (2, 7), (4, 30)))
    provider = table(rows=rows, vocab_size=vocab_size, length=length, seed=seed)
    if seed % 3 == 0:
        provider.max_window = int(random.integers(1, 8))
    report = check_provider(provider, seed=seed)
    assert max(report.differences.values()) == 0
    asked = [name for name, check in PROVIDER_CHECKS.items() if check.offered(provider)]
    assert [result.name for result in report.results] == ["attributes", *asked]


def test_a_correct_context_passes_so_that_only_the_fault_of_a_broken_one_is_seen():
    assert check_provider(table(Context)).passed


def test_the_shipped_table_passes():
    """It takes any token: its function alone knows what it can be asked."""
    check_provider(TableProvider(TABLE, V, 3, LENGTH))


def test_a_model_without_memory_passes_and_is_noted():
    report = check_provider(TableProvider(lambda context: np.full(V, 1 / V), V, 2, LENGTH))
    assert "no memory" in report.notes["own-token"][0]
    assert check_provider(TableProvider(lambda context: np.ones(1), 1, 2, LENGTH)).passed


@pytest.mark.cases(2)
@pytest.mark.parametrize("unconditional", [[1], [1, 2, 0]])
@pytest.mark.parametrize("prompts", [None, [[0], [2]], [[1, 2, 3, 0], [2]]])
def test_guidance_passes(unconditional, prompts):
    check_provider(GuidedProvider(TableProvider(random_table(3, V), V, 4, LENGTH), 2.0, unconditional), prompts=prompts)


def test_guidance_without_a_fixed_prompt_passes_with_prompts():
    guided = GuidedProvider(TableProvider(random_table(3, V), V, 4, LENGTH), 2.0, lambda prompt: [0] * len(prompt))
    check_provider(guided, prompts=[[1, 2], [3]])


def test_a_reference_sees_a_position_that_is_wrong_everywhere():
    by_position = lambda context: np.eye(V)[len(context) % V] * 0.5 + 0.5 / V  # noqa: E731
    shifted = lambda context: by_position((0, *context))  # noqa: E731

    def reference(tokens):
        return np.log([by_position(tuple(tokens[: j + 1])) for j in range(len(tokens))])

    assert check_provider(TableProvider(by_position, V, 2, LENGTH), reference=reference).notes.get("reference") is None
    assert check_provider(TableProvider(shifted, V, 2, LENGTH)).notes["reference"]
    assert list(provider_report(TableProvider(shifted, V, 2, LENGTH), reference=reference).failures) == ["reference"]


def test_the_failure_says_what_where_how_much_why_and_what_to_do():
    message = provider_report(table(StaleRight)).failures["rollback"]
    for part in (
        "going back to position",
        "row 0, slot",
        "logits for position",
        "expected",
        "tolerance 0.001",
        "mask all",
    ):
        assert part in message
    assert isinstance(CheckFailed(provider_report(table(StaleRight))), AssertionError | CoupledSamplingError)


def test_the_report_prints_a_line_per_check():
    report = provider_report(table(Late), skip=TREES)
    assert not report.passed
    text = str(report)
    assert "FAILED  own-token" in text
    assert "passed  attributes" in text
    assert text.startswith("Late: 18 checks, 1 failed")


def test_differences_are_measured_and_compared_with_the_tolerance():
    class Noisy(TableProvider):
        def forward(self, tokens, start):
            logits = super().forward(tokens, start)
            logits[..., 0] += 1e-4 * (tokens.shape[1] % 2)
            return logits

    noisy = Noisy(random_table(4, V), V, 2, LENGTH)
    report = check_provider(noisy)
    assert 1e-5 < report.differences["window-split"] < 1e-4
    assert "window-split" in provider_report(noisy, tolerance=1e-6).failures


def test_a_step_too_small_to_be_seen_is_noted():
    weak = lambda context: np.full(V, 1 / V) + 1e-3 * (np.eye(V)[context[-1]] - 1 / V)  # noqa: E731
    assert "less than ten tolerances" in check_provider(TableProvider(weak, V, 2, LENGTH)).notes["own-token"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ["rolback"]}, "rolback.*expected names among"),
        ({"tokens": [5]}, r"tokens holds 5, expected a list of at least 1 tokens in \[0, 5\)"),
        ({"tokens": []}, "tokens is"),
        ({"length": 3}, "length is 3, expected from 4"),
        ({"length": 41}, "length is 41"),
        ({"prompts": [[0] * 38]}, "expected from 42 .* to max_length, 40"),
        ({"tolerance": -1}, "tolerance is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        check_provider(table(), **arguments)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small random model as a bundle."""
    pytest.importorskip("onnx")
    from standins.toy_bundles import toy_gpt, write_toy_bundle

    return write_toy_bundle(tmp_path_factory.mktemp("bundle"), toy_gpt(72), max_window=50)


@pytest.mark.parametrize("rows", [1, 3])
def test_onnxruntime_passes_on_a_random_model(toy, rows):
    ort = pytest.importorskip("coupled_sampling.backends.ort.provider")
    pytest.importorskip("onnxruntime")
    for seed in range(3):
        report = check_provider(ort.OrtProvider.open(toy, batch_size=rows, threads=1), seed=seed)
        assert max(report.differences.values()) < 1e-4


def test_onnxruntime_passes_on_the_embedded_model():
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends import OrtProvider

    check_provider(OrtProvider.open("fashion", batch_size=3, threads=1), length=36)
    check_provider(
        GuidedProvider(OrtProvider.open("fashion", batch_size=4, threads=1), 2.0, [1]), length=20, prompts=[[0]]
    )
