"""The CUDA kernels, emulated on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer, against HostStep.

Nothing here has run on a GPU. What the emulation cannot show: the device's own logarithm and exponential, missing barriers on a
path that the small ThreadSanitizer build does not take, and speed.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends.cuda.kernels import ROW, WINDOW_DRAWS, window_noise
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.methods import METHODS
from coupled_sampling.noise import _words, race_weights, uniforms
from coupled_sampling.target import target_law
from standins.cuda_emulation.comparison import (
    WARPED,
    Float32Table,
    NormalWorld,
    compare,
    compare_on,
    decided,
    noise,
    tie_ridden_logits,
)
from standins.cuda_emulation.emulation import AS_SHIPPED, PLAIN, QUICKLY_SANITIZED, THREADED, EmulationLauncher
from standins.on_a_gpu import gpu, opened


@pytest.fixture(scope="module")
def launcher():
    with EmulationLauncher() as one:
        yield one


def test_philox_gives_the_published_vector(launcher):
    """Random123 1.14.0, kat_vectors: key and counter of zeros, which the layout reaches at position -1."""
    words = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    found, _, _ = noise(launcher, 0, 0, -1, 0, 1)
    assert found.tolist() == [(word >> 11) * 2.0**-53 for word in words]


@pytest.mark.parametrize("key", [(0, 0), (12345, 678), (2**63, 5), (2**64 - 1, 2**64 - 1)])
def test_noise_is_numpys_bit_for_bit(launcher, key):
    for position, round_, vocab_size in ((0, 0, 1), (7, 977, 6), (2**40, 2**33, 4097)):
        drawn, words, weights = noise(launcher, *key, position, round_, vocab_size)
        assert drawn.tolist() == uniforms(*key, round_, position, 1)[0].tolist()
        np.testing.assert_array_equal(words, _words(*key, (0, position, 1), vocab_size))
        np.testing.assert_array_equal(weights, race_weights(*key, position, vocab_size).astype(np.float32))


def test_race_weights_differ_from_numpys_in_rare_roundings_only(launcher):
    """Two logarithms within 1 ulp of float64 give the same float32 but where a rounding boundary lies between them."""
    count = 0
    for position in range(4):
        weights = noise(launcher, 3, 4, position, 0, 250_000)[2]
        expected = race_weights(3, 4, position, 250_000).astype(np.float32)
        different = np.flatnonzero(weights != expected)
        count += len(different)
        np.testing.assert_array_max_ulp(weights, expected, 1)
    print(f"\n{count} of 1,000,000 race weights differ from NumPy's after rounding to float32")
    assert count <= 5


UNTOUCHED = np.float32(-7)


def window_weights(launcher, vocab_size, width=5):
    """What `window_noise` writes for four rows of which the last draws nothing, and what it should, by the reference."""
    rows = np.zeros(4, ROW)
    rows["seed"], rows["sequence"] = [0, 2**64 - 1, 7, 9], [3, 2**63, 0, 1]
    rows["start"], rows["known"], rows["draws"] = [0, 2**40, 11, 3], [1, 3, 2, 1], [1, 1, 1, 0]
    rows["recycled"], rows["fresh"] = [2, 0, 1, 4], [2, 0, 1, 0]
    expected = np.full((4, width, vocab_size), UNTOUCHED)
    for b, row in enumerate(rows[:3]):
        first = int(row["known"]) - 1
        for j in range(first, first + int(row["recycled"] + row["fresh"]) + 1):
            position = int(row["start"]) + j + 1
            expected[b, j] = race_weights(int(row["seed"]), int(row["sequence"]), position, vocab_size)
    found = np.full_like(expected, UNTOUCHED)
    table, weights = launcher.allocate(rows.nbytes), launcher.allocate(found.nbytes)
    launcher.upload(table, rows)
    launcher.upload(weights, found)
    window_noise(launcher, table, len(rows), width, vocab_size, weights)
    launcher.download(weights, found)
    for pointer in (table, weights):
        launcher.release(pointer)
    return found, expected


@pytest.mark.parametrize("vocab_size", [1, 6, 515, 4097])
def test_noise_of_a_window_is_that_of_its_positions_and_nothing_else_is_written(launcher, vocab_size):
    np.testing.assert_array_equal(*window_weights(launcher, vocab_size))


def test_any_number_of_blocks_makes_the_noise_of_a_window(launcher):
    row = np.zeros(1, ROW)
    row["known"], row["fresh"], row["draws"], row["seed"] = 1, 1, 1, 5
    table, weights = launcher.allocate(row.nbytes), launcher.allocate(4 * 2 * 2000)
    launcher.upload(table, row)
    found = []
    for parts in (1, 3):
        launcher.launch("window_noise", (2 * parts, 1), np.array((table, 2, 2000, weights), WINDOW_DRAWS))
        found.append(np.zeros((2, 2000), np.float32))
        launcher.download(weights, found[-1])
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0][1], race_weights(5, 0, 2, 2000).astype(np.float32))
    for pointer in (table, weights):
        launcher.release(pointer)


def test_noise_of_another_slot_is_seen():
    """Negative control."""
    wrong = ("row.start + slot + 1, int(group)", "row.start + slot, int(group)")
    with EmulationLauncher(PLAIN, replacement=wrong) as launcher:
        found, expected = window_weights(launcher, 6)
    assert (found != expected).any()


@pytest.mark.cases(7)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vocab_size", [2, 5, 300])
def test_tokens_and_counts_are_those_of_host_step(method, vocab_size):
    drafting = "ngram" if method.startswith("speculative") else "random"
    both = compare(lambda: Float32Table(vocab_size), method, drafting=drafting)
    assert both.differences == []


@pytest.mark.cases(4)
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize("window", [2, 5, 33])
def test_any_window_gives_the_tokens_of_host_step(method, window):
    assert compare(lambda: NormalWorld(267, 3), method, window=window, length=60).differences == []


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["scd-maximal", "scd-gumbel"])
def test_the_order_of_threads_and_the_size_of_blocks_do_not_matter(method):
    for options, order in ((PLAIN, 1), (PLAIN, 2), (AS_SHIPPED, 0)):
        assert compare(lambda: NormalWorld(3000, 2), method, options, order=order, length=20).differences == []


@pytest.mark.cases(3)
@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize("processors", [1, 132])
def test_blocks_that_share_a_slot_give_the_tokens_of_host_step(method, processors):
    """Three chunks of a slot, the last one short and odd: by one block, and by three."""
    settings = {"window": 1 if method == "ar" else 6, "length": 24, "processors": processors}
    settings["sampling"] = [Sampling(), Sampling(0.7, top_k=900, top_p=0.9)]
    assert compare(lambda: NormalWorld(9001, 2), method, **settings).differences == []


def test_a_window_may_have_more_slots_than_a_block_threads():
    settings = {"window": 150, "length": 190, "prompts": [[0]], "sampling": [Sampling()], "steps": 6}
    for method in ("sjd", "scd-maximal", "scd-match"):
        assert compare(lambda: NormalWorld(20), method, PLAIN, **settings).differences == []


def near_ties(launcher):
    """Laws that are one over the position's race weights, so that all 5,000 products agree but for rounding: tokens and winners."""
    weights = np.array([race_weights(0, 0, position, 5000) for position in range(1, 9)], np.float32)
    tokens, *_, laws = decided(launcher, -np.log(weights), method="scd-match")
    return tokens, (laws * weights).argmax(axis=-1)


