"""Requests, rules and models that do what nobody should: the others' tokens stay what they are alone, and errors tell the truth."""

import warnings
from fractions import Fraction

import numpy as np
import pytest

from coupled_sampling import Decoder, DraftModel, GuidedProvider, Request, Sampling, generate
from coupled_sampling.drafting import Proposal
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument, ProviderError
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider, random_table
from standins.ranged import Apart
from standins.requested import run, tokens_of

V = 4
TABLE = random_table(0, V)


class MadeOfTwo(CoupledSamplingError):  # noqa: N818
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def raises(logits, tokens, positions):
    raise MadeOfTwo("so", "sad")


def moves_positions(logits, tokens, positions):
    positions -= 1
    return logits.copy()


FAULTS = {
    "objects": lambda logits, tokens, positions: np.full(logits.shape, None),
    "text": lambda logits, tokens, positions: np.full(logits.shape, "x"),
    "complex": lambda logits, tokens, positions: logits + 1j,
    "moves positions": moves_positions,
    "an error made of two": raises,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_processor_returns_or_does_never_reaches_other_requests(method, fault):
    decoder = Decoder(TableProvider(TABLE, V, 2), method=method, window=4)
    bad = decoder.add(Request([2], length=6, sequence=1, sampling=Sampling(processors=(FAULTS[fault],))))
    good = decoder.add(Request([1], length=6))
    commits = run(decoder)
    assert commits[bad][-1].reason == "error"
    assert str(bad) in str(commits[bad][-1].error)
    alone = generate(TableProvider(TABLE, V), [[1]], length=6, method=method, window=4).tokens[0]
    np.testing.assert_array_equal(tokens_of(commits[good]), alone)


class Narrow(TableProvider):
    """In float32; it tells which type laws are made in."""

    def forward(self, tokens, start):
        return super().forward(tokens, start).astype(np.float32)


def test_a_processor_that_widens_its_logits_does_not_widen_those_beside_it():
    types = []

    def widen(logits, tokens, positions):
        return logits.astype(np.float64)

    def look(logits, tokens, positions):
        types.append(logits.dtype)
        return logits

    sampling = [Sampling(processors=(widen, look)), Sampling(processors=(look,))]
    generate(Narrow(TABLE, V, 2), [[1], [1]], length=3, sampling=sampling, window=4)
    assert set(types) == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "settings", [{"temperature": Fraction(1, 2)}, {"top_p": Fraction(1, 2)}, {"min_p": Fraction(1, 2)}]
)
def test_settings_may_be_any_real_number(settings):
    as_floats = {name: float(value) for name, value in settings.items()}
    for kind in (TableProvider, Narrow):
        given, wanted = (
            generate(kind(TABLE, V), [[1]], length=9, window=4, sampling=Sampling(**chosen)).tokens[0].tolist()
            for chosen in (settings, as_floats)
        )
        assert given == wanted


@pytest.mark.parametrize("method", METHODS)
def test_logits_that_only_float64_can_hold_make_a_law(method):
    class Huge(TableProvider):
        def forward(self, tokens, start):
            return np.where(np.arange(V) == 2, 2e39, 1e39) + 0 * super().forward(tokens, start)

    assert generate(Huge(TABLE, V), [[0]], length=5, method=method, window=3).tokens[0].tolist() == [2] * 5


class Hooked(TableProvider):
    """Calls ``hook`` once, in the middle of a pass, as another thread may."""

    hook = None

    def forward(self, tokens, start):
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()
        return super().forward(tokens, start)


def test_a_request_may_be_removed_while_its_prompt_is_read():
    provider = Hooked(TABLE, V, 2)
    decoder = Decoder(provider, method="scd-match", window=4)
    gone = decoder.add(Request([1] * 20, length=5))
    provider.hook = lambda: decoder.remove(gone)
    assert decoder.step() == []
    assert provider.calls == 1  # the chunk, and no window of nobody
    stays, gone = decoder.add(Request([2] * 20, length=5)), decoder.add(Request([1] * 20, length=5, sequence=1))
    provider.hook = lambda: decoder.remove(gone)
    commits = run(decoder)
    assert set(commits) == {stays}
    alone = generate(TableProvider(TABLE, V), [[2] * 20], length=5, method="ar").tokens[0]
    np.testing.assert_array_equal(tokens_of(commits[stays]), alone)


def test_a_sample_that_is_done_does_not_go_on_where_its_prompt_cannot_be_copied():
    class Full(TableProvider):
        def fork(self, source, targets, length):
            raise MemoryError("no room")

    decoder = Decoder(Full(TABLE, V, 2), method="ar")
    decoder.add(Request([1, 2], length=1, samples=2))
    with pytest.raises(MemoryError, match="no room"):
        decoder.step()
    commits = run(decoder)
    assert {handle: [commit.reason for commit in told] for handle, told in commits.items()} == {
        0: ["length"],
        1: ["length"],
    }


@pytest.mark.parametrize("asked", [{}, {"logprobs": True}, {"model_logprobs": True}])
@pytest.mark.parametrize("method", METHODS)
def test_a_failing_request_warns_of_nothing(method, asked):
    def dead(context):
        return np.zeros(V) if 3 in context else np.full(V, 0.25)

    decoder = Decoder(TableProvider(dead, V), method=method, window=4)
    handle = decoder.add(Request([0], length=40, **asked))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        commits = run(decoder)[handle]
    assert commits[-1].reason == "error"
    for commit in commits:
        for told in (commit.logprobs, commit.model_logprobs):
            assert told is None or np.allclose(told, np.log(0.25))
            assert told is None or len(told) == len(commit.tokens)


