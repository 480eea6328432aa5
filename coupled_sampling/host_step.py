"""`HostStep`: one coupled step over any logits provider, on any arrays.

A step forwards a window, turns its logits into target laws, and has `coupled_sampling.step_rule.decide` treat the sites from the
first draft on. What is here is the pass and the bookkeeping:

- the draft law q of a recycled draft is the law that the round before gave it, *whether the draft was kept or redrawn then*: the
  target law of that pass, or what a corrector made of it (`coupled_sampling.corrections`);
- a fresh draft has a point mass, or the law that its drafting rule carries;
- a site without a draft has q = 0, which makes its residual the target law itself, so that the free token after an accepted
  window is an ordinary correction.

Why it is lossless: let F_i be all that was decided at positions < i in all rounds. Given F_i, the draft at i has law
q_i and q_i is a function of F_i; acceptance and residual uniforms are independent of the noise the draft was drawn
with; and whether the decision at i is reached is a function of F_i. So the committed token has law p_i given its
prefix. This holds whatever the drafting, as long as a draft with a point mass is chosen from what lies to its left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from coupled_sampling.arrays import as_like, to_host
from coupled_sampling.bounds import check_logits, check_model
from coupled_sampling.contracts import (
    Array,
    Closeable,
    CoupledStep,
    Decisions,
    Forks,
    Integers,
    LogitsProvider,
    Outcome,
    RequestObserver,
    RowRanges,
    Runs,
    Trees,
    Window,
    max_window,
    prompt_chunk,
    what_runs,
)
from coupled_sampling.corrections import Corrector, check_corrector
from coupled_sampling.draft_laws import DraftLaws, KeptLaws, Run
from coupled_sampling.draws import Noise
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method, find_method
from coupled_sampling.noise import CounterNoise
from coupled_sampling.refusals import refusal_of
from coupled_sampling.requests import Request
from coupled_sampling.row_correctors import RowCorrectors
from coupled_sampling.running import Closing
from coupled_sampling.step_report import candidates_of, committed_laws, committed_logprobs, made_by
from coupled_sampling.step_rule import StepDecision, decide, decide_tree
from coupled_sampling.target import target_laws
from coupled_sampling.tree_contexts import tree_contexts
from coupled_sampling.window_correction import Followed, WindowCorrection

__all__ = ["HostStep"]


class HostStep(Closing):
    """One coupled step over ``provider``; laws stay in the provider's array library and on its device.

    Parameters
    ----------
    provider
        Any `LogitsProvider`.
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    noise
        Where draws come from; default `CounterNoise`.
    corrections
        Predicts the laws of redrafts whose neighbours changed, see `coupled_sampling.corrections`; methods that do not recycle
        drafts have no use for it. None draws them from the laws of the pass.

    Notes
    -----
    Nothing as large as a law reaches the host: each site's largest logit (is it usable), the tokens and the counts, and where
    branches are wanted a few candidates of each redraft.

    The provider's arrays may be numpy's, or those of torch, JAX, MLX or CuPy, in any floating type. Half precision is widened to
    float32 before anything is decided; JAX without ``jax_enable_x64`` decides in float32 throughout.

    Examples
    --------
    A step takes a model's place wherever one is asked for:

    >>> from coupled_sampling import HostStep, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> step = HostStep(TableProvider(random_table(0, 4), 4), "scd-maximal")
    >>> generate(step, [[0]], length=6, window=4).tokens[0].shape
    (6,)
    """

    def __init__(
        self,
        provider: LogitsProvider,
        method: str | Method = "scd-gumbel",
        noise: Noise | None = None,
        corrections: Corrector | None = None,
    ) -> None:
        check_model("provider", provider)
        if not isinstance(noise, Noise | None) or isinstance(noise, type):
            raise InvalidArgument(f"noise is {noise!r}, expected a Noise such as CounterNoise(), or None for that")
        if corrections is not None:
            check_corrector(corrections, int(provider.vocab_size))
        self.provider = provider
        self.corrections = corrections
        """What predicts laws under changed neighbours; None if nothing does."""
        self.noise: Noise = CounterNoise() if noise is None else noise
        self.method = find_method(method)
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size)
        self.max_length = int(provider.max_length)
        self.max_window = max_window(provider)
        self._laws = KeptLaws()
        self._correctors = RowCorrectors(corrections, self.method)
        # Asked once: to ask a Protocol takes longer than a good part of a step.
        self._by_rows = provider if isinstance(provider, RowRanges) else None
        self._trees = provider if isinstance(provider, Trees) else None

    gives_laws = True
    """See `coupled_sampling.contracts.GivesLaws`."""

    @property
    def refuses_branches(self) -> str | None:
        """See `coupled_sampling.contracts.TreeSteps`."""
        if self.method.refuses_branches is not None:
            return self.method.refuses_branches
        if self._trees is None:
            return (
                f"{type(self.provider).__name__} cannot forward windows that are trees; give it more rows and wrap it in "
                "coupled_sampling.RowsAsPaths"
            )
        return None

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`."""
        return self.max_length if self._trees is None else self._trees.max_columns

    @property
    def runs(self) -> Runs:
        """What runs the provider; steps are decided here."""
        used = self.corrections if self.method.recycles else None
        return replace(what_runs(self.provider), step="host").corrected_by(used)

    def close(self) -> None:
        """Forget all laws and close the provider, if it can be closed."""
        for row in range(self.batch_size):
            self._laws.forget(row)
        if isinstance(self.provider, Closeable):
            self.provider.close()

    def takes(self, request: Request) -> str | None:
        """What the provider cannot do. See `coupled_sampling.contracts.CoupledStep.takes`."""
        return refusal_of(self.provider, request)

    def begin(self, row: int, request: Request) -> None:
        """Forget what ``row`` held; tell the provider, if it wants to know, which ``request`` comes."""
        self._laws.forget(row)
        self._correctors.begin(row)
        if isinstance(self.provider, RequestObserver):
            self.provider.begin(row, request)

    @property
    def prompt_chunk(self) -> int:
        """See `coupled_sampling.contracts.ReadsPrompts`."""
        return prompt_chunk(self.provider)

    @property
    def touches_all(self) -> bool:
        """See `coupled_sampling.contracts.PromptReader`."""
        return self._by_rows is None

    @property
    def keeps_prefixes(self) -> bool:
        """Not where the provider is told requests: they may be all that differs."""
        return not isinstance(self.provider, RequestObserver)

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        """Forward known tokens. See `coupled_sampling.contracts.PromptReader.read`."""
        self._call(tokens, start, rows)

    @property
    def forks(self) -> bool:
        """Whether the provider can. See `coupled_sampling.contracts.Forks`."""
        return isinstance(self.provider, Forks) and self.provider.forks

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `coupled_sampling.contracts.Forks.fork`."""
        assert isinstance(self.provider, Forks), "who forks asks first whether it can be done"
        self.provider.fork(source, targets, length)

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        ProviderError
            The provider's logits have a wrong shape or type. (Logits of one row from which no law can be made are told in the
            outcome.)
        """
        rows, width = window.tokens.shape
        whole = Outcome(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64), {}, {}, {}, {}, {})
        for part in [range(rows)] if self.touches_all else window.busy_parts():
            outcome = self._step(window if len(part) == rows else window.part(part))
            whole.tokens[part.start : part.stop], whole.committed[part.start : part.stop] = outcome[:2]
            for told, found in zip(whole[2:], outcome[2:], strict=True):
                told.update({part.start + row: value for row, value in found.items()})  # type: ignore[attr-defined]
        return whole

    def _step(self, window: Window) -> Outcome:
        """The step of consecutive rows."""
        rows, width = window.tokens.shape
        tokens, committed = np.zeros((rows, width), np.int64), np.zeros(rows, np.int64)
        logits = self._forward(window)
        if not window.draws.any():
            return Outcome(tokens, committed)
        tree = None if window.parents is None else window.tree_decisions()
        slots = window.decisions() if tree is None else tree.slots
        path = slots if tree is None else tree.path
        sites, logits = slots.sites, logits[:, slots.first :, ...]
        rounds = {window.first_row + b: int(window.round[b]) for b in np.flatnonzero(window.draws).tolist()}
        memory = self._laws.room(logits, rounds)
        contexts = window.contexts if tree is None else tree_contexts(window, tree)
        target = target_laws(logits, window.rows, contexts, sites.position, sites.valid, memory, window.first_row)
        usable = None if target.faults is None else target.usable
        corrected = self._correction(window, logits, path, slots.draft)
        if tree is None:
            correction = None if corrected is None else corrected()
            decided = self._decide(target.laws, slots._replace(usable=usable), window, correction)
        else:
            decided = decide_tree(self.method, target.laws, tree, self.noise, usable=usable, correction=corrected)
        decided_tokens, last = to_host(decided.tokens), to_host(decided.last)
        tokens[:, slots.first : slots.first + decided_tokens.shape[1]] = decided_tokens
        first_new = np.maximum(window.known - 1 - slots.first, 0)
        committed = np.where(window.draws, last - first_new + 1, 0)
        if self._records:
            # Last of all: a step that fails before must find the laws of its drafts when it is tried again.
            self._remember(decided.laws, slots, window)
        made = made_by(decided, decided_tokens, first_new)
        self._correctors.commit(window, path, logits, decided_tokens, made)
        told = committed_logprobs(window, target.laws, logits, decided_tokens, made)
        laws = committed_laws(window, target.laws, made)
        candidates = candidates_of(window, path, decided, decided_tokens, self.noise)
        if decided.slots is not None:
            last = np.take_along_axis(to_host(decided.slots), last[:, None], axis=1)[:, 0]
        return Outcome(tokens, committed, target.failures(last), *told, laws, candidates)

    def _correction(
        self, window: Window, logits: Array, path: Decisions, tokens: Integers
    ) -> Callable[..., WindowCorrection] | None:
        """What predicts laws in this step; of a tree, given which slots the sites have them from."""
        correctors = self._correctors.of(window)
        if all(corrector is None for corrector in correctors):
            return None

        def made(slots: Array | None = None, reach: Array | None = None) -> WindowCorrection:
            followed = None if slots is None else Followed.of(to_host(slots), to_host(reach), tokens)
            return WindowCorrection(correctors, logits, window, path, followed)

        return made

    @property
    def _records(self) -> bool:
        """Whether the law of a redraft is needed in the next round."""
        return self.method.recycles and self.method.acceptance == "rejection"

    def _forward(self, window: Window) -> Array:
        rows = range(window.first_row, window.first_row + len(window.start))
        if window.parents is None:
            logits = self._call(window.tokens, window.start, rows)
        else:
            assert self._trees is not None, "windows with branches are for steps that take them"
            logits = self._trees.forward_tree(window.tokens, window.start, window.parents, rows)
        check_logits("forward", logits, (*window.tokens.shape, self.vocab_size))
        return logits

    def _call(self, tokens: Integers, start: Integers, rows: range) -> Array:
        if self._by_rows is None:
            return self.provider.forward(tokens, start)
        return self._by_rows.forward_rows(tokens, start, rows)

    def _decide(
        self, target: Array, slots: Decisions, window: Window, correction: WindowCorrection | None = None
    ) -> StepDecision:
        """The rule itself, on the laws of this window's drafts."""
        laws = self._draft_laws(target, slots, window)
        return decide(self.method, target, slots.sites, laws, self.noise, usable=slots.usable, correction=correction)

    def _draft_laws(self, target: Array, slots: Decisions, window: Window) -> DraftLaws:
        """Laws of the window's drafts: recalled for recycled ones, given or point masses for fresh ones."""
        runs: list[list[Run]] = [[] for _ in window.start]
        for b in np.flatnonzero(window.draws).tolist():
            recycled, fresh = int(window.recycled[b]), int(window.fresh[b])
            first = int(window.known[b]) - 1 - slots.first
            recalled = carried = None
            if self.method.acceptance == "rejection":  # a match asks for no law
                position = int(window.start[b] + window.known[b])
                row, before = window.first_row + b, int(window.round[b]) - 1
                recalled = self._laws.recall(row, before, position, recycled) if recycled else None
                carried = window.fresh_laws[b]
            if recycled:
                runs[b].append(Run(first, first + recycled, recalled))
            if fresh:
                laws = None if carried is None else as_like(carried, target)
                runs[b].append(Run(first + recycled, first + recycled + fresh, laws))
        return DraftLaws(slots.draft, runs)

    def _remember(self, laws: Array, slots: Decisions, window: Window) -> None:
        """Record the law that every redrafted site now has, kept or redrawn: the one that this round drew it from."""
        for b in np.flatnonzero(slots.sites.valid.any(axis=1)).tolist():
            row = window.first_row + b
            self._laws.keep(row, int(slots.sites.round[b]), int(slots.sites.position[b, 0]), laws[b, ...])


def as_step(
    model: LogitsProvider | CoupledStep,
    method: str | Method,
    noise: Noise | None,
    corrections: Corrector | None = None,
) -> CoupledStep:
    """``model`` if it is a coupled step, else a `HostStep` over it."""
    if isinstance(model, CoupledStep):
        if corrections is not None:
            raise InvalidArgument("corrections was given beside a step, which has its own; open the step with them")
        return model
    if hasattr(model, "step"):
        parts = [
            "method",
            "vocab_size",
            "batch_size",
            "max_length",
            "max_window",
            "noise",
            "runs",
            "takes",
            "begin",
            "close",
        ]
        missing = ", ".join(part for part in parts if not hasattr(model, part))
        raise InvalidArgument(
            f"model is a {type(model).__name__}, which has a step but is no CoupledStep: it lacks {missing}"
        )
    check_model("model", model)
    return HostStep(model, method, noise, corrections)