def test_a_race_is_exact_even_where_all_contenders_nearly_tie(launcher):
    tokens, winners = near_ties(launcher)
    np.testing.assert_array_equal(tokens, winners)


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("product < best * (1 - BAND)", "product < best * (1 + BAND)"),
        ("return best * (1 - BAND);", "return best * 1.5f;"),
        ("> limit) limit = best * (1 - BAND)", "> limit) limit = best * 1.5f"),
        ("{best_law * race_weight(best_word), winner}", "{best, winner}"),
        ("best_law = law;", "best_law = law * 1.0001f;"),
    ],
)
def test_an_inexact_race_is_noticed(old, new):
    """Negative control."""
    with EmulationLauncher((*PLAIN, "-O0"), replacement=(old, new)) as launcher:
        tokens, winners = near_ties(launcher)
    assert (tokens != winners).any()


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_large_vocabularies(method):
    """A window of 64 and 70,000 tokens: sums of different order may put a uniform on the other side of a boundary."""
    sampling = Sampling(0.9, top_k=5000, top_p=0.95) if method in ("ar", "scd-maximal") else Sampling()
    steps, window = (25, 1) if method == "ar" else (2, 64)
    settings = {"steps": steps, "window": window, "length": 90, "prompts": [[0]], "sampling": [sampling]}
    both = compare(lambda: NormalWorld(70_000), method, **settings)
    print(f"\n{method}: {len(both.differences)} of {both.draws} draws differ: {both.differences}")
    assert len(both.differences) <= 0.02 * both.draws
    gumbel = method not in ("sjd", "scd-maximal")
    for _, slot, expected, found in both.differences:
        assert slot != "committed"
        assert not gumbel
        assert abs(expected - found) <= 70


