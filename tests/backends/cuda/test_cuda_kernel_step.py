"""KernelStep with the emulated kernels: whole generations, guidance, refusals, what is kept between steps. Nothing ran on a GPU."""

import re

import numpy as np
import pytest

from coupled_sampling import Decoder, Guidance, GuidedProvider, HostStep, Request, Sampling, generate
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import ROW, scratch_bytes
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument, ProviderError
from standins import ROOT
from standins.cuda_emulation.comparison import (
    PROMPTS,
    WARPED,
    Float32Table,
    NormalWorld,
    window_of,
)
from standins.cuda_emulation.emulation import PLAIN, DeviceProvider, EmulationLauncher
from standins.refused import (
    LOGPROBS,
    OTHERS,
    PROCESSORS,
    WARPS,
    expect_refusals,
    expect_that_unannounced_laws_end_a_request_alone,
)
from standins.schedules import ROWS, UNCONDITIONAL, Losing, run_schedule
from standins.table_graphs import Table, table


def test_generation_through_the_loop_is_that_of_host_step():
    settings = {"length": 40, "window": 8, "seed": 2, "sampling": WARPED[0], "drafting": "repeat"}
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(NormalWorld(50), launcher)
        kernels = KernelStep(provider, "scd-gumbel", launcher)
        found = generate(kernels, [[0], [3]], **settings)
        kernels.close()
        provider.close()
    expected = generate(NormalWorld(50), [[0], [3]], method="scd-gumbel", **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(found.traces, expected.traces, strict=True):
        assert one.committed_per_step == other.committed_per_step


@pytest.mark.cases(5)
@pytest.mark.parametrize("method", ["sjd", "scd-match"])
@pytest.mark.parametrize("scale", [0, 1, 2.5, -0.5])
@pytest.mark.parametrize("unconditional", [[1], [0, 1, 1, 0]])
def test_guidance_is_that_of_guided_provider(method, scale, unconditional):
    def world():
        return Float32Table(20, 4, zeros=0)

    settings = {"length": 12, "window": 6, "seed": 7, "drafting": "repeat", "sampling": Sampling(0.8, top_k=9)}
    expected = generate(HostStep(GuidedProvider(world(), scale, unconditional), method), PROMPTS[:3], **settings)
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(world(), launcher)
        kernels = KernelStep(provider, method, launcher, guidance=scale, unconditional=unconditional)
        found = generate(kernels, PROMPTS[:3], **settings)
        kernels.close()
        provider.close()
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()


def test_a_step_can_be_done_again():
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(NormalWorld(30), launcher)
        kernels = KernelStep(provider, "sjd", launcher)
        first = kernels.step(window_of([0, 1, 2, 3]))
        assert kernels.step(window_of([0, 1, 2, 3])).tokens.tolist() == first.tokens.tolist()
        count = int(first.committed[0])
        assert count < 4
        drafts = first.tokens[0, count:].tolist()
        later = window_of([0, *first.tokens[0, :count].tolist(), *drafts], recycled=len(drafts), round_=1)
        later = later._replace(known=np.array([1 + count]), fresh=np.array([0]))
        second = kernels.step(later)
        assert kernels.step(later).tokens.tolist() == second.tokens.tolist()
        with pytest.raises(InvalidArgument, match="laws are those of round 3, but this step holds round"):
            kernels.step(later._replace(round=np.array([4])))
        kernels.begin(0, Request([0], 1))
        with pytest.raises(InvalidArgument, match="laws are those of round 0, but this step holds no laws"):
            kernels.step(later)
        kernels.close()
        provider.close()


def test_what_kernels_do_not_do_is_refused():
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(NormalWorld(30), launcher)
        kernels = KernelStep(provider, "sjd", launcher)
        with pytest.raises(InvalidArgument, match="fresh_laws carry laws"):
            kernels.step(window_of([0, 1], laws=np.full((1, 30), 1 / 30)))
        with pytest.raises(InvalidArgument, match="logits processors"):
            kernels.step(window_of([0, 1], sampling=Sampling(processors=(lambda logits, tokens, positions: logits,))))
        with pytest.raises(InvalidArgument, match="both or neither"):
            KernelStep(provider, "sjd", launcher, guidance=2.0)
        with pytest.raises(InvalidArgument, match="even number"):
            KernelStep(provider, "sjd", launcher, guidance=2.0, unconditional=[0])
        with pytest.raises(ProviderError, match="cannot read"):
            KernelStep(NormalWorld(30), "sjd", launcher).step(window_of([0, 1]))
        assert launcher.launched == []
        provider.close()


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-match", "speculative"])
def test_requests_for_what_kernels_do_not_do_are_refused_before_anything_runs(method):
    with EmulationLauncher(PLAIN) as launcher:
        provider = NormalWorld(30)
        step = KernelStep(provider, method, launcher)
        refused = {name: (settings, "which the kernels") for name, settings in (PROCESSORS | LOGPROBS).items()}
        refused["guidance"] = (OTHERS["guidance"], "which the kernels")
        refused["a condition"] = (OTHERS["a condition"], "no begin")
        expect_refusals(step, refused, WARPS.values())
        if method == "sjd":
            expect_that_unannounced_laws_end_a_request_alone(step)
        assert launcher.launched == []
        step.close()


def test_what_the_model_does_not_take_kernels_do_not_take():
    class Shy(NormalWorld):
        def takes(self, request):
            return "has a condition that I cannot see; leave it out" if request.condition else None

    with EmulationLauncher(PLAIN) as launcher:
        step = KernelStep(Shy(30), "sjd", launcher)
        expect_refusals(step, {"a condition": (OTHERS["a condition"], "cannot see")}, [{"condition": ""}])
        step.close()


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_prompts_are_read_in_chunks(method, guided):
    """What the model offers is passed on: chunks, rows apart, state that can be copied."""
    logits, passes = table(1, forbidden=0), []

    class Noting(DeviceProvider):
        prompt_chunk = 12

        def forward(self, tokens, start):
            passes.append(tokens.shape)
            return super().forward(tokens, start)

    prompts = [[1], [*range(7)] * 4, [3, 2] * 4]
    settings = {"guidance": 1.7, "unconditional": [2, 2]} if guided else {}
    with EmulationLauncher(PLAIN) as launcher:
        provider = Noting(Table(logits, 6 if guided else 3), launcher)
        step = KernelStep(provider, method, launcher, **settings)
        assert KernelStep(
            NormalWorld(30), method, launcher
        ).keeps_prefixes  # a provider that is told requests may look at them
        assert (step.prompt_chunk, step.touches_all, step.keeps_prefixes, step.forks) == (12, True, False, False)
        found = generate(step, prompts, length=9, window=4, drafting="repeat", seed=4)
        step.close()
        provider.close()
    oracle = Table(logits, 6 if guided else 3)
    oracle = GuidedProvider(oracle, 1.7, [2, 2]) if guided else oracle
    expected = generate(oracle, prompts, method=method, length=9, window=4, drafting="repeat", seed=4)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]
    assert sum(width == 12 for _, width in passes) >= 2
    assert {rows for rows, width in passes if width > 4} == ({6, 4} if guided else {3, 2})


