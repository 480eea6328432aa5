"""What correctors are asked, and what comes of what they answer: in the loop, for every method and on other arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import METHODS, Decoder, GuidedProvider, HostStep, Request, Sampling, generate
from coupled_sampling.corrections import Changes
from coupled_sampling.errors import CorrectorError, InvalidArgument
from coupled_sampling.noise import race_weights
from coupled_sampling.plain_corrections import RunningAverages
from coupled_sampling.testing import TableProvider, random_table
from coupled_sampling.testing.strategies import samplings, worlds
from standins.correctors import ByFactors, Kept, random_low_rank

RECYCLING = [name for name, method in METHODS.items() if method.recycles]
VOCAB = 5


class Elsewhere(TableProvider):
    """Logits in another array library."""

    def forward(self, tokens, start):
        return pytest.importorskip("array_api_strict").asarray(super().forward(tokens, start))


class Half(TableProvider):
    """Logits in half precision."""

    def forward(self, tokens, start):
        return super().forward(tokens, start).astype(np.float16)


class Watched(HostStep):
    """Notes every window and what came of it."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.seen = []

    def step(self, window):
        before = window._replace(contexts=[tokens.copy() for tokens in window.contexts])  # the loop writes on in them
        outcome = super().step(window)
        self.seen.append((before, outcome))
        return outcome


def neighbours(tokens, position, lags):
    return [int(tokens[position - lag]) if position >= lag else VOCAB for lag in lags]


def expected_questions(window, outcome, lags):
    """(old, new, position) of every redraft with a changed neighbour, found from what a step was given and what it returned."""
    questions = []
    for b in np.flatnonzero(window.draws):
        first, end = window.decided_positions(b)
        committed = first + int(outcome.committed[b])
        now = np.array(window.contexts[b])
        at = int(window.known[b]) - 1
        now[first:] = outcome.tokens[b, at : at + end - first][: len(now) - first]
        for position in range(committed, end):
            old, new = (neighbours(tokens, position, lags) for tokens in (window.contexts[b], now))
            if old != new:
                questions.append((position, old, new))
    return sorted(questions)


@pytest.mark.parametrize("lags", [(1,), (2,), (1, 3), (4, 1)])
@pytest.mark.parametrize("method", RECYCLING)
def test_asked_is_once_of_every_redraft_with_a_changed_neighbour_and_of_nothing_else(method, lags):
    """With the neighbours that stand there when all is redrawn: what a sweep from the left to the right alone can know."""
    table = random_table(3, VOCAB, concentration=0.5)
    corrector = Kept(*lags, answer=random_low_rank(4, VOCAB, lags).correct)
    step = Watched(TableProvider(table, VOCAB, 3, 60), method, None, corrector)
    decoder = Decoder(step, window=9, drafting="repeat")
    for i, length in enumerate((20, 25, 9)):
        decoder.add(Request([i] * (i + 1), length=length, sequence=i))
    asked = 0
    while decoder.active or decoder.waiting:
        corrector.asked.clear()
        step.seen.clear()
        decoder.step()
        got = sorted(
            (int(position), old.tolist(), new.tolist())
            for _, changes in corrector.asked
            for old, new, position in zip(*changes, strict=True)
        )
        ((window, outcome),) = step.seen
        assert got == expected_questions(window, outcome, lags)
        asked += len(got)
    assert asked > 30


@pytest.mark.parametrize("kind", [TableProvider, Elsewhere])
@pytest.mark.parametrize("method", ["scd-gumbel", "scd-match"])
def test_noise_of_a_position_is_made_once_however_often_its_draft_is_drawn_again(monkeypatch, kind, method):
    made = []

    def counted(seed, sequence, position, vocab_size):
        made.append((sequence, position))
        return race_weights(seed, sequence, position, vocab_size)

    monkeypatch.setattr("coupled_sampling.noise.race_weights", counted)
    model, corrector = kind(random_table(0, VOCAB), VOCAB, 2, 60), random_low_rank(0, VOCAB, (1, 3))
    generate(model, [[0], [1, 1]], length=30, window=8, method=method, drafting="repeat", corrections=corrector)
    assert len(made) == len(set(made))


def test_what_is_corrected_is_in_float32_at_least():
    corrector = Kept(1)
    generate(
        Half(random_table(0, VOCAB), VOCAB), [[0]], length=20, method="scd-maximal", window=6, corrections=corrector
    )
    assert {logits.dtype for logits, _ in corrector.asked} == {np.dtype(np.float32)}


def test_laws_are_corrected_after_guidance_and_before_the_warp():
    made = []

    class Noted(GuidedProvider):
        def forward(self, tokens, start):
            logits = super().forward(tokens, start)
            made.extend([row.tolist() for row in logits.reshape(-1, VOCAB)])
            return logits

    corrector = Kept(1)
    model = Noted(TableProvider(random_table(0, VOCAB), VOCAB, 2, 60), scale=2.0, unconditional=[3])
    sampling = Sampling(temperature=0.5, top_k=2)
    generate(model, [[0]], length=20, method="scd-maximal", window=6, corrections=corrector, sampling=sampling)
    asked = [row for logits, _ in corrector.asked for row in logits.tolist()]
    assert asked
    assert all(row in made for row in asked)


