"""Verify methods on a real model: is the joint law of their tokens that of ordinary sampling?

Many short continuations of one prompt are sampled by AR and by each method, all with different seeds, and compared by
`coupled_sampling.testing.samples.equivalence.equivalence_test`, whose report says what it could have seen. The first token
after a prompt is decided by the first step, before anything is recycled, so continuations must be long enough for recycled
drafts to come up for decision; every verification says which part of its tokens was decided on a recycled draft, and is
blind if that is none although the method recycles.

Methods that promise the very tokens of AR (acceptance "match") are also run with AR's seed and compared token by token.

Which ordinary sampling? A `HostStep` is compared with AR by a `HostStep`. A step that is decided elsewhere, in a graph in
float32 or by kernels, computes laws of its own, which part from the host's by rounding, and at the edge of a top-p more visibly.
It is lossless if it keeps *its* law, so it is compared with itself, one token per pass and no drafts. That its law is the host's is
tested apart, on the samples without drafts: a graph that divides by the temperature twice is no less wrong for doing so always.

The family-wise false-alarm rate is alpha: each test is made at alpha over their number (Bonferroni).

It does not prove anything about other prompts, lengths or settings than those it ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from coupled_sampling.branching import Branching
from coupled_sampling.contracts import (
    Closeable,
    CoupledStep,
    Integers,
    LogitsProvider,
    Runs,
    Sampling,
    max_window,
    what_runs,
)
from coupled_sampling.drafting import Drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.generation import generate
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method, find_method
from coupled_sampling.testing.arguments import (
    check_callable,
    check_count,
    check_decoding,
    check_level,
    check_method,
    check_model,
    check_seed,
    check_sequence,
    check_tokens,
)
from coupled_sampling.testing.recording import recording
from coupled_sampling.testing.samples.equivalence import Equivalence, equivalence_test

__all__ = ["Verification", "verify"]

MakeStep = Callable[[LogitsProvider, Method], CoupledStep]
"""Makes the step to verify, such as `HostStep`."""


@dataclass(frozen=True)
class Verification:
    """What was found about one method.

    Examples
    --------
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> from coupled_sampling.testing.verification import verify
    >>> model = lambda: TableProvider(random_table(0, 3), 3, batch_size=50)
    >>> verification = verify(model, [0], ["scd-maximal"], samples=300, positions=3, window=4)[0]
    >>> verification.verdict, verification.recycled_share > 0
    ('no difference seen', True)
    """

    method: str
    equivalence: Equivalence
    recycled_share: float
    """Part of the tested tokens that were decided on a recycled draft: it was accepted, or refused and corrected."""
    recycles: bool
    """Whether the method keeps drafts at all."""
    differing_tokens: int | None
    """Tokens that differ from AR's at the same seed; None where the method does not promise the same."""
    runs: Runs
    """What ran, and where the tested steps were decided."""
    law: Equivalence | None = None
    """The step's own law against that of `HostStep`; None where `HostStep` is what was tested."""
    branches: int = 0
    """How many slots of a window were for branches."""

    @property
    def step(self) -> str:
        """Where the tested steps were decided: "host", "graph" or "kernels"."""
        return self.runs.step

    @property
    def verdict(self) -> Literal["different", "no difference seen", "blind"]:
        """As of `Equivalence`; tokens that should be AR's and are not are "different", and so is a law of the step's own making."""
        if self.differing_tokens or (self.law is not None and self.law.verdict == "different"):
            return "different"
        if self.law is not None and self.law.verdict == "blind":
            return "blind"
        if self.equivalence.verdict == "no difference seen" and self.recycles and not self.recycled_share:
            return "blind"
        return self.equivalence.verdict

    @property
    def passed(self) -> bool:
        """Whether no difference was seen by a test that would have seen one."""
        return self.verdict == "no difference seen"

    def report(self) -> str:
        """For people."""
        lines = [f"{self.method}, step {self.step}: {'passed' if self.passed else 'FAILED'} ({self.verdict})"]
        if self.recycles:
            lines.append(f"  {self.recycled_share:.0%} of the tested tokens were decided on a recycled draft")
        if self.branches:
            lines.append(f"  {self.branches} slots of a window are for branches")
        if self.differing_tokens is not None:
            found = f"{self.differing_tokens} tokens differ" if self.differing_tokens else "all tokens are the same"
            lines.append(f"  against {self._reference} at the same seed: {found}")
        for title, test in ((f"against {self._reference}", self.equivalence), ("its law against the host's", self.law)):
            if test is not None:
                lines += [f"  {title}", *(f"    {line}" for line in test.report().splitlines())]
        return "\n".join(lines)

    @property
    def _reference(self) -> str:
        return "ar" if self.law is None else f"itself without drafts (step {self.step}, one token per pass)"


class Decoding(TypedDict, total=False):
    """How `verify` decodes, as keywords."""

    window: int | str
    branches: int | Branching
    drafting: str | Drafting
    sampling: Sampling | None
    seed: int
    progress: Callable[[str, int], object] | None


class _Decoding(NamedTuple):
    """`Decoding` with its defaults; it takes no other names."""

    window: int | str = 16
    branches: int | Branching = 0
    drafting: str | Drafting = "random"
    sampling: Sampling | None = None
    seed: int = 0
    progress: Callable[[str, int], object] | None = None

    @property
    def slots(self) -> int:
        """Slots for branches."""
        return self.branches.most if isinstance(self.branches, Branching) else self.branches


