"""The one rule: what a step keeps, corrects and redraws, for every method of `coupled_sampling.methods`.

`decide` is made of the couplings (Speculative Coupled Decoding, arXiv 2510.24211, section 3). It is what
`coupled_sampling.HostStep` runs, and what runs inside ``jax.jit`` in ``examples/jax``; step graphs and kernels are other writings
of it.

It can be handed a `Correction`: then redrafts are drawn from what their laws are predicted to become under the tokens that were
just redrawn to their left, see `coupled_sampling.corrections`. What is committed is always decided by the model's own law.

All of it is traceable: no branch on the value of an array, no shape from one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from coupled_sampling.arrays import first_true, from_host, is_concrete, namespace, slots_of
from coupled_sampling.contracts import Array, Sites, TreeDecisions
from coupled_sampling.couplings import gumbel, independent, match, maximal
from coupled_sampling.draws import Asked, BesideSites, Noise, Purpose
from coupled_sampling.law_forms import DraftLawArray, LawsInPieces
from coupled_sampling.methods import Method

__all__ = ["CorrectedSite", "Correction", "StepDecision", "decide", "decide_tree"]


class StepDecision(NamedTuple):
    """What a step decides: a token for each of its sites, and how far they are committed.

    Examples
    --------
    >>> import numpy as np
    >>> laws = np.full((1, 4, 8), 1 / 8)
    >>> step = StepDecision(tokens=np.array([[4, 7, 1, 1]]), last=np.array([1]), laws=laws)
    >>> [tokens[: last + 1].tolist() for tokens, last in zip(step.tokens, step.last, strict=True)]  # what is committed
    [[4, 7]]
    """

    tokens: Array
    """int64 (B, n): accepted drafts, the corrected token, then redrafts; -1 from the first site on that has no usable law."""
    last: Array
    """int64 (B,): the site of each row's last committed token; everything after it is a redraft."""
    laws: Array
    """(B, n, V): the laws that the redrafts were drawn from, to be recorded for them: target laws, or what was predicted."""
    slots: Array | None = None
    """int64 (B, n): in a window that is a tree, the slot whose law decided each committed token; None if it is the site's own."""


class CorrectedSite(NamedTuple):
    """The laws of one site under the tokens that now stand to its left.

    Examples
    --------
    >>> import numpy as np
    >>> CorrectedSite(changed=np.array([True]), law=np.array([[0.5, 0.5]]), usable=np.array([True])).law.shape
    (1, 2)
    """

    changed: Array
    """bool (B,) the rows whose law is another one than the target law."""
    law: Array
    """(B, V); where nothing changed, anything."""
    usable: Array | None = None
    """bool (B,) whether it is a law; where nothing changed, anything. None where all are."""


class Correction(Protocol):
    """Predicts what laws become when tokens to their left change: `coupled_sampling.HostStep` makes one of a `Corrector`.

    Examples
    --------
    One that predicts the same token again, for sure. The first guess is refused and corrected to token 1, so that both redrafts
    become a 1 where the laws of the pass would have given 0:

    >>> import numpy as np
    >>> from coupled_sampling import METHODS
    >>> from coupled_sampling.contracts import Sites
    >>> from coupled_sampling.couplings import DraftLawArray
    >>> from coupled_sampling.noise import ArrayNoise
    >>> class SameAgain:
    ...     def at(self, site, tokens, later):
    ...         return CorrectedSite(later[:, site], np.eye(2)[tokens[:, site - 1]], later[:, site])
    >>> target = np.array([[[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]])
    >>> draft, drafted = np.array([[0, 1, 0]]), np.array([[True, True, False]])
    >>> laws = DraftLawArray(draft, drafted, np.zeros((1, 3, 2))).guessed(drafted)
    >>> sites = Sites(None, None, None, None, valid=np.ones((1, 3), bool))
    >>> noise = ArrayNoise(uniforms=np.full((1, 3, 4), 0.1))
    >>> decide(METHODS["sjd"], target, sites, laws, noise).tokens.tolist()
    [[1, 0, 0]]
    >>> decide(METHODS["sjd"], target, sites, laws, noise, correction=SameAgain()).tokens.tolist()
    [[1, 1, 1]]
    """

    def at(self, site: int, tokens: Array, later: Array) -> CorrectedSite | None:
        """The laws of ``site``, given ``tokens`` (B, n) of which those before it are final; None if no row's has changed.

        ``later`` is bool (B, n): the sites that are redrafts.
        """
        ...