def test_processors_are_shown_what_now_stands_to_the_left():
    """Of a corrected site: the context that the outcome has there, up to it and no further."""
    seen = []

    def watching(logits, tokens, positions):
        seen.extend((int(position), tuple(tokens[:position].tolist())) for position in positions)
        return logits

    step = Watched(TableProvider(random_table(3, VOCAB), VOCAB, 1, 60), "scd-maximal", None, Kept(1, 2))
    decoder = Decoder(step, window=7, drafting="repeat")
    decoder.add(Request([0, 1], length=25, sampling=Sampling(processors=(watching,))))
    while decoder.active or decoder.waiting:
        seen.clear()
        decoder.step()
        window, outcome = step.seen[-1]
        first, end = window.decided_positions(0)
        now = np.array(window.contexts[0])
        at = int(window.known[0]) - 1
        now[first:] = outcome.tokens[0, at : at + end - first][: len(now) - first]
        for position, *_ in expected_questions(window, outcome, (1, 2)):
            assert (position, tuple(now[:position].tolist())) in seen


class NotANumber:
    """Predicts NaN after one token, and otherwise nothing new."""

    lags = (1,)

    def correct(self, logits, changes):
        return np.where(changes.new[:, :1] == 2, np.nan, logits)


@pytest.mark.parametrize("method", RECYCLING)
def test_where_a_prediction_is_no_law_the_rows_drafts_end_and_nothing_else(method):
    dead = ByFactors((1,), lambda old, new, position: [0 if new[0] == 2 else 1] * VOCAB)
    for corrector in (NotANumber(), dead):
        step = Watched(TableProvider(random_table(1, VOCAB), VOCAB, 2, 80), method, None, corrector)
        made = generate(step, [[0], [1, 1]], length=30, window=8, drafting="repeat")
        assert [len(tokens) for tokens in made.tokens] == [30, 30]
        ended = 0
        for window, outcome in step.seen:
            assert not outcome.failures
            for b in np.flatnonzero(window.draws):
                own = outcome.tokens[b, int(window.known[b]) - 1 : int(window.end[b])]
                closed = np.flatnonzero(own < 0)
                if closed.size:
                    ended += 1
                    assert (own[closed[0] :] == -1).all()
                    assert own[closed[0] - 1] == 2
                    assert closed[0] > outcome.committed[b] - 1
        assert ended > 0
        if method == "scd-match":
            model = TableProvider(random_table(1, VOCAB), VOCAB, 2, 80)
            plain = generate(model, [[0], [1, 1]], length=30, method="ar")
            assert [tokens.tolist() for tokens in made.tokens] == [tokens.tolist() for tokens in plain.tokens]


def no_such_neighbour(logits, changes):
    raise KeyError("no such neighbour")


