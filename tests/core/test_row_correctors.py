"""What correctors that learn are told: every committed position once, a round later, each sequence for itself."""

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, generate
from coupled_sampling.errors import CorrectorError, InvalidArgument
from coupled_sampling.plain_corrections import RunningAverages
from coupled_sampling.testing import TableProvider
from standins.frameworks import Framework
from standins.schedules import LosesEveryThird

V, LAGS = 4, (1, 3)
REJECTING = ("sjd", "scd-maximal", "scd-gumbel")
RECYCLING = (*REJECTING, "scd-match")

AFTER = np.random.default_rng(0).dirichlet(np.ones(V), size=(V + 1, V + 1))


def next_law(context):
    return AFTER[context[-1], context[-3] if len(context) >= 3 else V]


class ReusedArray(TableProvider):
    """Returns the same memory at every call, as the contract lets it."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        if not hasattr(self, "_memory") or self._memory.shape != logits.shape:
            self._memory = logits
        self._memory[:] = logits
        return self._memory


def model(rows=1):
    return ReusedArray(next_law, V, rows, 128)


class Told:
    """Remembers what it is told, and what its sequences are told; corrects strongly by all of it."""

    lags = LAGS

    def __init__(self):
        self.logits, self.neighbours, self.sequences = [], [], []

    def correct(self, logits, changes):
        return logits + 3 * np.sum([np.exp(law) for law in self.logits[-3:]], axis=0) * (1 + changes.new[:, :1])

    def begun(self):
        self.sequences.append(Told())
        return self.sequences[-1]

    def learn(self, logits, neighbours):
        self.logits.extend(logits)
        self.neighbours.extend(neighbours.tolist())


def expected_of(prompt, tokens):
    """The logits and neighbours of every generated position, from the finished sequence."""
    whole = [*prompt, *tokens.tolist()]
    positions = range(len(prompt), len(whole))
    logits = [np.log(next_law(tuple(whole[:position]))) for position in positions]
    return logits, [[whole[p - lag] if p >= lag else V for lag in LAGS] for p in positions]


def decoded(step, requests, *, window=6, on_step=lambda: None):
    """The tokens of ``requests`` and how many each one's last step committed."""
    decoder = Decoder(step, window=window, drafting="repeat")
    handles = [decoder.add(request) for request in requests]
    tokens, last = {handle: [] for handle in handles}, {}
    while decoder.active or decoder.waiting:
        on_step()
        for commit in decoder.step():
            tokens[commit.handle].extend(commit.tokens.tolist())
            last[commit.handle] = len(commit.tokens)
    return [np.array(tokens[handle]) for handle in handles], [last[handle] for handle in handles]


def requests(count, length=24):
    prompts = [[0], [1, 2], [3, 0, 1, 2, 2]]
    return [Request(prompts[i % 3], length=length - 4 * i, seed=i) for i in range(count)]


@pytest.mark.parametrize("method", REJECTING)
def test_a_sequence_learns_of_its_own_committed_positions_each_once(method):
    told = Told()
    asked = requests(3)
    tokens, last = decoded(HostStep(model(2), method, corrections=told), asked)
    learned = {tuple(own.neighbours[0]): own for own in told.sequences}
    assert len(told.sequences) == len(learned) == 3
    assert told.logits == []
    for request, own_tokens, last_count in zip(asked, tokens, last, strict=True):
        logits, neighbours = expected_of(request.prompt, own_tokens)
        own = learned[tuple(neighbours[0])]
        known = len(own_tokens) - last_count  # what ended the sequence is of use to nobody
        assert own.neighbours == neighbours[:known]
        assert np.array(own.logits) == pytest.approx(np.array(logits[:known]))


def test_under_match_one_corrector_learns_of_all_sequences():
    told = Told()
    asked = requests(3)
    step = HostStep(model(), "scd-match", corrections=told)
    tokens, _ = decoded(step, asked)
    step.begin(0, asked[0])
    expected = [expected_of(request.prompt, own_tokens) for request, own_tokens in zip(asked, tokens, strict=True)]
    assert told.sequences == []
    assert told.neighbours == [own for _, neighbours in expected for own in neighbours]
    assert np.array(told.logits) == pytest.approx(np.array([own for logits, _ in expected for own in logits]))


def test_under_match_a_row_that_has_ended_is_learned_of_while_others_go_on():
    told = Told()
    asked = [Request([1, 2], length=6, seed=1), Request([0], length=40, seed=0)]
    _, last = decoded(HostStep(model(2), "scd-match", corrections=told), asked)
    assert len(told.logits) == 6 + 40 - last[1]


@pytest.mark.parametrize("method", REJECTING)
def test_tokens_depend_neither_on_the_batch_nor_on_earlier_requests(method):
    asked = requests(4, length=20)
    alone = [decoded(HostStep(model(), method, corrections=Told()), [request])[0][0] for request in asked]
    together, _ = decoded(HostStep(model(2), method, corrections=Told()), asked)
    in_turn, _ = decoded(HostStep(model(), method, corrections=Told()), asked)
    for own, shared, later in zip(alone, together, in_turn, strict=True):
        assert own.tolist() == shared.tolist() == later.tolist()


def test_tokens_of_match_do_not_depend_on_what_is_learned():
    asked = requests(3)
    plain, _ = decoded(HostStep(model(2), "scd-match"), asked)
    learning, _ = decoded(HostStep(model(2), "scd-match", corrections=Told()), asked)
    assert [own.tolist() for own in plain] == [own.tolist() for own in learning]


