"""The embedded model of pictures: the joint law of its first tokens, decoded in parallel, is that of ordinary sampling."""

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, generate, open_bundle
from coupled_sampling.drafting import Copy

ort = pytest.importorskip("coupled_sampling.backends.ort.provider")
stats = pytest.importorskip("scipy.stats")

SEQUENCES = 800
PROMPT = 1 + 14 + 10
FALSE_ALARM = 1e-3  # for each test below; seeds are fixed, so a failure is a bug until shown otherwise


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


def opened(bundle, rows=1):
    return ort.OrtProvider.open(bundle, batch_size=rows, threads=1)  # tests run side by side


@pytest.fixture(scope="module")
def prompt(bundle):
    """A bag, and the beginning of a picture of it after which the next tokens are uncertain."""
    start = bundle.manifest.find_prompt("bag")
    beginning = generate(opened(bundle), [start], length=PROMPT - 1, method="ar", seed=3).tokens[0]
    return np.concatenate([start, beginning])


def next_pairs(bundle, prompt, method, count):
    """int64 (count, 2): the first two tokens after ``prompt``, and the part of the second that a recycled draft was tested for.

    Each sequence has a seed of its own. Sequences go on a little after the pair, so that windows have drafts behind it.
    """
    step = Recycling(opened(bundle, 16), method)
    decoder = Decoder(
        step, window=8, drafting=Copy(14, fill=int(prompt[-1]))
    )  # which was generated, like all but the first
    for i in range(count):
        decoder.add(Request(prompt, 4, seed=i))
    parts = [[] for _ in range(count)]
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            parts[commit.handle].append(commit.tokens)
    return np.array([np.concatenate(part)[:2] for part in parts]), step.tested / count


class Recycling(HostStep):
    """Counts the rows whose second token after the prompt was decided on a recycled draft."""

    tested = 0

    def step(self, window):
        first = window.start + window.known == PROMPT + 1
        self.tested += int((first & (window.recycled > 0)).sum())
        return super().step(window)


@pytest.fixture(scope="module")
def pair_law(bundle, prompt):
    """Law (256, 256) of the first two tokens after ``prompt``, by the chain rule from the model itself."""
    model = opened(bundle, 16)
    law = np.zeros((256, 256))
    for first in range(0, 256, 16):
        tokens = np.concatenate([np.tile(prompt, (16, 1)), np.arange(first, first + 16)[:, None]], axis=1)
        logits = model.forward(tokens, np.zeros(16, np.int64))[:, -2:, :256].astype(float)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        law[first : first + 16] = weights[0, 0, first : first + 16, None] * weights[:, 1]
    return law


def goodness_of_fit(tokens, law, least=5):
    """p-value of a chi-square test of pairs against ``law``; cells expected fewer than ``least`` times are pooled into one."""
    expected = law.ravel() * len(tokens)
    observed = np.bincount(tokens[:, 0] * 256 + tokens[:, 1], minlength=256 * 256).astype(float)
    large = expected >= least
    observed = np.append(observed[large], observed[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    "method", ["scd-maximal", *(pytest.param(name, marks=pytest.mark.long) for name in ("ar", "sjd", "scd-gumbel"))]
)
def test_the_joint_law_of_two_tokens_is_exact_and_the_test_has_power(bundle, prompt, pair_law, method):
    law = pair_law
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert (law.ravel() * SEQUENCES >= 5).sum() > 20  # uncertain enough to be worth testing
    pairs, recycled = next_pairs(bundle, prompt, method, SEQUENCES)
    assert recycled > 0.3 or method == "ar"
    assert goodness_of_fit(pairs, law) > FALSE_ALARM
    wrong = law**0.8 / (law**0.8).sum()
    assert goodness_of_fit(pairs, wrong) < FALSE_ALARM / 100


def test_match_gives_the_tokens_of_ar_on_a_real_model(bundle):
    prompts = [p.tokens for p in bundle.manifest.prompts.values()][:4]
    runs = [
        generate(
            opened(bundle, rows), prompts, length=196, method=method, window=window,
            drafting="copy:14", seed=5,
        ).tokens
        for method, window, rows in [("ar", 1, 1), ("scd-match", 32, 1), ("scd-match", 7, 3)]
    ]  # fmt: skip
    for tokens in zip(*runs, strict=True):
        np.testing.assert_array_equal(tokens[0], tokens[1])
        np.testing.assert_array_equal(tokens[0], tokens[2])
