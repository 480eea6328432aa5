"""What a decoder does beyond drawing tokens keeps the law, too: every path of small worlds, against the chain rule.

Worlds with contexts that have no law, requests that fail beside others, runs of tokens that end a sequence, samples that share a
prompt, prompts in chunks of every split, prefixes that are still there, and sequences that go on after an interruption.
"""

import itertools

import numpy as np
import pytest

from coupled_sampling import Decoder, DraftModel, Request, Sampling
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidLogits
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider, exact_law, random_table, total_variation
from standins.ranged import Apart, Poisoned

LOSSLESS = 1e-12
DRAFTING = [name for name in METHODS if name != "ar"]


def outcomes(decoder, requests):
    """(tokens, reason) of every sequence, in the order of the requests."""
    for request in requests:
        decoder.add(request)
    tokens, reasons = {}, {}
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            tokens.setdefault(commit.handle, []).extend(commit.tokens.tolist())
            reasons[commit.handle] = commit.reason
    return tuple((tuple(tokens[handle]), reasons[handle]) for handle in sorted(tokens))


def one_by_one(next_law, prompt, length, ends=lambda generated: False):
    """The law of (tokens, reason) by the chain rule; a context whose law is None ends it."""
    law = {}

    def go(generated, chance):
        if generated and ends(generated):
            law[generated, "stop"] = law.get((generated, "stop"), 0) + chance
        elif len(generated) == length:
            law[generated, "length"] = law.get((generated, "length"), 0) + chance
        else:
            own = next_law((*prompt, *generated))
            if own is None:
                law[generated, "error"] = law.get((generated, "error"), 0) + chance
                return
            for token, probability in enumerate(own):
                if probability:
                    go((*generated, token), chance * float(probability))

    go((), 1.0)
    return law


def together(*laws):
    """The law of independent sequences."""
    return {
        tuple(outcome for outcome, _ in rows): float(np.prod([chance for _, chance in rows]))
        for rows in itertools.product(*(law.items() for law in laws))
    }


def distance(run, *laws):
    return total_variation(exact_law(run, max_paths=200_000), together(*laws))


def with_dead_states(seed, vocab_size, dead):
    """A table in which the contexts that ``dead`` says have no law."""
    table = random_table(seed, vocab_size)
    return lambda context: None if dead(context) else table(context)


def reachable(seed, vocab_size):
    """Contexts after token pair (0, 1) are dead, and no law gives that pair: a draft may, the target never."""
    table = random_table(seed, vocab_size)

    def next_law(context):
        if any(pair == (0, 1) for pair in itertools.pairwise(context)):
            return None
        law = np.array(table(context))
        if context[-1] == 0:
            law[1] = 0
            law /= law.sum()
        return law

    return next_law


DRAFTS = ["repeat", Repeat(fill=0), "random", "ngram", "copy:2"]


@pytest.mark.parametrize("drafting", DRAFTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(2))
def test_a_dead_state_behind_a_refused_draft_changes_nothing(method, drafting, seed):
    law = reachable(seed, 2)

    def run(noise):
        decoder = Decoder(Poisoned(law, 2), method=method, window=3, drafting=drafting, noise=noise)
        return outcomes(decoder, [Request([1], length=3)])

    assert distance(run, one_by_one(law, (1,), 3)) < LOSSLESS


@pytest.mark.parametrize("method", METHODS)
def test_a_grammar_with_dead_states_is_exact(method):
    """The same by a processor, one that raises where it has nothing to say: only what is decided must be decidable."""
    table, raised = random_table(3, 2), []

    def grammar(logits, tokens, positions):
        out = np.full_like(logits, -np.inf)
        for j, position in enumerate(positions):
            context = tokens[:position].tolist()
            if any(later < earlier for earlier, later in itertools.pairwise(context)):
                raised.append(context)
                raise KeyError(f"no such state: {context}")
            out[j, context[-1] :] = logits[j, context[-1] :]
        return out

    def rising(context):
        law = np.array(table(context))
        law[: context[-1]] = 0
        return law / law.sum()

    def run(noise):
        decoder = Decoder(TableProvider(table, 2), method=method, window=3, drafting="random", noise=noise)
        return outcomes(decoder, [Request([0], length=3, sampling=Sampling(processors=(grammar,)))])

    assert distance(run, one_by_one(rising, (0,), 3)) < LOSSLESS
    assert bool(raised) == (method != "ar")


