"""KernelStep with the emulated kernels where no law can be made: drafts end there, texts only fail there. Nothing ran on a GPU."""

import re

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, HostStep, Request, generate
from coupled_sampling.backends.cuda import kernel_step
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.contracts import Outcome
from coupled_sampling.errors import InvalidLogits
from standins.cuda_emulation.comparison import BothSteps, NormalWorld, compare_on
from standins.cuda_emulation.emulation import PLAIN, DeviceProvider, EmulationLauncher
from standins.table_graphs import FAULTS, VOCAB, WIDE, Table, finish, table, with_dead_states


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize(("value", "found"), [(np.nan, "NaN"), (np.inf, "+inf"), (-np.inf, "nothing but -inf")])
def test_unusable_logits_are_told_by_row_and_position(method, value, found):
    class Broken(NormalWorld):
        def forward(self, tokens, start):
            logits = super().forward(tokens, start).copy()
            positions = start[:, None] + np.arange(tokens.shape[1]) + 1
            logits[positions == 6, :] = value
            logits[positions == 3, :] = value  # a known token decides nothing
            return logits

    with EmulationLauncher() as launcher:
        provider = DeviceProvider(Broken(11, 2), launcher)
        kernels = KernelStep(provider, method, launcher)
        with pytest.raises(InvalidLogits, match=re.escape(f"row 0 for position 6 hold {found}")):
            generate(kernels, [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]], length=8, window=4, drafting="repeat")
        kernels.close()
        provider.close()


@pytest.mark.cases(6)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_drafts_end_where_no_law_can_be_made_and_texts_only_fail_there(method, fault):
    """Nothing of a dead slot comes to the slots beside it, to the count, or to the laws of the next round."""
    prompts = [[1 + i % 3] * (1 + i % 4) for i in range(8)]
    with EmulationLauncher(PLAIN) as launcher:
        for size, window, reachable in ((VOCAB, 6, 0.0), (WIDE, 8, 0.1)):
            logits = with_dead_states(table(1, size), fault, reachable)
            settings = {"drafting": f"random:{size - 3}:3", "prompts": prompts, "window": window}
            both = compare_on(launcher, lambda logits=logits: Table(logits, 3), method, **settings)
            assert both.differences == []
            assert both.closed > 40 or method == "ar"
            assert (both.failed > 0) == (reachable > 0)


@pytest.mark.parametrize(
    ("method", "replacement"),
    [
        ("scd-match", ("slots.has_draft(i) && i < place.row->closed &&", "slots.has_draft(i) &&")),
        ("sjd", ("            atomicMin(&place.row->refusal, slot);\n            return;", "            return;")),
        ("scd-maximal", ("if (place.slot >= place.row->closed) token = -1;\n    else if", "if")),
    ],
    ids=["a race that was not run", "a refusal forgotten", "no mark"],
)
def test_kernels_that_go_on_behind_a_dead_slot_are_noticed(method, replacement, monkeypatch):
    logits = with_dead_states(table(1), "NaN", reachable=0.1)
    prompts = [[1 + i % 3] * (1 + i % 4) for i in range(12)]
    # `close_rows` would mend most of it on the host, so it is left out.
    monkeypatch.setattr(
        kernel_step, "close_rows", lambda window, tokens, committed, highest: Outcome(tokens, committed)
    )
    with EmulationLauncher((*PLAIN, "-O0"), replacement=replacement) as launcher:
        settings = {"drafting": "random:0:7", "prompts": prompts, "window": 6}
        both = compare_on(launcher, lambda: Table(logits, 3), method, **settings)
    assert any(isinstance(difference[0], int) for difference in both.differences)


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_kernels_mark_dead_slots_by_themselves(method, monkeypatch):
    """Their tokens and counts are right without the host's help."""
    monkeypatch.setattr(
        kernel_step, "close_rows", lambda window, tokens, committed, highest: Outcome(tokens, committed)
    )
    logits = with_dead_states(table(1), "NaN", reachable=0.1)
    prompts = [[1 + i % 3] * (1 + i % 4) for i in range(12)]
    with EmulationLauncher(PLAIN) as launcher:
        settings = {"drafting": "random:0:7", "prompts": prompts, "window": 6}
        both = compare_on(launcher, lambda: Table(logits, 3), method, **settings)
    assert not any(isinstance(difference[0], int) for difference in both.differences)


@pytest.mark.parametrize("fault", ["none possible", "NaN"])
@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_guided_drafts_end_there_too(method, fault):
    logits = with_dead_states(table(2, forbidden=0), fault, reachable=0.02)
    with EmulationLauncher(PLAIN) as launcher:
        provider = DeviceProvider(Table(logits, 4), launcher)
        kernels = KernelStep(provider, method, launcher, guidance=1.0, unconditional=[1])
        both = BothSteps(HostStep(GuidedProvider(Table(logits, 4), 1.0, [1]), method), kernels)
        requests = [Request([1 + i % 3], 20, seed=i) for i in range(6)]
        finish(Decoder(both, window=6, drafting="random:4:3"), requests)
        kernels.close()
        provider.close()
    assert both.differences == []
    assert both.closed > 40
    assert both.failed