WRONG = {
    "raises": no_such_neighbour,
    "another shape": lambda logits, changes: logits[:, :-1],
    "no array": lambda logits, changes: logits.tolist(),
    "complex": lambda logits, changes: logits + 1j,
    "writes": lambda logits, changes: logits.fill(0),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("method", RECYCLING)
def test_a_corrector_that_fails_is_named_and_changes_no_row(method, name):
    """The step can be tried again: what it then decides is what it would have decided at once."""

    def decoder(corrector):
        step = HostStep(TableProvider(random_table(1, VOCAB), VOCAB, 2, 80), method, None, corrector)
        made = Decoder(step, window=8, drafting="repeat")
        for i in range(2):
            made.add(Request([i, i], length=20, sequence=i))
        return made

    def finish(running, tokens):
        while running.active or running.waiting:
            for commit in running.step():
                tokens.setdefault(commit.handle, []).extend(commit.tokens.tolist())
        return tokens

    whole = finish(decoder(Kept(1)), {})
    corrector = Kept(1)
    running = decoder(corrector)
    tokens = {commit.handle: commit.tokens.tolist() for commit in running.step()}
    corrector.answer = WRONG[name]
    with pytest.raises(CorrectorError, match=r"^corrections <.*Kept") as caught:
        finish(running, tokens)
    assert (caught.value.__cause__ is not None) == (name in ("raises", "writes"))
    corrector.answer = Kept(1).answer
    assert finish(running, tokens) == whole


@pytest.mark.parametrize(
    "corrector", [Kept, object(), "plain", Kept(0), Kept(1, 1), Kept(True), Kept(1.5), Kept(*range(1, 10))]
)
def test_what_is_no_corrector_is_refused_before_anything_starts(corrector):
    model = TableProvider(random_table(0, 2), 2)
    with pytest.raises(InvalidArgument, match=r"corrections is|lags is"):
        HostStep(model, "scd-maximal", None, corrector)


@pytest.mark.parametrize("method", ["scd-maximal", "scd-match", "ar"])
@pytest.mark.parametrize(
    "corrector", [random_low_rank(0, 3, (1,)), RunningAverages((1,), 3), RunningAverages((1,), 3).kept()]
)
def test_a_table_for_another_vocabulary_is_refused_before_anything_starts(method, corrector):
    """Not when the first neighbour changes, in the middle of a sequence."""
    with pytest.raises(InvalidArgument, match="corrections is for 3 tokens, expected 2, the model's"):
        Decoder(TableProvider(random_table(0, 2), 2), method=method, corrections=corrector)


def test_a_fitted_table_is_its_formula():
    """Against loops; neighbours before the first position have the table's last row, and -inf stays."""
    lags, size = (1, 3), 6
    fitted = random_low_rank(0, size, lags, rank=3)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, size))
    logits[:, 2] = -np.inf
    old, new = generator.integers(0, size + 1, (2, 40, 2))
    expected = np.empty_like(logits)
    for i in range(40):
        which = sum(2**k for k in range(2) if old[i, k] != new[i, k])
        shift = sum(fitted.neighbours[k][new[i, k]] - fitted.neighbours[k][old[i, k]] for k in range(2))
        for token in range(size):
            expected[i, token] = (
                fitted.stale_scale[which] * logits[i, token]
                + fitted.unigram_scale[which] * fitted.unigram[token]
                + sum(fitted.basis[token, r] * shift[r] for r in range(3))
            )
    strict = pytest.importorskip("array_api_strict")
    for make in (np.asarray, strict.asarray):
        changes = Changes(*map(make, (old, new, np.arange(40))))
        for kind, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
            found = fitted.correct(make(logits.astype(kind)), changes)
            assert str(found.dtype).endswith(np.dtype(kind).name)
            np.testing.assert_allclose(np.asarray(found), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("unigram", np.zeros(3)),
        ("unigram", np.array([0.0, np.inf])),
        ("basis", np.zeros(2)),
        ("neighbours", np.zeros((1, 2, 2))),
        ("neighbours", np.zeros((1, 3, 2), int)),
        ("stale_scale", np.array([1.0, 0.0])),
        ("unigram_scale", np.zeros(3)),
    ],
)
def test_a_table_of_a_wrong_shape_is_refused_by_name(name, wrong):
    fitted = random_low_rank(0, 2, (1,))
    own = {each: getattr(fitted, each) for each in fitted.__dataclass_fields__} | {name: wrong}
    with pytest.raises(InvalidArgument, match=f"^{name} "):
        type(fitted)(**own)


def decoded(world, method, corrections, kind=TableProvider, rows=None, **settings):
    """The tokens and the number of passes of each of a world's prompts."""
    positions = max(map(len, world.prompts)) + world.length + world.window
    model = kind(world.table, world.table.vocab_size, rows or world.rows, positions)
    made = generate(
        model,
        world.prompts,
        length=world.length,
        window=world.window,
        stop=world.stop,
        method=method,
        corrections=corrections,
        drafting="repeat",
        **settings,
    )
    return [tokens.tolist() for tokens in made.tokens], [trace.nfe for trace in made.traces]


small = worlds(max_length=12, max_window=8, max_rows=3)


@st.composite
def settled(draw):
    """A world, and sampling for its vocabulary."""
    world = draw(small)
    return world, draw(samplings(world.table.vocab_size))


@pytest.mark.cases(7)
@pytest.mark.parametrize("kind", [TableProvider, Elsewhere, Half])
@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=6)
@given(problem=settled(), seed=st.integers(0, 99))
def test_a_corrector_that_changes_nothing_changes_no_token_and_no_pass(kind, method, problem, seed):
    world, sampling = problem
    same = {"kind": kind, "sampling": sampling, "seed": seed}
    assert decoded(world, method, Kept(1, 2, 5), **same) == decoded(world, method, None, **same)


@pytest.mark.parametrize("kind", [TableProvider, Elsewhere])
@pytest.mark.parametrize("method", ["scd-match", "speculative-match"])
@settings(derandomize=True, deadline=None, max_examples=15)
@given(problem=settled(), seed=st.integers(0, 99), lags=st.sampled_from([(1,), (2,), (1, 3), (2, 1, 4)]))
def test_under_match_no_token_depends_on_a_corrector(kind, method, problem, seed, lags):
    world, sampling = problem
    corrector = random_low_rank(seed, world.table.vocab_size, lags, scale=2)
    same = {"sampling": sampling, "seed": seed}
    assert decoded(world, method, corrector, kind, **same)[0] == decoded(world, "ar", None, **same)[0]


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", RECYCLING)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(world=small, seed=st.integers(0, 99))
def test_tokens_do_not_depend_on_the_batch_or_on_the_array_library(method, world, seed):
    corrector = random_low_rank(seed, world.table.vocab_size, (1, 3), scale=2)
    alone = decoded(world, method, corrector, rows=1, seed=seed)
    assert decoded(world, method, corrector, rows=len(world.prompts), seed=seed)[0] == alone[0]
    assert decoded(world, method, corrector, Elsewhere, rows=len(world.prompts), seed=seed)[0] == alone[0]
