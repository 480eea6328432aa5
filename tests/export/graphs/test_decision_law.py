"""The step graph's target law against the core's: every temperature with every top-k, top-p and min-p, and too few candidates."""

import itertools

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.backends.ort.step_inputs import candidates, warp_settings
from coupled_sampling.contracts import RowInfo
from coupled_sampling.export.graphs.decision import decision_graph
from coupled_sampling.target import target_law
from standins.table_graphs import VOCAB, WIDE, session_of

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEMPERATURES = (1.0, 0.4, 1.7, 0.0, 1e-30, 1e6, 1e30)
TOP_K, TOP_P, MIN_P = (None, 1, 3, 10_000), (1.0, 0.9, 0.5, 0.05), (0.0, 0.02, 0.3, 1.0)
GRID = [Sampling(*one) for one in itertools.product(TEMPERATURES, TOP_K, TOP_P, MIN_P)]
SLOTS = 6


class Settings:
    """What `warp_settings` and `candidates` read of a window: one row for each of ``samplings``."""

    def __init__(self, samplings):
        self.rows = [RowInfo(0, 0, sampling) for sampling in samplings]


def logits_of(vocab_size, rows):
    """Logits (rows, SLOTS, V): plain ones, some forbidden, some that tie, and very unequal ones."""
    random = np.random.default_rng(vocab_size)
    logits = random.standard_normal((rows, SLOTS, vocab_size), np.float32) * 2
    logits[:, 1][random.random((rows, vocab_size)) < 0.4] = -np.inf
    logits[:, 2] = np.round(logits[:, 2])
    logits[:, 3] = np.round(logits[:, 3] / 2)
    logits[:, 4] *= 20
    logits[:, 1, 0] = 0.5
    return logits


def laws_of(session, logits, samplings, count=None):
    """The graph's laws (B, SLOTS, V) and which of them want more candidates (B, SLOTS); ``count`` candidates at most."""
    rows, slots, vocab_size = logits.shape
    settings = Settings(samplings)
    warps = warp_settings(settings, vocab_size)
    nothing = np.zeros(rows, np.int64)
    feeds = {
        "logits": logits, "input_ids": np.zeros((rows, slots), np.int64), "start": nothing, "known": nothing + 1,
        "recycled": nothing, "fresh": nothing + slots - 1, "draws": np.ones(rows, bool),
        "temperature": np.float32([sampling.temperature for sampling in samplings]),
        "top_k": np.int64(warps["top_k"]), "top_p": np.float64(warps["top_p"]), "min_p": np.float32(warps["min_p"]),
        "candidates": np.int64([candidates(settings, vocab_size, vocab_size if count is None else count)]),
        "uniforms": np.zeros((rows, slots, 3)), "draft_laws": np.zeros((rows, 1, vocab_size), np.float32),
        "draft_laws_start": nothing,
    }  # fmt: skip
    return session.run(["laws", "nucleus_short"], feeds)


@pytest.fixture(scope="module", params=[VOCAB, WIDE])
def session(request):
    session = session_of(decision_graph("scd-maximal", request.param, warped=True))
    session.vocab_size = request.param
    return session


def test_the_law_is_the_cores_for_all_settings_together(session):
    logits = logits_of(session.vocab_size, len(GRID))
    laws, short = laws_of(session, logits, GRID)
    assert not short.any()
    for own, law, sampling in zip(logits, laws, GRID, strict=True):
        np.testing.assert_allclose(law, target_law(own, sampling), atol=2e-6, err_msg=str(sampling))


def test_the_settings_matter(session):
    """Each of them changes most laws of the grid that have it, or their product would prove little."""
    logits = logits_of(session.vocab_size, 1)[0, 0]
    for name, value in {"top_k": None, "top_p": 1.0, "min_p": 0.0}.items():
        pairs = [
            (target_law(logits, sampling), target_law(logits, Sampling(**{**vars_of(sampling), name: value})))
            for sampling in GRID
            if getattr(sampling, name) != value and sampling.temperature > 0.1
        ]
        assert np.mean([np.abs(law - without).max() > 0.01 for law, without in pairs]) > 0.1, name


def vars_of(sampling):
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_law_is_right_or_said_to_want_more_candidates(session, count):
    """Few rows a call, of any settings: a call takes the candidates that the neediest of its rows wants."""
    logits, wanting = logits_of(session.vocab_size, len(GRID)), 0
    for chosen in np.array_split(np.random.default_rng(count).permutation(len(GRID)), len(GRID) // 3):
        samplings, own = [GRID[i] for i in chosen], logits[chosen]
        laws, short = laws_of(session, own, samplings, count)
        for b, sampling in enumerate(samplings):
            right = ~short[b]
            np.testing.assert_allclose(
                laws[b, right], target_law(own[b, right], sampling), atol=2e-6, err_msg=str(sampling)
            )
            if sampling.top_p == 1 or sampling.top_k in (1, 3) or sampling.temperature == 0:
                assert right.all(), f"{sampling} needs no more"
        wanting += short.sum()
    assert wanting > 0


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.6])
@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_a_nucleus_whose_mass_is_just_top_p_takes_no_token_more(kept, temperature):
    """Chances 1/2, 1/4, ... whose sums are rounded to one side or the other of top-p."""
    halves = 0.5 ** np.minimum(np.arange(1, VOCAB + 1), VOCAB - 1)
    assert halves.sum() == 1
    random = np.random.default_rng(kept)
    shifts = random.uniform(-0.5, 0.5, (40, 1, 1))
    logits = np.float32(temperature * np.log(halves) + shifts)
    samplings = [Sampling(temperature, top_p=float(halves[:kept].sum()))] * len(logits)
    session = session_of(decision_graph("scd-maximal", VOCAB, warped=True))
    laws, _ = laws_of(session, logits, samplings)
    expected = np.where(np.arange(VOCAB) < kept, halves, 0) / halves[:kept].sum()
    np.testing.assert_allclose(laws[:, 0], np.broadcast_to(expected, (len(laws), VOCAB)), atol=1e-4)