@pytest.mark.parametrize("method", METHODS)
def test_a_request_that_fails_leaves_the_others_their_law(method):
    """Some paths of the first request end at a context without a law; the second one is as if it were alone."""
    law = with_dead_states(5, 2, lambda context: context[0] == 0 and context[-2:] == (1, 1))

    def run(noise):
        decoder = Decoder(Poisoned(law, 2, batch_size=2), method=method, window=4, drafting=Repeat(fill=0), noise=noise)
        return outcomes(decoder, [Request([0], length=4), Request([1], length=1, sequence=1)])

    alone = one_by_one(law, (0,), 4)
    assert any(reason == "error" for _, reason in alone)
    assert distance(run, alone, one_by_one(law, (1,), 1)) < LOSSLESS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [[(1, 0)], [(0,), (1, 1, 0)], [(1, 1), (0, 1)]])
def test_runs_of_tokens_end_a_sequence_anywhere(method, stop):
    table = random_table(2, 2)

    def ends(generated):
        return any(generated[-len(run) :] == run for run in stop)

    def run(noise):
        decoder = Decoder(TableProvider(table, 2), method=method, window=3, drafting=Repeat(fill=0), noise=noise)
        return outcomes(decoder, [Request([1], length=4, stop_sequences=stop)])

    assert distance(run, one_by_one(table, (1,), 4, ends)) < LOSSLESS


@pytest.mark.cases(3)
@pytest.mark.parametrize("method", METHODS)
def test_a_stop_rule_ends_a_sequence_where_it_says(method):
    table = random_table(4, 2)

    def enough(generated, new):
        total = np.cumsum(generated)
        found = np.flatnonzero(total[len(generated) - new :] >= 2)
        return len(generated) - new + int(found[0]) + 1 if found.size else None

    def run(noise):
        decoder = Decoder(TableProvider(table, 2), method=method, window=3, drafting="random", noise=noise)
        return outcomes(decoder, [Request([0], length=4, stop_rule=enough)])

    assert distance(run, one_by_one(table, (0,), 4, lambda generated: sum(generated) >= 2)) < LOSSLESS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 2])
def test_samples_of_one_prompt_are_independent(method, rows):
    """Whether they share a prompt by a copy (two rows) or follow one another (one row)."""
    table = random_table(1, 2)

    def run(noise):
        model = Apart(table, 2, batch_size=rows, max_length=32)
        decoder = Decoder(model, method=method, window=2, drafting=Repeat(fill=0), noise=noise)
        made = outcomes(decoder, [Request([0, 1, 1, 0, 1], length=2, samples=2)])
        assert bool(model.forked) == (rows == 2)
        return made

    alone = one_by_one(table, (0, 1, 1, 0, 1), 2)
    assert distance(run, alone, alone) < LOSSLESS


@pytest.mark.cases(14)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
@pytest.mark.parametrize("model", [TableProvider, Apart])
def test_a_prompt_in_chunks_of_any_width_changes_nothing(method, chunk, model):
    table = random_table(6, 2)
    prompts = [(1, 0, 0, 1, 1, 0, 1), (0,)]

    def run(noise):
        provider = model(table, 2, batch_size=2, max_length=24)
        decoder = Decoder(provider, method=method, window=2, drafting=Repeat(fill=0), noise=noise, prompt_chunk=chunk)
        return outcomes(decoder, [Request(prompt, length=2, sequence=i) for i, prompt in enumerate(prompts)])

    assert distance(run, *(one_by_one(table, prompt, 2) for prompt in prompts)) < LOSSLESS