def decide(
    method: Method,
    target: Array,
    sites: Sites,
    laws: DraftLawArray | LawsInPieces,
    noise: Noise,
    *,
    usable: Array | None = None,
    correction: Correction | None = None,
) -> StepDecision:
    """Accept, correct and redraft: the decoding step of every method.

    Parameters
    ----------
    method
        How drafts are accepted and redrafted.
    target
        (B, n, V) target laws of this pass.
    sites
        The B rows of n sites; those that are ``valid`` are decided. The rest of it is for the noise.
    laws
        The drafts, and the laws they were drawn from. ``match`` looks at the drafts only.
    noise
        Where draws come from.
    usable
        bool (B, n): the sites whose target law is one; default all. A row's drafts end at the first valid site that has none. It
        and all after it get the token -1; where that is committed, the row has failed.
    correction
        Predicts the laws of redrafts whose neighbours have changed. Nothing that is committed is drawn from a predicted law.

    Returns
    -------
    StepDecision
        At sites that are not valid it means nothing.

    Notes
    -----
    It can be traced with a `DraftLawArray` and a `coupled_sampling.noise.ArrayNoise`, in any one array library; ``method`` is fixed
    while it is compiled (in JAX a static argument), and of ``sites`` only ``valid`` is needed then.

    Examples
    --------
    Two guesses and a free site. The first guess cannot stay, so that its site is corrected and the others are drawn anew:

    >>> import numpy as np
    >>> from coupled_sampling import METHODS
    >>> from coupled_sampling.contracts import Sites
    >>> from coupled_sampling.noise import ArrayNoise
    >>> target = np.array([[[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]])
    >>> draft, drafted = np.array([[0, 1, 0]]), np.array([[True, True, False]])
    >>> laws = DraftLawArray(draft, drafted, np.zeros((1, 3, 2))).guessed(drafted)
    >>> sites = Sites(None, None, None, None, valid=np.ones((1, 3), bool))
    >>> step = decide(METHODS["sjd"], target, sites, laws, ArrayNoise(uniforms=np.full((1, 3, 4), 0.1)))
    >>> step.tokens.tolist(), step.last.tolist()
    ([[1, 0, 0]], [0])
    """
    xp = namespace(target)
    valid, draft = from_host(sites.valid, target), from_host(laws.draft, target)
    decidable = valid
    if usable is not None:
        closed = valid & ~from_host(usable, target)
        behind = xp.any(closed, axis=-1)[..., None] & (slots_of(valid) >= first_true(closed)[..., None])
        decidable = valid & ~behind
    if method.acceptance == "rejection":
        # Only the maximal coupling redraws by the test itself, so only there the test goes on behind the first refusal.
        accepted, tokens = maximal(
            draft,
            laws,
            target,
            Asked(noise, sites, Purpose.ACCEPT),
            Asked(noise, sites, Purpose.RESIDUAL),
            where=decidable,
            leading=method.redraft != "maximal",
        )
    else:
        accepted, tokens = match(draft, target, Asked(noise, sites), where=decidable)
        accepted = accepted & from_host(laws.drafted, target)
    # The first refusal; a row's last site has no draft, so there is one wherever a row decides anything.
    last = first_true(valid & ~(accepted & decidable))
    later = decidable & (slots_of(valid) > last[..., None])
    if method.acceptance == "rejection" and method.redraft in ("independent", "gumbel"):
        tokens = xp.where(later, _redrawn(method, target, laws, sites, noise, later), tokens)
    if usable is not None:
        tokens = xp.where(behind, xp.full_like(tokens, -1), tokens)
    step = StepDecision(tokens, last, target)
    return step if correction is None else _swept(method, step, later, correction, (sites, laws, noise))