SAMPLINGS = [
    *WARPED,
    Sampling(),
    Sampling(top_k=1),
    Sampling(top_k=40),
    Sampling(top_p=0.3),
    Sampling(top_p=1e-9),
    Sampling(min_p=1.0),
    Sampling(1e-30),
    Sampling(1e30),
    Sampling(1e6, top_p=0.3),
    Sampling(1e8, top_k=40, top_p=0.6),
    Sampling(1e8, min_p=1.0),
    Sampling(2.0, top_k=37, top_p=0.9, min_p=0.01),
]


@pytest.mark.parametrize("vocab_size", [1, 2, 64, 1000])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_laws_are_those_of_target_law(launcher, vocab_size, sampling):
    logits = tie_ridden_logits(vocab_size, vocab_size)
    *_, highest, laws = decided(launcher, logits, sampling=sampling)
    limited = (
        sampling if sampling.top_k is None or sampling.top_k < vocab_size else dataclasses.replace(sampling, top_k=None)
    )
    expected = target_law(logits, limited)
    np.testing.assert_allclose(laws, expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(laws > 0, expected > 0)
    np.testing.assert_array_equal(highest, logits.max(axis=-1))


@pytest.mark.parametrize("dtype", [1, 2])
def test_half_precision_is_read_exactly(launcher, dtype):
    """All 65,536 bit patterns but NaN and +inf, as the logits of one slot each of 2,048 tokens."""
    bits = np.arange(65536, dtype=np.uint16)
    wide = bits.view(np.float16).astype(np.float32) if dtype == 1 else (bits.astype(np.uint32) << 16).view(np.float32)
    for piece in np.split(np.arange(65536), 32):
        usable = np.isfinite(wide[piece])
        if not usable.any():
            continue
        part = piece[usable]
        _, _, highest, laws = decided(launcher, bits[part][None], dtype=dtype, sampling=Sampling(0.5))
        assert highest[0] == wide[part].max()
        with np.errstate(over="ignore"):
            expected = target_law(wide[part][None], Sampling(0.5))
        np.testing.assert_allclose(laws, expected, atol=1e-6, rtol=0)


BROKEN = {
    "ar": (
        "philox(seed, sequence, Word(group) + 1, Word(position), 1)",
        "philox(seed, sequence, Word(group) + 1, Word(position) + 1, 1)",
    ),
    "sjd": ("purpose = corrects ? RESIDUAL : REDRAFT;", "purpose = corrects ? RESIDUAL : ACCEPT;"),
    "scd-maximal": ("return target > proposed ? target - proposed : 0;", "return target > proposed ? target : 0;"),
    "scd-gumbel": ("row.draft_laws + (slot + row.draft_laws_ahead) *", "row.draft_laws + slot *"),
    "scd-match": ("leading_token(sites[i].lead) == drafts[i]", "leading_token(sites[i].lead) >= 0 * drafts[i]"),
    "speculative": ("return is_draft ? 0 : target;", "return is_draft ? target : target;"),
    "speculative-match": (
        "contest.enter(four.value[j], words.word[j], token + j);",
        "contest.enter(four.value[j], words.word[3 - j], token + j);",
    ),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_a_broken_kernel_is_noticed(method):
    """Negative control: one plausible bug for each method."""
    drafting = "ngram" if method.startswith("speculative") else "random"
    both = compare(lambda: Float32Table(12), method, (*PLAIN, "-O0"), replacement=BROKEN[method], drafting=drafting)
    assert both.differences


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("old", "new", "report", "vocab_size"),
    [
        (
            "i < 4 && token + i < end; ++i) law[token + i]",
            "i < 4 && token + i <= end; ++i) law[token + i]",
            "heap-buffer-overflow",
            63,
        ),
        (
            "static_cast<const float*>(logits) + index)",
            "static_cast<const float*>(logits) + index + 4)",
            "heap-buffer-overflow",
            64,
        ),
        ("own % 4 == 0 && other % 4 == 0", "own >= 0", "runtime error: .*misaligned", 63),
        pytest.param(
            *("aligned(is_aligned(law, 16))", "aligned(is_aligned(law, 4))", "runtime error: .*misaligned", 63),
            marks=pytest.mark.long,
        ),
        pytest.param(*("site + sites);", "site + sites + 1);", "heap-buffer-overflow", 64), marks=pytest.mark.long),
        ("(unsigned int)(127 + scale) << 23", "(unsigned int)(127 + scale) << scale", "runtime error: shift", 64),
    ],
)
def test_the_sanitizers_see_what_they_should(old, new, report, vocab_size):
    """Negative control: reads and writes beyond a buffer, and arithmetic that is undefined."""
    with (
        pytest.raises(AssertionError, match=report),
        EmulationLauncher(QUICKLY_SANITIZED, replacement=(old, new)) as broken,
    ):
        decided(broken, tie_ridden_logits(vocab_size, 1), sampling=Sampling(top_p=0.5))


def threaded_decision(launcher):
    """A small step with every kind of phase."""
    logits = tie_ridden_logits(200, 2)[:2]
    sampling = Sampling(0.9, top_k=90, top_p=0.9, min_p=0.001)
    return decided(launcher, logits, sampling=sampling, method="scd-gumbel")


@pytest.mark.long
def test_real_threads_do_not_race():
    """ThreadSanitizer sees a given race in half of the runs or more (see below), so the step runs several times."""
    with EmulationLauncher(PLAIN) as launcher:
        expected = threaded_decision(launcher)
    with EmulationLauncher(THREADED) as launcher:
        for _ in range(4):
            for one, other in zip(threaded_decision(launcher), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "shared.partial[thread] = sum.value();\n    });\n    const Scored highest",
            "shared.partial[0] = sum.value();\n    });\n    const Scored highest",
        ),
        (
            "            for (int i = thread; i < BINS * LANES; i += Threads) histogram.",
            "            if (thread == 0) histogram.prefix = prefix;\n"
            "            for (int i = thread; i < BINS * LANES; i += Threads) histogram.",
        ),
    ],
    ids=["one place written by all", "a result written again while slow threads still read it"],
)
def test_a_race_is_noticed(old, new):
    """Negative control, for the kind of race, too, that taking turns cannot show."""

    def decide_often():
        with EmulationLauncher(THREADED, replacement=(old, new)) as launcher:
            for _ in range(30):
                threaded_decision(launcher)

    with pytest.raises(AssertionError, match="data race"):
        decide_often()