@pytest.mark.parametrize("method", METHODS)
def test_a_prefix_that_is_still_there_changes_nothing(method):
    table = random_table(7, 2)
    prompts = [(1, 0, 0, 1, 1), (1, 0, 0, 1, 0, 1)]

    def run(noise):
        model = Apart(table, 2, batch_size=1, max_length=24)
        decoder = Decoder(model, method=method, window=2, noise=noise, reuse_prefixes=True, drafting=Repeat(fill=0))
        made = outcomes(decoder, [Request(prompt, length=2, sequence=i) for i, prompt in enumerate(prompts)])
        read = [width for _, width in model.asked]
        assert sum(width > 2 for width in read) == 1, "only the first prompt needs a chunk"
        return made

    assert distance(run, *(one_by_one(table, prompt, 2) for prompt in prompts)) < LOSSLESS


@pytest.mark.cases(14)
@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [8, 9])
def test_an_interrupted_sequence_goes_on_with_its_law(method, cut, seed):
    """After so many steps, in another decoder with another window: draws of the rounds that were had come again, and do no harm."""
    table, length = random_table(seed, 2), 4

    def run(noise):
        request = Request([1, 0], length=length)
        first = Decoder(TableProvider(table, 2), method=method, window=3, drafting=Repeat(fill=0), noise=noise)
        first.add(request)
        tokens = []
        for _ in range(cut):
            for commit in first.step() if first.active or first.waiting else ():
                tokens += commit.tokens.tolist()
        if len(tokens) == length:
            return ((tuple(tokens), "length"),)
        second = Decoder(TableProvider(table, 2), method=method, window=2, drafting="random", noise=noise)
        ((rest, reason),) = outcomes(second, [request.resumed(tokens)])
        return (((*tokens, *rest), reason),)

    assert distance(run, one_by_one(table, (1, 0), length)) < LOSSLESS


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_who_interrupts_by_what_is_still_open_is_biased(method):
    """Negative control: to stop because of the drafts that are left behind looks to the right of what is decided."""

    def law_of(by_drafts, table):
        def run(noise):
            request = Request([1, 0], length=3)
            decoder = Decoder(TableProvider(table, 2), method=method, window=3, drafting="random", noise=noise)
            decoder.add(request)
            tokens = [token for commit in decoder.step() for token in commit.tokens.tolist()]
            (row,) = decoder._rows
            if row is None or not row.drafted or (by_drafts and row.tokens[row.committed] == 0):
                while decoder.active:
                    tokens += [token for commit in decoder.step() for token in commit.tokens.tolist()]
                return ((tuple(tokens), "length"),)
            other = Decoder(TableProvider(table, 2), method=method, window=2, drafting=Repeat(fill=0), noise=noise)
            ((rest, reason),) = outcomes(other, [request.resumed(tokens)])
            return (((*tokens, *rest), reason),)

        return distance(run, one_by_one(table, (1, 0), 3))

    tables = [random_table(seed, 2) for seed in range(4)]
    assert max(law_of(False, table) for table in tables) < LOSSLESS
    assert max(law_of(True, table) for table in tables) > 1e-3


@pytest.mark.parametrize("method", ["speculative", "speculative-match"])
def test_a_draft_model_without_a_law_costs_drafts_and_nothing_else(method):
    """It dies where the target does not, at its first guess or a later one."""
    target = random_table(2, 2)
    draft = with_dead_states(3, 2, lambda context: context[-1] == 1)

    def run(noise):
        model = DraftModel(Poisoned(draft, 2))
        decoder = Decoder(TableProvider(target, 2), method=method, window=3, drafting=model, noise=noise)
        return outcomes(decoder, [Request([0], length=3)])

    assert distance(run, one_by_one(target, (0,), 3)) < LOSSLESS


def test_an_error_names_the_request_and_what_was_wrong():
    law = with_dead_states(0, 2, lambda context: len(context) == 3)
    decoder = Decoder(Poisoned(law, 2), method="sjd", window=4)
    handles = [decoder.add(Request([0], length=6, sequence=i)) for i in range(2)]
    commits = []
    while decoder.active or decoder.waiting:
        commits += [commit for commit in decoder.step() if commit.finished]
    assert [commit.handle for commit in commits] == handles
    for commit in commits:
        assert isinstance(commit.error, InvalidLogits)
        assert f"request {commit.handle}: " in str(commit.error)
        assert "position 3 hold NaN" in str(commit.error)