def decide_tree(
    method: Method,
    target: Array,
    tree: TreeDecisions,
    noise: Noise,
    *,
    usable: Array | None = None,
    correction: Callable[[Array, Array], Correction] | None = None,
) -> StepDecision:
    """`decide` for a window with branches, where drafts are accepted by "match".

    Every slot draws the target's own token with the noise of the position that it decides. A draft stands if it is the token that
    its parent drew, and so is every draft before it on its path. The longest such path is walked to its end, whose own token is
    committed as well. What was drawn there depends on nothing that was guessed, so that guesses may come from anywhere.

    Sites are positions: site j is column j of ``tree.path``. Behind the last committed one stand redrafts: of the slots that follow
    the walk's last one, by the first child of each, and behind these of the path's.

    Parameters
    ----------
    method
        A method with the acceptance "match".
    target
        (B, n, V) target laws of all slots.
    tree
        The slots.
    noise
        As for `decide`.
    usable
        bool (B, n): the slots whose law is one; default all.
    correction
        From ``slots`` (B, m), whose laws the redrafts of each site are drawn from, and the last site (B,) that is not the path's
        own, to what predicts laws under changed neighbours.

    Returns
    -------
    StepDecision
        Of m sites. ``laws`` are those of the redrafts.

    Notes
    -----
    It can be traced: arrays of ``tree`` may be of any one library.

    Examples
    --------
    After a known token two guesses side by side, 0 and 1, for a position whose own token is 1. The second stands, and behind it
    the next position is decided as well:

    >>> import numpy as np
    >>> from coupled_sampling import METHODS, Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.noise import ArrayNoise
    >>> one = np.array([1])
    >>> window = Window(
    ...     np.array([[5, 0, 1]]), 9 * one, one, one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None],
    ...     branches=one, parents=np.array([[-1, 0, 0]]),
    ... )
    >>> target = np.array([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])  # of all three slots
    >>> noise = ArrayNoise(race_weights=np.ones((1, 3, 2)))
    >>> step = decide_tree(METHODS["scd-match"], target, window.tree_decisions(), noise)
    >>> step.tokens.tolist(), step.last.tolist(), step.slots.tolist()
    ([[1, 1]], [1], [[0, 2]])
    """
    xp = namespace(target)
    valid, draft, is_draft = (
        from_host(each, target) for each in (tree.slots.sites.valid, tree.slots.draft, tree.slots.has_draft)
    )
    depth, parents, tips = (from_host(each, target) for each in (tree.depth, tree.parents, tree.tips))
    sees, on_path = from_host(tree.sees, target), from_host(tree.path.sites.valid, target)
    decidable = valid if usable is None else valid & from_host(usable, target)
    own = gumbel(target, Asked(noise, tree.slots.sites), where=decidable)
    own = xp.where(decidable, own, xp.full_like(own, -1))
    refused = is_draft & (xp.take_along_axis(own, parents, axis=-1) != draft)
    reached = valid & ~xp.any(sees & refused[:, None, :], axis=-1)
    end = xp.argmax(xp.where(reached, depth, xp.full_like(depth, -1)), axis=-1)[:, None]
    tip = xp.take_along_axis(tips, end, axis=-1)
    last, reach = (xp.take_along_axis(depth, slot, axis=-1) for slot in (end, tip))
    followed = xp.take_along_axis(sees, tip[:, :, None], axis=1)[:, 0, :]
    site = slots_of(on_path)
    # The slots that were followed in the order of their depths, which lack none; behind them those of the path.
    ordered = xp.argsort(xp.where(followed, depth, xp.full_like(depth, depth.shape[-1])), axis=-1, stable=True)
    slots = xp.where(site <= reach, ordered[:, : site.shape[0]], site)
    tokens = xp.take_along_axis(own, slots, axis=-1)
    later = (on_path | (site <= reach)) & (site > last)
    # Behind a site without a law nothing stands, and the last one, where the row fails, may be such a site.
    closed = (later | (site == last)) & ~xp.take_along_axis(decidable, slots, axis=-1)
    behind = xp.any(closed, axis=-1)[:, None] & (site >= first_true(closed)[:, None]) & (site > last)
    later = later & ~behind
    tokens = xp.where(behind, xp.full_like(tokens, -1), tokens)
    step = StepDecision(tokens, last[:, 0], _laws_of(target, slots, later, site), slots)
    if correction is None:
        return step
    drafts = DraftLawArray(from_host(tree.path.draft, target), from_host(tree.path.has_draft, target), None)
    return _swept(method, step, later, correction(slots, reach[:, 0]), (tree.path.sites, drafts, noise))