def test_what_is_learned_is_used():
    """With rejection a corrector shows in the tokens at a seed."""
    asked = requests(3)
    plain, _ = decoded(HostStep(model(2), "scd-maximal"), asked)
    learning, _ = decoded(HostStep(model(2), "scd-maximal", corrections=Told()), asked)
    assert [own.tolist() for own in plain] != [own.tolist() for own in learning]


class OutcomeLost(LosesEveryThird, HostStep):
    """Every third outcome does not arrive."""


class RaisesOnTheWay(HostStep):
    """Every third step raises when it has learned of the round before and decided."""

    calls = 0

    def _decide(self, *arguments):
        decided = super()._decide(*arguments)
        self.calls += 1
        if self.calls % 3 == 0:
            raise KeyboardInterrupt
        return decided


class Stubborn(Told):
    """Does not learn at the first time of asking."""

    calls = 0

    def begun(self):
        self.sequences.append(Stubborn())
        return self.sequences[-1]

    def learn(self, logits, neighbours):
        self.calls += 1
        if self.calls % 2:
            raise KeyboardInterrupt
        super().learn(logits, neighbours)


def interrupted(step, asked):
    decoder = Decoder(step, window=6, drafting="repeat")
    handles = [decoder.add(request) for request in asked]
    tokens = {handle: [] for handle in handles}
    interruptions = 0
    while decoder.active or decoder.waiting:
        try:
            commits = decoder.step()
        except KeyboardInterrupt:
            interruptions += 1
            continue
        for commit in commits:
            tokens[commit.handle].extend(commit.tokens.tolist())
    assert interruptions >= 3
    return [tokens[handle] for handle in handles]


@pytest.mark.parametrize("method", RECYCLING)
@pytest.mark.parametrize(
    ("step_type", "corrector_type"), [(OutcomeLost, Told), (RaisesOnTheWay, Told), (HostStep, Stubborn)]
)
def test_a_round_that_is_done_again_learns_nothing_twice(method, step_type, corrector_type):
    asked = requests(2, length=20)
    once, again = Told(), corrector_type()
    tokens, _ = decoded(HostStep(model(2), method, corrections=once), asked)
    assert interrupted(step_type(model(2), method, corrections=again), asked) == [own.tolist() for own in tokens]
    for own, other in zip((once, *once.sequences), (again, *again.sequences), strict=True):
        assert sorted(own.neighbours) == sorted(other.neighbours)


def test_a_position_that_has_no_law_is_not_learned_of():
    def dead_end(context):
        return np.zeros(V) if len(context) >= 9 else AFTER[context[-1], V]

    told = Told()
    provider = TableProvider(dead_end, V, 1, 64)
    step = HostStep(provider, "scd-match", corrections=told)
    decoder = Decoder(step, window=4, drafting="repeat")
    decoder.add(Request([0], length=20))
    commits = []
    while decoder.active or decoder.waiting:
        commits += decoder.step()
    assert commits[-1].reason == "error"
    step.begin(0, Request([0], length=2))
    assert len(told.logits) == 8
    assert np.isfinite(told.logits).all()


@pytest.mark.parametrize("method", RECYCLING)
def test_a_table_that_learns_nothing_is_shared_by_all_rows(method):
    averages = RunningAverages(LAGS, V)
    generate(model(), [[0]], length=100, method="scd-match", window=6, corrections=averages)
    step = HostStep(model(2), method, corrections=averages.kept())
    generate(step, [[0], [1]], length=20, window=6)
    assert averages.positions >= 90


def test_what_a_sequence_is_given_must_be_a_corrector():
    class Nothing(Told):
        def begun(self):
            return None

    with pytest.raises(InvalidArgument, match="corrections is None"):
        generate(model(), [[0]], length=9, method="sjd", window=4, corrections=Nothing())


@pytest.mark.parametrize("method", RECYCLING)
def test_a_corrector_that_cannot_learn_is_named_and_loses_nothing(method):
    class Raises(Stubborn):
        def begun(self):
            self.sequences.append(Raises())
            return self.sequences[-1]

        def learn(self, logits, neighbours):
            try:
                super().learn(logits, neighbours)
            except KeyboardInterrupt:
                raise ValueError("not now") from None

    asked, once, again = requests(1), Told(), Raises()
    tokens, _ = decoded(HostStep(model(), method, corrections=once), asked)
    decoder = Decoder(HostStep(model(), method, corrections=again), window=6, drafting="repeat")
    decoder.add(asked[0])
    made, named = [], []
    while decoder.active or decoder.waiting:
        try:
            made += [token for commit in decoder.step() for token in commit.tokens.tolist()]
        except CorrectorError as error:
            named.append(str(error))
    assert len(named) > 2
    assert all("raised ValueError while it learned: not now" in message for message in named)
    assert made == tokens[0].tolist()


def test_methods_that_do_not_recycle_teach_nothing():
    told = Told()
    generate(model(), [[0]], length=9, method="ar", corrections=told)
    generate(model(), [[0]], length=9, method="speculative", window=4, corrections=told)
    assert (told.logits, told.sequences) == ([], [])


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_averages_learn_of_models_in_any_array_library(name):
    framework = Framework(name)

    class Elsewhere(TableProvider):
        def forward(self, tokens, start):
            return framework.array(super().forward(tokens, start).astype(np.float32))

    class Here(TableProvider):
        def forward(self, tokens, start):
            return super().forward(tokens, start).astype(np.float32)

    made = []
    for provider in (Here, Elsewhere):
        averages = RunningAverages(LAGS, V)
        step = HostStep(provider(next_law, V, 1, 128), "scd-maximal", corrections=averages)
        made.append([own.tolist() for own in decoded(step, requests(1, length=16))[0]])
    assert made[0] == made[1]