def test_rows_that_can_be_told_apart_are_read_apart():
    logits, passes = table(1, forbidden=0), []

    class Apart(DeviceProvider):
        forks = True

        def forward_rows(self, tokens, start, rows):
            passes.append((tokens.shape[1], rows))
            inner, self.provider = self.provider, Part(self.provider, rows)
            try:
                return super().forward(tokens, start)
            finally:
                self.provider = inner

        def fork(self, source, targets, length):
            passes.append(("fork", source, list(targets), length))
            self.provider.held[targets, :length] = self.provider.held[source, :length]

    class Part:
        def __init__(self, whole, rows):
            self.whole, self.rows = whole, rows

        def forward(self, tokens, start):
            part = Table(logits, len(self.rows))
            part.held = self.whole.held[self.rows.start : self.rows.stop]
            return part.forward(tokens, start)

    with EmulationLauncher(PLAIN) as launcher:
        provider = Apart(Table(logits, 3), launcher)
        step = KernelStep(provider, "scd-match", launcher)
        assert not step.touches_all
        decoder = Decoder(step, window=4, drafting="repeat")
        first = decoder.add(Request([*range(7)] * 3, 8, seed=2, samples=2))
        alone = decoder.add(Request([3], 8, seed=2, sequence=9))
        rows = {first: [], first + 1: [], alone: []}
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                rows[commit.handle] += commit.tokens.tolist()
        step.close()
        provider.close()
    assert passes[:2] == [(20, range(1)), ("fork", 0, [1], 20)]
    requests = {first: ([*range(7)] * 3, 0), first + 1: ([*range(7)] * 3, 1), alone: ([3], 9)}
    for handle, (prompt, sequence) in requests.items():
        own = generate(Table(logits), [prompt], length=8, method="ar", seed=2, sequences=[sequence])
        assert rows[handle] == own.tokens[0].tolist()


def test_only_tokens_and_counts_reach_the_host():
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(NormalWorld(5000), launcher)
        kernels = KernelStep(provider, "scd-gumbel", launcher)
        width = 8
        kernels.step(window_of([0] * width))
        assert launcher.launched == ["measure", "settle", "target_laws", "decide"]
        assert launcher.received == 12 * width + 8
        assert launcher.sent == 4 * width * 5000 + ROW.itemsize + 8 * width
        kernels.close()
        provider.close()