@pytest.fixture
def gpu_launcher():
    device = gpu()
    return opened(lambda: PinnedLauncher(Stream(device)))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_tokens_of_host_step(gpu_launcher, method):
    drafting = "ngram" if method.startswith("speculative") else "random"
    assert compare_on(gpu_launcher, lambda: Float32Table(300), method, drafting=drafting).differences == []


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_tokens_of_host_step_for_large_vocabularies(gpu_launcher, method):
    drafting = "ngram" if method.startswith("speculative") else "random"
    large = compare_on(gpu_launcher, lambda: NormalWorld(70_000, 2), method, steps=20, length=90, drafting=drafting)
    print(f"\n{method}: {len(large.differences)} of {large.draws} draws differ: {large.differences}")
    assert len(large.differences) <= 0.02 * large.draws


@pytest.mark.gpu
def test_noise_on_a_gpu_is_numpys(gpu_launcher):
    drawn, words, weights = noise(gpu_launcher, 3, 4, 5, 6, 1_000_000)
    assert drawn.tolist() == uniforms(3, 4, 6, 5, 1)[0].tolist()
    np.testing.assert_array_equal(words, _words(3, 4, (0, 5, 1), 1_000_000))
    expected = race_weights(3, 4, 5, 1_000_000).astype(np.float32)
    np.testing.assert_array_max_ulp(weights, expected, 1)
    assert (weights != expected).sum() <= 20


@pytest.mark.gpu
def test_noise_of_a_window_on_a_gpu_is_numpys(gpu_launcher):
    found, expected = window_weights(gpu_launcher, 100_000)
    np.testing.assert_array_max_ulp(found, expected, 1)
    assert (found != expected).sum() <= 20