def test_a_request_whose_warning_is_made_an_error_is_not_queued():
    decoder = Decoder(TableProvider(TABLE, V))
    decoder.add(Request([0], length=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="same noise"):
            decoder.add(Request([0], length=3))
    assert decoder.waiting == 1


def test_an_error_names_the_row_where_rows_are_forwarded_apart():
    class LastIsBad(Apart):
        def forward_rows(self, tokens, start, rows):
            logits = super().forward_rows(tokens, start, rows)
            if rows == range(2, 3):
                logits[:] = np.nan
            return logits

    decoder = Decoder(LastIsBad(TABLE, V, 3), method="ar")
    for sequence, length in enumerate((1, 1, 5)):
        decoder.add(Request([0], length=length, sequence=sequence))
    assert "logits of row 2 for position 2" in str(run(decoder)[2][-1].error)


@pytest.mark.parametrize("method", ["speculative", "speculative-match", "scd-maximal"])
def test_a_draft_model_that_others_had_in_between_holds_nothing_any_more(method):
    def decoder(draft):
        return Decoder(TableProvider(TABLE, V), method=method, window=4, drafting=DraftModel(draft))

    def tokens(decoder, prompt, sequence):
        handle = decoder.add(Request(prompt, length=12, sequence=sequence))
        return tokens_of(run(decoder)[handle]).tolist()

    shared = TableProvider(random_table(1, V), V)
    one, two = decoder(shared), decoder(shared)
    tokens(one, [1, 2, 3], 0)
    tokens(two, [1, 1, 1, 2, 2], 1)
    alone = tokens(decoder(TableProvider(random_table(1, V), V)), [1, 2, 3], 2)
    assert tokens(one, [1, 2, 3], 2) == alone
    generate(shared, [[2, 2, 2, 2]], length=9, window=4)
    assert tokens(one, [1, 2, 3], 2) == alone


def test_a_model_that_is_told_a_request_cannot_change_it():
    class Eraser(TableProvider):
        def begin(self, row, request):
            request.prompt[0] = 3

    decoder = Decoder(Eraser(TABLE, V))
    handle = decoder.add(Request([1, 2], length=3))
    assert run(decoder)[handle][-1].reason == "error"


@pytest.mark.parametrize("change", [lambda law: law + 0j, lambda law: law.astype(str)])
def test_laws_of_guesses_are_real_numbers(change):
    class Guess:
        def propose(self, contexts, noise, *, vocab_size, shared):
            return [Proposal(np.zeros(c.wanted, int), change(np.full((c.wanted, V), 1 / V))) for c in contexts]

    with pytest.raises(InvalidArgument, match="proposed laws of"):
        generate(TableProvider(TABLE, V), [[0]], length=8, window=4, drafting=Guess())


@pytest.mark.parametrize(
    "change", [lambda logits: None, list, lambda logits: logits[:, -1], lambda logits: logits + 0j]
)
def test_an_error_about_what_a_draft_model_returns_says_so(change):
    class Broken(TableProvider):
        def forward(self, tokens, start):
            return change(super().forward(tokens, start))

    with pytest.raises(ProviderError, match="draft model returned"):
        generate(
            TableProvider(TABLE, V),
            [[0]],
            length=6,
            method="speculative",
            window=4,
            drafting=DraftModel(Broken(TABLE, V)),
        )


class Forgets(TableProvider):
    """It holds nothing behind a window's end, and need not: state is promised below a window's start."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        for held, first in zip(self._held, start, strict=False):
            held[first + tokens.shape[1] :] = 0
        return logits


class ForgetsByRows(Apart):
    def forward_rows(self, tokens, start, rows):
        logits = super().forward_rows(tokens, start, rows)
        for row, first in zip(rows, start, strict=True):
            self._held[row, first + tokens.shape[1] :] = 0
        return logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [Forgets, ForgetsByRows])
@pytest.mark.parametrize("reuse", [False, True])
def test_what_a_model_holds_behind_a_window_is_never_relied_upon(method, model, reuse):
    prompts = [[1], [2, 1] * 9, [2, 1] * 4, [1, 2, 3], [2, 1] * 9, [3] * 14]
    decoder = Decoder(model(TABLE, V, 3), method=method, window=4, prompt_chunk=3, reuse_prefixes=reuse)
    for sequence, prompt in enumerate(prompts):
        decoder.add(Request(prompt, length=12, sequence=sequence))
    commits = run(decoder)
    for handle, prompt in enumerate(prompts):
        alone = generate(TableProvider(TABLE, V), [prompt], length=12, method=method, window=4, sequences=[handle])
        np.testing.assert_array_equal(tokens_of(commits[handle]), alone.tokens[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_guided_prompt_that_is_being_read_is_not_written_over(method):
    def guided(rows):
        return GuidedProvider(TableProvider(TABLE, V, 2 * rows), 2.0, [1])

    prompts = [[1], [2, 1, 3] * 6]
    together = generate(guided(2), prompts, length=9, method=method, window=4, prompt_chunk=6).tokens
    for sequence, prompt in enumerate(prompts):
        alone = generate(guided(1), [prompt], length=9, method=method, window=4, sequences=[sequence]).tokens[0]
        assert together[sequence].tolist() == alone.tolist()