def verify(
    open_model: Callable[[], LogitsProvider],
    prompt: Sequence[int],
    methods: Sequence[str | Method],
    *,
    samples: int = 1500,
    positions: int = 6,
    alpha: float = 1e-3,
    make_step: MakeStep = HostStep,
    **decoding: Unpack[Decoding],
) -> list[Verification]:
    """Test each of ``methods`` against ordinary sampling.

    Parameters
    ----------
    open_model
        Opens the model; AR and each method get one of their own.
    prompt
        Tokens to continue. Choose one after which the model is uncertain.
    samples
        Continuations for each method, and for AR; at least 2, and some hundreds to see anything.
    positions
        Tokens per continuation, tested jointly.
    alpha
        Family-wise: the chance that any of the methods is called different although none is.
    make_step
        Makes the step to verify. `HostStep` and what says that it is one are compared with `ar` by a `HostStep`, others with
        themselves (see the module's text).
    **decoding
        ``window=16``, ``branches=0``, ``drafting="random"`` and ``sampling=None`` as for `coupled_sampling.generate`, but that
        methods which take no branches are decoded without; and ``seed=0``: AR has its
        noise, the k-th method that of ``seed + k`` modulo 2**64, and the own law of a step that is none of the host's another, so
        that all samples are independent. ``progress=None`` is called
        with a method's name and the number of new tokens.

    Raises
    ------
    InvalidArgument
        An argument cannot work.

    Examples
    --------
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> from coupled_sampling.testing.verification import verify
    >>> model = lambda: TableProvider(random_table(0, 3), 3, batch_size=50)
    >>> [v.passed for v in verify(model, [0], ["sjd", "scd-match"], samples=300, positions=3, window=4)]
    [True, True]
    """
    named = check_sequence("methods", methods, "a list of methods, such as ['scd-maximal']")
    found = [check_method(f"methods[{i}]", method) for i, method in enumerate(named)]
    if not found:
        raise InvalidArgument("methods is empty, expected at least one method to verify")
    samples, positions = check_count("samples", samples, 2, 10**7), check_count("positions", positions, 1, 10**6)
    check_level("alpha", alpha)
    prompt = check_tokens("prompt", prompt, least=1)
    check_callable("open_model", open_model, 0)
    check_callable("make_step", make_step, 2)
    settings = _Decoding(**decoding)
    check_decoding(settings.window, settings.drafting, settings.sampling, settings.branches)
    check_seed("seed", settings.seed)
    if settings.progress is not None:
        check_callable("progress", settings.progress, 2)
    sampler = _Sampler(open_model, prompt, samples, positions, settings)
    return _verified(sampler, found, make_step, alpha)


class _Drawn(NamedTuple):
    """A sample of continuations (N, n), and what made it."""

    tokens: Integers
    recycled_share: float
    runs: Runs


class _Sampler(NamedTuple):
    """Makes samples, each with a model of its own, which is closed when done."""

    open_model: Callable[[], LogitsProvider]
    prompt: Sequence[int]
    samples: int
    positions: int
    settings: _Decoding

    def __call__(self, method: Method, make: MakeStep, seed: int, window: int | str | None = None) -> _Drawn:
        model = self.open_model()
        check_model("what open_model returned", model)
        step = make(model, method)
        check_model("what make_step returned", step, "step")
        recorder, progress = recording(step), self.settings.progress
        # The noise is the step's own, so the decoder must be told of it: it forgets what sequences no longer need.
        noise = getattr(step, "noise", None)
        tokens = generate(
            recorder,
            [self.prompt] * self.samples,
            length=self.positions,
            seed=seed % 2**64,
            noise=noise,
            reuse_prefixes=True,  # all continue one beginning, so each row reads it once
            progress=None if progress is None else lambda count: progress(method.name, count),
            window=self._window(method, step) if window is None else window,
            branches=self.settings.branches if window is None and method.refuses_branches is None else 0,
            drafting=self.settings.drafting,
            sampling=self.settings.sampling,
        ).tokens
        runs = what_runs(step)
        if isinstance(step, Closeable):
            step.close()  # one model at a time is enough
        return _Drawn(np.array(tokens), recorder.decided / (self.samples * self.positions), runs)

    def _window(self, method: Method, step: CoupledStep) -> int | str:
        """Windows that are wide for branches are as wide as the model takes where nothing is guessed."""
        window = self.settings.window
        wide = self.settings.slots and not method.drafts and isinstance(window, int)
        return min(int(window), max_window(step)) if wide else window


def _verified(sampler: _Sampler, methods: Sequence[Method], make_step: MakeStep, alpha: float) -> list[Verification]:
    """Draw what is compared, then compare it."""
    seed, count = sampler.settings.seed, len(methods)
    host = sampler(find_method("ar"), HostStep, seed)
    drawn, own = [], []
    for k, method in enumerate(methods, 1):
        drawn.append(sampler(method, make_step, seed + k))
        fused = drawn[-1].runs.step != "host"
        # Without drafts nothing is left of a step but its law: this is ordinary sampling as the step itself would do it.
        own.append(sampler(method, make_step, seed + count + k, window=1) if fused else host)
    level = alpha / (count + sum(reference is not host for reference in own))
    results = []
    for k, (method, sample, reference) in enumerate(zip(methods, drawn, own, strict=True), 1):
        differing, law = None, None
        test_seed = (seed + k) % 2**32
        equivalence = equivalence_test(sample.tokens, reference.tokens, alpha=level, seed=test_seed)
        if reference is not host:
            law = equivalence_test(reference.tokens, host.tokens, alpha=level, seed=test_seed)
        if method.acceptance == "match":
            again = sampler(method, make_step, seed if reference is host else seed + count + k)
            differing = int((again.tokens != reference.tokens).sum())
        results.append(
            Verification(
                method.name,
                equivalence,
                sample.recycled_share,
                method.recycles,
                differing,
                sample.runs,
                law,
                sampler.settings.slots if method.refuses_branches is None else 0,
            )
        )
    return results
