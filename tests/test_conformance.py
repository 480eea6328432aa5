"""The conformance suite passes providers that keep the contract, and names the check that a broken one fails.

Every broken provider differs from `TableProvider` in one respect only.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import GuidedProvider
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from coupled_sampling.testing.conformance import PROVIDER_CHECKS, check_provider, provider_report
from coupled_sampling.testing.report import CheckFailed

V, LENGTH = 5, 40
TABLE = random_table(4, V, zeros=0.2)


class Strict(TableProvider):
    """A table that refuses tokens outside its vocabulary."""

    def forward(self, tokens, start):
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise InvalidArgument("token outside the vocabulary")
        if tokens.shape[1] > getattr(self, "max_window", self.max_length):
            raise InvalidArgument("window too wide")
        return super().forward(tokens, start)


class Context(Strict):
    """Computes a slot's logits from a context that subclasses get wrong."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + slot + 1]

    def write(self, tokens, start):
        for row in range(len(tokens)):
            self._held[row, start[row] : start[row] + tokens.shape[1]] = tokens[row]

    def forward(self, tokens, start):
        self.check(tokens, start)
        self.write(tokens, start)
        rows, width = tokens.shape
        laws = np.empty((rows, width, self.vocab_size))
        for row in range(rows):
            for slot in range(width):
                laws[row, slot] = self.next_law(tuple(self.context(row, int(start[row]), slot, width).tolist()))
        with np.errstate(divide="ignore"):
            return np.log(laws)

    def check(self, tokens, start):
        if tokens.min() < 0 or tokens.max() >= self.vocab_size or len(tokens) > self.batch_size:
            raise InvalidArgument("tokens")
        if start.min() < 0 or start.max() + tokens.shape[1] > self.max_length:
            raise InvalidArgument("start")


class Late(Context):
    """Off by one: slot j answers for its own position."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + slot]


class Early(Context):
    """Off by one the other way, within the window."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + min(slot + 2, width)]


class NonCausal(Context):
    def context(self, row, first, slot, width):
        return np.append(self._held[row, : first + slot + 1], self._held[row, first + width - 1])


class Leaking(Context):
    """The first token of the window of row 0 reaches the other rows."""

    def context(self, row, first, slot, width):
        own = self._held[row, : first + slot + 1]
        return np.append(own, self._held[0, 0]) if row else own


class Stale(Context):
    """Writes positions that were never written before, and no others."""

    def write(self, tokens, start):
        for row in range(len(tokens)):
            own = self._held[row, start[row] : start[row] + tokens.shape[1]]
            own[:] = np.where(own < 0, tokens[row], own)


class StaleRight(Context):
    """Attends to what an earlier call left to the right of the window."""

    def context(self, row, first, slot, width):
        beyond = self._held[row, first + width : first + width + 1]
        return np.append(self._held[row, : first + slot + 1], beyond[beyond >= 0])


class FirstRowsStart(Context):
    """Writes every row where row 0 begins."""

    def write(self, tokens, start):
        super().write(tokens, np.full_like(start, start[0]))


class Appending(Context):
    """Ignores ``start``: a window always follows on the one before."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.end = np.zeros(self.batch_size, np.int64)

    def forward(self, tokens, start):
        self.check(tokens, start)
        begin = self.end[: len(tokens)] % (self.max_length - tokens.shape[1] + 1)
        self.end[: len(tokens)] = begin + tokens.shape[1]
        return super().forward(tokens, begin)


class LosesChunkEnds(Context):
    """The last token of a window of several is not kept for the next one."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        if tokens.shape[1] > 1:
            self._held[np.arange(len(tokens)), start + tokens.shape[1] - 1] = 0
        return logits


class AllRows(Context):
    """A call for fewer rows writes the first row's tokens to the others too."""

    def write(self, tokens, start):
        super().write(tokens, start)
        for row in range(len(tokens), self.batch_size):
            self._held[row, start[0] : start[0] + tokens.shape[1]] = tokens[0]


class Clamping(Context):
    """Moves a window that does not fit to where it does."""

    def check(self, tokens, start):
        if len(tokens) > self.batch_size or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise InvalidArgument("tokens")

    def forward(self, tokens, start):
        return super().forward(tokens, np.clip(start, 0, self.max_length - tokens.shape[1]))


