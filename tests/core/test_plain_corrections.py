"""Averages of committed laws: what they predict, what they keep, and how much memory they take."""

import tracemalloc

import numpy as np
import pytest

from coupled_sampling.corrections import Changes, Corrector, Learns
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages

V, LAGS = 5, (1, 3)
NOBODY = V


def observed(count, seed=0):
    """Logits (n, V) and neighbours (n, K) of committed positions; some tokens are forbidden."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(size=(count, V)) * 2
    logits[draws.random((count, V)) < 0.1] = -np.inf
    logits[:, 0] = 0.5
    return logits, draws.integers(0, V + 1, (count, 2))


def changes(old, new):
    return Changes(np.array([old]), np.array([new]), np.array([9]))


def log_average(logits, neighbours, k, token, shrinkage):
    """R_k(token), from its definition and in float64."""
    laws = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    unigram = (laws.sum(axis=0) + 1 / V) / (len(laws) + 1)
    seen = laws[neighbours[:, k] == token]
    return np.log((seen.sum(axis=0) + shrinkage * unigram) / (len(seen) + shrinkage))


@pytest.mark.parametrize(("old", "new"), [((1, 2), (3, 2)), ((1, 2), (1, 0)), ((0, 4), (2, 1)), ((NOBODY, 2), (3, 4))])
@pytest.mark.parametrize("settings", [{}, {"weights": (0.9, -0.2), "shrinkage": 0.5}])
def test_logits_move_by_the_difference_of_two_log_averages(old, new, settings):
    logits, neighbours = observed(40)
    averages = RunningAverages(LAGS, V, **settings)
    for part in np.split(np.arange(40), [1, 7, 7, 30]):  # in pieces, an empty one among them
        averages.learn(logits[part], neighbours[part])
    weights, shrinkage = settings.get("weights", (0.5, 0.3)), settings.get("shrinkage", 3.0)
    expected = sum(
        weights[k]
        * (
            log_average(logits, neighbours, k, new[k], shrinkage)
            - log_average(logits, neighbours, k, old[k], shrinkage)
        )
        for k in (0, 1)
    )
    stale = np.array([[0.5, -1.0, 2.0, 0.0, 1.0]])
    for corrector in (averages, averages.kept()):
        assert corrector.correct(stale, changes(old, new)) - stale == pytest.approx(expected[None], abs=2e-6)
    assert averages.positions == 40


def test_each_position_is_moved_by_its_own_changes():
    averages = RunningAverages(LAGS, V)
    averages.learn(*observed(40))
    old, new = np.array([[1, 2], [1, 2], [0, 0]]), np.array([[3, 2], [1, 4], [2, 1]])
    stale = np.random.default_rng(1).normal(size=(3, V)).astype(np.float32)
    for corrector in (averages, averages.kept()):
        together = corrector.correct(stale, Changes(old, new, np.array([4, 5, 6])))
        alone = [corrector.correct(stale[i : i + 1], changes(old[i], new[i]))[0] for i in range(3)]
        assert together.dtype == np.float32
        assert together == pytest.approx(np.array(alone), abs=1e-6)


def test_what_was_never_seen_moves_nothing_and_what_is_forbidden_stays_so():
    averages = RunningAverages(LAGS, V)
    stale = np.array([[0.0, -np.inf, 1.0, 2.0, 0.0]])
    assert averages.correct(stale, changes((0, 1), (2, 3))).tolist() == stale.tolist()
    averages.learn(np.array([[0.0, -np.inf, -np.inf, -np.inf, -np.inf]] * 50), np.array([[2, 2]] * 50))
    for corrector in (averages, averages.kept()):
        moved = corrector.correct(stale, changes((0, 1), (2, 1)))
        assert np.isneginf(moved[0, 1])
        assert np.isfinite(moved[0, [0, 2, 3, 4]]).all()
        assert moved[0, 0] - moved[0, 2] > stale[0, 0] - stale[0, 2]  # after a 2 it has always been token 0


def test_positions_without_a_law_are_passed_over():
    logits, neighbours = observed(6)
    clean, averages = RunningAverages(LAGS, V), RunningAverages(LAGS, V)
    clean.learn(logits[:4], neighbours[:4])
    logits[4], logits[5, 2] = -np.inf, np.nan
    averages.learn(logits, neighbours)
    assert averages.positions == 4
    stale = np.zeros((1, V))
    change = changes(neighbours[4], neighbours[0])
    assert averages.correct(stale, change).tolist() == clean.correct(stale, change).tolist()


def test_what_raises_while_it_learns_leaves_it_as_it_was():
    averages = RunningAverages(LAGS, V)
    logits, neighbours = observed(8)
    averages.learn(logits, neighbours)
    before = averages.kept().state()
    with pytest.raises(ValueError, match="broadcast"):  # on the way, when it meets a token that it knows
        averages.learn(np.zeros((2, V + 1)), np.array([[NOBODY, NOBODY], neighbours[0]]))
    assert averages.positions == 8
    for name, values in averages.kept().state().items():
        assert (values == before[name]).all()


def test_it_does_not_hold_on_to_the_arrays_it_was_told():
    averages = RunningAverages(LAGS, V)
    logits, neighbours = observed(8)
    averages.learn(logits, neighbours)
    before = averages.kept().rows.copy()
    logits[:], neighbours[:] = 0, 0
    assert (averages.kept().rows == before).all()


def test_kept_averages_come_back_from_their_state():
    averages = RunningAverages(LAGS, V)
    averages.learn(*observed(40))
    kept = averages.kept()
    again = KeptAverages.from_state(kept.state())
    stale, change = np.zeros((1, V)), changes((0, 1), (2, 3))
    assert again.lags == LAGS
    assert again.correct(stale, change).tolist() == kept.correct(stale, change).tolist()
    averages.learn(*observed(40, seed=1))
    assert again.correct(stale, change).tolist() == kept.correct(stale, change).tolist()  # a table learns nothing
    half = KeptAverages.from_state({**kept.state(), "rows": kept.rows.astype(np.float16)})
    assert half.correct(stale, change) == pytest.approx(kept.correct(stale, change), abs=5e-3)


def test_averages_learn_and_tables_do_not():
    averages = RunningAverages(LAGS, V)
    assert isinstance(averages, Learns)
    assert isinstance(averages.kept(), Corrector)
    assert not isinstance(averages.kept(), Learns)


def test_a_sequence_begins_with_nothing_and_the_same_settings():
    averages = RunningAverages(LAGS, V, weights=(1.0, 0.5), shrinkage=2.0, most_bytes=8 * 4 * V * 3)
    averages.learn(*observed(40))
    begun = averages.begun()
    assert (begun.positions, averages.positions) == (0, 40)
    assert (begun.weights, begun.shrinkage, begun.most_bytes) == ((1.0, 0.5), 2.0, 4 * V * 3)
    assert RunningAverages(LAGS, V, most_bytes=4 * V).begun().most_bytes == 4 * V


def test_of_more_tokens_than_there_is_room_for_those_seen_last_are_kept():
    averages = RunningAverages((1,), V, most_bytes=4 * V * 3)
    laws = np.eye(V) * 5.0
    for token in (0, 1, 2, 0, 3):
        averages.learn(laws[token : token + 1], np.array([[token]]))
    known = {int(token) for token in np.flatnonzero(averages.kept().index[0])}
    assert known == {0, 2, 3}  # 1 was not seen for longest
    assert averages.positions == 5
    assert averages.kept().rows.shape == (4, V)


def test_memory_stays_within_the_budget_at_a_large_vocabulary():
    vocab_size, budget = 65_536, 8 << 20
    averages = RunningAverages((1, 48), vocab_size, most_bytes=budget)
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(4, vocab_size)).astype(np.float32)
    tracemalloc.start()
    try:
        for _ in range(25):  # 200 tokens, of which 32 fit
            averages.learn(logits, draws.integers(0, vocab_size, (4, 2)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    own = 3 * 8 * vocab_size  # sums and the average over all positions
    assert budget * 0.9 < held < budget + own
    assert peak < budget + own + 12 * logits.nbytes


WRONG = [
    ({"lags": (0,)}, "lags is"),
    ({"lags": (1, 1)}, "lags is"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"weights": (0.5,)}, "weights is"),
    ({"weights": (0.5, np.nan)}, "weights is"),
    ({"shrinkage": 0.0}, "shrinkage is 0.0"),
    ({"shrinkage": np.inf}, "shrinkage is inf"),
    ({"most_bytes": 4 * V - 1}, "most_bytes is 19, expected at least 20"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        RunningAverages(**{"lags": LAGS, "vocab_size": V, **wrong})


STATE = {"lags": np.array([1]), "rows": np.zeros((2, 3), np.float32), "index": np.zeros((1, 4), np.int64)}
WRONG_STATES = [
    ({"lags": np.array([0])}, "lags is"),
    ({"rows": np.zeros((2, 3), int)}, "rows of averages"),
    ({"rows": np.full((2, 3), np.nan)}, "rows of averages"),
    ({"rows": np.zeros((0, 3))}, "rows of averages"),
    ({"rows": np.zeros(3)}, "rows of averages"),
    ({"index": np.zeros((1, 3), int)}, "index of averages"),
    ({"index": np.zeros((1, 4))}, "index of averages"),
    ({"index": np.full((1, 4), 2)}, "from 2 to 2"),
    ({"index": np.full((1, 4), -1)}, "from -1 to -1"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_STATES)
def test_a_wrong_state_is_refused(wrong, message):
    KeptAverages.from_state(STATE)
    with pytest.raises(InvalidArgument, match=message):
        KeptAverages.from_state({**STATE, **wrong})


@pytest.mark.parametrize("name", STATE)
def test_a_state_that_lacks_an_array_is_refused(name):
    with pytest.raises(InvalidArgument, match=f"lacks {name}"):
        KeptAverages.from_state({key: value for key, value in STATE.items() if key != name})