def _laws_of(target: Array, slots: Array, later: Array, site: Array) -> Array:
    """The laws (B, m, V) of ``slots`` (B, m), as far as they are looked at: those of redrafts, which are mostly the sites' own."""
    xp = namespace(target)
    if is_concrete(slots) and not bool(xp.any(later & (slots != site))):
        return target[:, : site.shape[0], :]
    return xp.take_along_axis(target, slots[..., None], axis=1)


def _redrawn(
    method: Method, target: Array, laws: DraftLawArray | LawsInPieces, sites: Sites, noise: Noise, where: Array
) -> Array:
    """Redrafts (B, n) from ``target`` (B, n, V) at the sites ``where``."""
    if method.redraft == "gumbel":
        return gumbel(target, Asked(noise, sites), where=where)
    if method.redraft == "independent":
        return independent(target, Asked(noise, sites, Purpose.REDRAFT), where=where)
    accept, correct = Asked(noise, sites, Purpose.ACCEPT), Asked(noise, sites, Purpose.RESIDUAL)
    return maximal(from_host(laws.draft, target), laws, target, accept, correct, where=where).tokens


def _swept(
    method: Method,
    step: StepDecision,
    later: Array,
    correction: Correction,
    drawn: tuple[Sites, DraftLawArray | LawsInPieces, Noise],
) -> StepDecision:
    """``step`` with the redrafts drawn anew whose laws have changed, from the left to the right: one sweep settles all.

    A site's uniforms are used again, and what came of them the first time is dropped: no draft is drawn from noise that says
    anything about the tokens to its left.
    """
    tokens, last, laws, decided_by = step
    xp, slots = namespace(laws), slots_of(later)
    sites, drafts, noise = drawn
    beside = noise if isinstance(noise, BesideSites) else None  # asked once: to ask a Protocol takes long
    columns: dict[int, Array] = {}
    for site in range(1, later.shape[-1]):
        found = correction.at(site, tokens, later)
        if found is None:
            continue
        changed = where = (later[:, site] & found.changed)[:, None]
        if found.usable is not None:
            where = changed & found.usable[:, None]
        column = columns[site] = xp.where(where[..., None], found.law[:, None, :], laws[:, site : site + 1, :])
        own = noise if beside is None else beside.column(site)
        redrawn = _redrawn(method, column, drafts.column(site), sites.column(site), own, where)
        tokens = xp.where(where & (slots == site), redrawn, tokens)
        if found.usable is not None:
            # Without a law the row's drafts end; what stood there was drawn from one that is not its own any more.
            ended = later & changed & ~where & (slots >= site)
            tokens = xp.where(ended, xp.full_like(tokens, -1), tokens)
            later = later & ~ended
    if columns:
        every = (columns.get(site, laws[:, site : site + 1, :]) for site in range(later.shape[-1]))
        laws = xp.concat(list(every), axis=1)
    return StepDecision(tokens, last, laws, decided_by)
