"""Several blocks for one slot, emulated: the outcome is the same bits for any number of them. Nothing ran on a GPU."""

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends.cuda.kernels import blocks_per_slot, scratch_bytes
from coupled_sampling.noise import race_weights
from standins.cuda_emulation.comparison import decided, tie_ridden_logits
from standins.cuda_emulation.emulation import PLAIN, SANITIZED, THREADED, EmulationLauncher

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
SAMPLINGS = [Sampling(0.8), Sampling(0.8, top_k=300, top_p=0.9, min_p=1e-6), Sampling(0)]


@pytest.fixture(scope="module")
def launcher():
    with EmulationLauncher() as one:
        yield one


@pytest.fixture(scope="module")
def quick_launcher():
    with EmulationLauncher(PLAIN) as one:
        yield one


def outcome(launcher, vocab_size, method, sampling, parts, **settings):
    """Six slots, of which two have recycled drafts and three have fresh ones; as bytes."""
    logits = tie_ridden_logits(vocab_size, 3)
    logits[1:] = np.where(logits[1:] < -1e3, -1e3, logits[1:])
    laws = np.random.default_rng(4).dirichlet(np.full(vocab_size, 0.05), 2).astype(np.float32)
    laws[:, :2] += 1e-3
    pointer = launcher.allocate(laws.nbytes)
    launcher.upload(pointer, laws)
    row = {"recycled": 2, "fresh": 3, "draft_laws": pointer, "round": 3, "start": 40, "draft_laws_ahead": 0}
    tokens = np.array([0, 0, 1, vocab_size - 1, 0, 0])
    found = decided(launcher, logits, tokens=tokens, method=method, sampling=sampling, parts=parts, **row, **settings)
    launcher.release(pointer)
    return [array.tobytes() for array in found]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vocab_size", [3, 4095, 4096, 4097, 9001])
def test_the_number_of_blocks_changes_no_bit(launcher, method, vocab_size):
    for sampling in SAMPLINGS:
        expected = outcome(launcher, vocab_size, method, sampling, 1)
        for parts in (0, 2, 3, 5):
            assert outcome(launcher, vocab_size, method, sampling, parts) == expected


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_blocks_changes_no_bit_of_a_large_vocabulary(quick_launcher, method):
    expected = outcome(quick_launcher, 65536, method, SAMPLINGS[0], 1)
    for parts in (3, 8, 16):
        assert outcome(quick_launcher, 65536, method, SAMPLINGS[0], parts) == expected


ROUND = "i = place.part; i < place.chunks; i += place.parts) {\n        "
ONE_EACH = "i = place.part; i <= place.part; ++i) {\n        "
FIRST_PART = "if (thread || place.part) return;\n        place"
SECOND_PART = "if (thread || place.part != 1) return;\n        place"


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("sjd", "place.chunk[i].sum = sum;", "place.chunk[place.part].sum = sum;"),
        ("sjd", ROUND + "sum_laws", ONE_EACH + "sum_laws"),
        ("scd-match", "atomicMax(&place.site->lead, as_lead(best))", "place.site->lead = as_lead(best)"),
        ("scd-gumbel", ROUND + "const Chunk", ONE_EACH + "const Chunk"),
        ("scd-maximal", FIRST_PART, SECOND_PART),
    ],
)
def test_blocks_that_do_not_share_well_are_noticed(method, old, new):
    """Negative control."""
    with EmulationLauncher((*PLAIN, "-O0"), replacement=(old, new)) as broken:
        found = [outcome(broken, 9001, method, SAMPLINGS[0], parts) for parts in (1, 2, 3)]
    assert found[0] != found[1] or found[0] != found[2]


@pytest.mark.parametrize(("dtype", "offsets"), [(0, (4, 8, 12)), (1, (2, 6)), (2, (4,))])
def test_any_alignment_of_the_logits_gives_the_same_bits(launcher, dtype, offsets):
    """Four tokens are read at once only where they lie on a boundary of four; UBSan would see others."""
    logits = np.random.default_rng(1).standard_normal((3, 4100), np.float32)
    given = logits if dtype == 0 else logits.astype(np.float16)
    if dtype == 2:
        given = (logits.view(np.uint32) >> 16).astype(np.uint16)
    expected, *others = (decided(launcher, given, dtype=dtype, offset=offset) for offset in (0, *offsets))
    for other in others:
        for one, another in zip(expected, other, strict=True):
            np.testing.assert_array_equal(one, another)


def close_races(launcher):
    """Ten tokens with the position's largest race weights, whose products agree but for rounding: tokens and winners."""
    tokens, winners = [], []
    for position in range(1, 41):
        weights = race_weights(0, 0, position, 20_000).astype(np.float32)
        largest = np.argsort(weights)[-10:]
        logits = np.full((1, 20_000), -np.inf, np.float32)
        logits[0, largest] = -np.log(weights[largest])
        found, *_, laws = decided(launcher, logits, method="scd-match", start=position - 1)
        tokens.append(int(found[0]))
        winners.append(int((laws[0] * weights).argmax()))
    return tokens, winners


def test_words_alone_rule_out_only_losers(quick_launcher):
    """Of such tokens the word's upper half says almost everything: the bound is as tight as it gets."""
    tokens, winners = close_races(quick_launcher)
    assert tokens == winners


@pytest.mark.parametrize(("old", "new"), [("law * 0x1p32f < limit", "law * 0x1p32f * 0.99f < limit")])
def test_a_bound_too_tight_is_noticed(old, new):
    """Negative control."""
    with EmulationLauncher((*PLAIN, "-O0"), replacement=(old, new)) as launcher:
        tokens, winners = close_races(launcher)
    assert tokens != winners


@pytest.mark.long
def test_real_threads_do_not_race_over_several_chunks():
    logits = np.random.default_rng(2).standard_normal((2, 4500), np.float32)
    for method in ("scd-gumbel", "sjd"):
        with EmulationLauncher((*PLAIN[:2], THREADED[2])) as launcher:
            expected = decided(launcher, logits, method=method, parts=1)
        with EmulationLauncher(THREADED) as launcher:
            for one, other in zip(decided(launcher, logits, method=method, parts=2), expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_scratch_that_is_too_small_is_noticed(monkeypatch):
    """Negative control: the emulator's memory has exactly as many bytes as `scratch_bytes` says."""
    monkeypatch.setattr("standins.cuda_emulation.comparison.scratch_bytes", lambda *sizes: scratch_bytes(*sizes) - 1)
    with pytest.raises(AssertionError, match="heap-buffer-overflow"), EmulationLauncher(SANITIZED) as launcher:
        decided(launcher, np.zeros((2, 5000), np.float32))


@pytest.mark.parametrize(
    ("slots", "vocab_size", "processors", "expected"),
    [
        (64, 65536, 132, 8),  # 512 blocks of two chunks each, of 528 that run at a time
        (1, 65536, 132, 16),
        (512, 65536, 132, 1),
        (64, 4096, 132, 1),
        (64, 4097, 132, 2),
        (100, 50257, 132, 5),  # 13 chunks, three for each block and one for the last: four blocks would need four
        (1, 1, 1, 1),
        (10**6, 10**6, 1, 1),
    ],
)
def test_how_many_blocks_share_a_slot(slots, vocab_size, processors, expected):
    assert blocks_per_slot(slots, vocab_size, processors) == expected