class WritesBeforeItRefuses(Context):
    def check(self, tokens, start):
        try:
            super().check(tokens, start)
        except InvalidArgument:
            self._held[:] = 0
            raise


class Wrapping(Context):
    """Takes tokens modulo the vocabulary."""

    def forward(self, tokens, start):
        return super().forward(tokens % self.vocab_size, start)


class Random(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        self.calls += 1
        return logits + np.random.default_rng(self.calls).normal(0, 0.01, logits.shape)


class Integer(Context):
    def forward(self, tokens, start):
        return np.maximum(super().forward(tokens, start), -9).astype(np.int64)


class OneSlot(Context):
    def forward(self, tokens, start):
        return super().forward(tokens, start)[:, -1:]


class NotANumber(Context):
    def forward(self, tokens, start):
        return super().forward(tokens, start) * np.nan


class WritesTokens(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        tokens[:, -1] = 0
        return logits


class WritesStart(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        start += tokens.shape[1]
        return logits


class KeepsTheCallersArray(Context):
    """Writes the window into its state only when the next call comes."""

    pending = None

    def forward(self, tokens, start):
        self.check(tokens, start)
        if self.pending is not None:
            self.write(self.pending[0], np.clip(self.pending[1], 0, self.max_length - self.pending[0].shape[1]))
        logits = super().forward(tokens, start)
        self.pending = tokens, start
        return logits


class TooShort(Context):
    """Cannot use the last position it promises."""

    def check(self, tokens, start):
        super().check(tokens, start)
        if start.max() + tokens.shape[1] == self.max_length:
            raise InvalidArgument("start")


class WindowBeyondItsLimit(Context):
    max_window = 6


class NoRows(Context):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batch_size = 2.0


class RelativePositions(Context):
    """Counts positions from the beginning of the window: a slot's law is shifted by where its window begins."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        return logits + 0.1 * np.minimum(start, 1)[:, None, None] * np.arange(self.vocab_size)


BROKEN = {
    Late: "own-token",
    Early: "causal",
    NonCausal: "causal",
    Leaking: "rows-independent",
    Stale: "rollback",
    StaleRight: "rollback",
    FirstRowsStart: "ragged-starts",
    Appending: "deterministic",
    LosesChunkEnds: "window-split",
    RelativePositions: "window-split",
    AllRows: "fewer-rows",
    Clamping: "bounds-refused",
    WindowBeyondItsLimit: "bounds-refused",
    WritesBeforeItRefuses: "bounds-refused",
    Wrapping: "tokens-refused",
    Random: "deterministic",
    Integer: "shape-and-type",
    OneSlot: "shape-and-type",
    NotANumber: "shape-and-type",
    WritesTokens: "input-untouched",
    WritesStart: "input-untouched",
    KeepsTheCallersArray: "input-untouched",
    TooShort: "whole-length",
    NoRows: "attributes",
}


def table(kind=Strict, rows=3, seed=4, length=LENGTH, vocab_size=V):
    return kind(random_table(seed, vocab_size, zeros=0.2), vocab_size, rows, length)


@pytest.mark.parametrize(("kind", "name"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("seed", range(2))
def test_a_broken_provider_is_named(kind, name, seed):
    with pytest.raises(CheckFailed, match=f"- {name}: ") as caught:
        check_provider(table(kind, seed=seed), seed=seed)
    assert name in caught.value.report.failures


@pytest.mark.parametrize(
    "kind", [Late, NonCausal, StaleRight, Appending, LosesChunkEnds, Clamping, Wrapping, WritesTokens]
)
def test_most_of_it_is_seen_with_one_row(kind):
    assert BROKEN[kind] in provider_report(table(kind, rows=1)).failures


def test_one_row_that_keeps_its_first_tokens_for_ever_is_seen_beside_a_fresh_provider():
    stale = table(Stale, rows=1)
    alone = provider_report(stale)
    assert "no memory" in alone.notes["own-token"][0]
    assert "rollback" in provider_report(table(Stale, rows=1), fresh=lambda: table(Stale, rows=1)).failures


@pytest.mark.parametrize("seed", range(30))
def test_a_correct_provider_never_fails(seed):
    random = np.random.default_rng(seed)
    rows, vocab_size, length = (int(random.integers(low, high)) for low, high in ((1, 5), (2, 7), (4, 30)))
    provider = table(rows=rows, vocab_size=vocab_size, length=length, seed=seed)
    if seed % 3 == 0:
        provider.max_window = int(random.integers(1, 8))
    report = check_provider(provider, seed=seed)
    assert max(report.differences.values()) == 0
    assert [result.name for result in report.results] == ["attributes", *PROVIDER_CHECKS]


def test_a_correct_context_passes_so_that_only_the_fault_of_a_broken_one_is_seen():
    assert check_provider(table(Context)).passed


def test_the_shipped_table_passes():
    """It takes any token: its function alone knows what it can be asked."""
    check_provider(TableProvider(TABLE, V, 3, LENGTH))


def test_a_model_without_memory_passes_and_is_noted():
    report = check_provider(Strict(lambda context: np.full(V, 1 / V), V, 2, LENGTH))
    assert "no memory" in report.notes["own-token"][0]
    assert check_provider(Strict(lambda context: np.ones(1), 1, 2, LENGTH)).passed


@pytest.mark.parametrize("unconditional", [[1], [1, 2, 0]])
@pytest.mark.parametrize("prompts", [None, [[0], [2]], [[1, 2, 3, 0], [2]]])
def test_guidance_passes(unconditional, prompts):
    check_provider(GuidedProvider(Strict(random_table(3, V), V, 4, LENGTH), 2.0, unconditional), prompts=prompts)


def test_guidance_without_a_fixed_prompt_passes_with_prompts():
    guided = GuidedProvider(Strict(random_table(3, V), V, 4, LENGTH), 2.0, lambda prompt: [0] * len(prompt))
    check_provider(guided, prompts=[[1, 2], [3]])


def test_a_reference_sees_a_position_that_is_wrong_everywhere():
    by_position = lambda context: np.eye(V)[len(context) % V] * 0.5 + 0.5 / V  # noqa: E731
    shifted = lambda context: by_position((0, *context))  # noqa: E731

    def reference(tokens):
        return np.log([by_position(tuple(tokens[: j + 1])) for j in range(len(tokens))])

    assert check_provider(Strict(by_position, V, 2, LENGTH), reference=reference).notes.get("reference") is None
    assert check_provider(Strict(shifted, V, 2, LENGTH)).notes["reference"]
    assert list(provider_report(Strict(shifted, V, 2, LENGTH), reference=reference).failures) == ["reference"]


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
    report = provider_report(table(Late))
    assert not report.passed
    text = str(report)
    assert "FAILED  own-token" in text
    assert "passed  attributes" in text
    assert text.startswith("Late: 16 checks, 1 failed")


def test_differences_are_measured_and_compared_with_the_tolerance():
    class Noisy(Strict):
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
    assert "less than ten tolerances" in check_provider(Strict(weak, V, 2, LENGTH)).notes["own-token"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ["rolback"]}, "rolback.*expected names among"),
        ({"tokens": [5]}, r"tokens is \[5\], expected at least one token in \[0, 5\)"),
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
    from coupled_sampling.bundle import Defaults, GeneratedTokens, Manifest, Prompt, file_record, write_manifest
    from coupled_sampling.export import GptDescription, save_graph, window_graph

    path = tmp_path_factory.mktemp("bundle")
    gpt = GptDescription(vocab_size=11, generated=8, positions=72, width=8, layers=2, heads=2, mlp_width=20)
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.5, shape) for name, shape in gpt.weight_shapes().items()}
    save_graph(window_graph(gpt, weights), path / "window.onnx")
    manifest = Manifest(
        name="toy",
        description="A toy.",
        files={"window.onnx": file_record(path / "window.onnx")},
        window_graph=dataclasses.replace(gpt.manifest("window.onnx"), max_window=50),
        vocab_size=11,
        generated_tokens=GeneratedTokens(0, 8),
        length=6,
        prompts={"sneaker": Prompt((8,), (), "Sneaker")},
        defaults=Defaults("ar", 1, "random"),
        licence="Apache-2.0",
        provenance={},
    )
    write_manifest(path, manifest)
    return path


@pytest.mark.parametrize("rows", [1, 3])
def test_onnxruntime_passes_on_a_random_model(toy, rows):
    ort = pytest.importorskip("coupled_sampling.backends.ort")
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