def test_the_guides_own_loop_gives_the_tokens_of_host_step():
    guide = ROOT / "docs" / "cuda-kernels.md"
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)[1], str(guide), "exec"), names)
    world, sampling, width, length = NormalWorld(3000), Sampling(top_p=0.95, top_k=2000), 8, 40
    tokens, drafts, round_, start_before = [5], [], 0, 0
    with EmulationLauncher() as launcher:
        provider = DeviceProvider(world, launcher)
        laws = [launcher.allocate(4 * width * 3000) for _ in range(2)]
        memory = launcher.allocate(20 * width + 200)
        scratch = launcher.allocate(scratch_bytes(1, width, 3000))
        while len(tokens) < length:
            start, count = len(tokens) - 1, min(width, length - len(tokens))
            recycled = drafts[: count - 1]
            window = [tokens[-1], *recycled]
            window += [window[-1]] * (count - len(window))
            final, drafts = names["step_on_device"](
                launcher,
                provider.forward(np.array([window]), np.array([start])),
                window,
                start=start,
                recycled=len(recycled),
                round_=round_,
                laws=laws[round_ % 2],
                laws_before=laws[1 - round_ % 2],
                laws_before_start=start_before,
                memory=memory,
                scratch=scratch,
            )
            tokens, drafts = [*tokens, *final.tolist()], drafts.tolist()
            round_, start_before = round_ + 1, start
        for pointer in (*laws, memory, scratch):
            launcher.release(pointer)
        provider.close()
    expected = generate(world, [[5]], length=length - 1, window=width, drafting=Repeat(fill=5), sampling=sampling)
    assert expected.tokens[0].tolist() == tokens[1:]


def test_logits_of_another_stream_are_waited_for():
    class Waiting(EmulationLauncher):
        def wait(self, stream):
            self.launched.append(f"wait for {stream}")

    class Elsewhere(DeviceProvider):
        def forward(self, tokens, start):
            return super().forward(tokens, start)._replace(stream=7)

    with Waiting(PLAIN) as launcher:
        provider = Elsewhere(NormalWorld(30), launcher)
        kernels = KernelStep(provider, "ar", launcher)
        kernels.step(window_of([0], fresh=0))
        assert launcher.launched == ["wait for 7", "measure", "settle", "target_laws", "decide"]
        kernels.close()
        provider.close()


class Failing(DeviceProvider):
    """Its calls fail when told to."""

    fails = False

    def forward(self, tokens, start):
        if self.fails:
            self.fails = False
            raise ProviderError("out of memory")
        return super().forward(tokens, start)


@pytest.mark.cases(4)
@pytest.mark.parametrize("unconditional", [None, *UNCONDITIONAL.values()], ids=["unguided", *UNCONDITIONAL])
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_state_follows_whatever_the_loop_does(method, unconditional):
    logits, guided = table(3, forbidden=0), unconditional is not None
    settings = {"guidance": 1.8, "unconditional": unconditional} if guided else {}
    for seed in range(1 if guided else 3):
        with EmulationLauncher(PLAIN) as launcher:
            provider = Failing(Table(logits, 2 * ROWS if guided else ROWS), launcher)
            kernels = KernelStep(provider, method, launcher, **settings)
            oracle = Table(logits, 2 * ROWS if guided else ROWS)
            oracle = GuidedProvider(oracle, 1.8, unconditional) if guided else oracle
            report = run_schedule(Losing(oracle, kernels, logits_error=1e-5 if guided else 0), provider, seed, 100)
            kernels.close()
            provider.close()
        assert report.sites > 150
        assert not report.disagreements, report


def test_the_model_is_told_both_prompts_row_by_row():
    class Conditioned(Table):
        told = ()

        def begin(self, row, request):
            self.told = (*self.told, (row, list(request.prompt)))

    model = Conditioned(table(0), 4)
    with EmulationLauncher(PLAIN) as launcher:
        provider = DeviceProvider(model, launcher)
        kernels = KernelStep(provider, "sjd", launcher, guidance=2.0, unconditional=lambda prompt: [*prompt, 3])
        kernels.begin(1, Request([1, 2], 1))
        kernels.begin(0, Request([0], 1))
        kernels.close()
    assert sorted(model.told) == [(0, [0]), (1, [0, 3]), (2, [1, 2]), (3, [1, 2, 3])]


@pytest.mark.parametrize("method", ["sjd", "scd-match"])
def test_state_follows_requests_with_guidance_of_their_own(method):
    """Scales and unconditional prompts differ from row to row, and some leave less room than a window is wide."""
    logits = table(3, forbidden=0)
    with EmulationLauncher(PLAIN) as launcher:
        provider = Failing(Table(logits, 2 * ROWS), launcher)
        kernels = KernelStep(provider, method, launcher, guidance=1.8, unconditional=[3])
        oracle = GuidedProvider(Table(logits, 2 * ROWS), 1.8, [3])
        report = run_schedule(Losing(oracle, kernels, logits_error=1e-5), provider, 0, 150, guided=True)
        assert "a step of the kernels has one scale" in kernels.takes(Request([0], 4, guidance=Guidance.until(2, 3.0)))
        kernels.close()
        provider.close()
    assert report.sites > 150
    assert not report.disagreements, report
