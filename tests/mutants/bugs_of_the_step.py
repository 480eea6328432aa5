"""Acceptance, correction, redrafting, and the laws that are kept for the next round."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

EXACT = ("test_negative_controls", "test_exact")
MATCH = ("test_match",)
ARRAYS = ("test_arrays", "test_draft_laws")

BUGS = (
    Bug(
        "old-law-of-kept-drafts",
        "HostStep.step",
        "self._remember(target, slots, decided)",
        """\
law = self._draft_laws(target, slots, window).dense(target)
kept = slots.has_draft & (to_host(decided.tokens) == slots.draft)
self._remember(np.where(kept[..., None], law, target), slots, decided)
""",
        "A draft that was kept has this round's law, but the law of the round before is recorded for it.",
        EXACT,
    ),
    Bug(
        "refused-drafts-stay-as-drafts",
        "decide",
        "valid & (slots_of(valid) > last[..., None])",
        "valid & (slots_of(valid) > last[..., None]) & ~from_host(laws.drafted, target)",
        "Drafts after the refusal are not redrawn, while the new law is recorded for them.",
        EXACT,
    ),
    Bug(
        "accept-uniform-corrects-too",
        "decide",
        "_Asked(noise, sites, Purpose.RESIDUAL)",
        "_Asked(noise, sites, Purpose.ACCEPT)",
        "The uniform that refused a draft also chooses its correction.",
        ("test_noise",),
    ),
    Bug(
        "maximal-coupling-ends-at-the-refusal",
        "maximal",
        "accept_uniform.bernoulli(probability, asked, leading=leading)",
        "accept_uniform.bernoulli(probability, asked, leading=True)",
        "The maximal coupling promises not to use answers after the first refusal, and uses them.",
        EXACT,
    ),
    Bug(
        "match-accepts-everything",
        "match",
        "own == draft",
        "own >= 0",
        "A draft that is not the target's own token is committed as context of the next ones.",
        MATCH,
    ),
    Bug(
        "free-token-dropped",
        "HostStep.step",
        "committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)",
        """\
committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)
committed = np.minimum(committed, np.maximum(window.recycled + window.fresh, 1))
""",
        "A window whose drafts were all accepted no longer gives one more token.",
        ("test_drafting",),
    ),
    Bug(
        "minimum-over-the-batch",
        "HostStep.step",
        "committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)",
        """\
committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)
committed = np.where(window.draws, committed[window.draws].min(), 0)
""",
        "Every row commits what the slowest row commits.",
        MATCH,
    ),
    Bug(
        "ragged-rows-counted-from-the-first-slot",
        "HostStep.step",
        "np.maximum(window.known - 1 - slots.first, 0)",
        "np.zeros(rows, np.int64)",
        "Rows whose drafts begin later in the window commit known tokens again.",
        ("test_decoding",),
    ),
    Bug(
        "padding-is-decided",
        "HostStep._slots",
        "window.known + window.recycled + window.fresh",
        "width",
        "Slots that only pad a short row are taken for drafts.",
        MATCH,
    ),
    Bug(
        "positions-one-too-low",
        "HostStep._slots",
        "window.start[:, None] + slot + 1",
        "window.start[:, None] + slot",
        "A slot is named by its own position instead of the one it predicts, so processors and errors are off by one.",
        ("test_decoding", "test_target"),
    ),
    Bug(
        "draft-laws-of-ragged-rows-misplaced",
        "HostStep._draft_laws",
        "int(window.known[b]) - 1 - slots.first",
        "0",
        "A row whose drafts begin later in the window has their laws at the wrong slots.",
        (*MATCH, "test_exact"),
    ),
    Bug(
        "draft-laws-one-position-late",
        "HostStep._draft_laws",
        "int(window.start[b] + window.known[b])",
        "int(window.start[b] + window.known[b]) - 1",
        "Each recycled draft is tested with the law of the position before it.",
        EXACT,
    ),
    Bug(
        "point-mass-taken-for-the-target",
        "HostStep._draft_laws",
        "None if carried is None else as_like(carried, target)",
        "target[b, at + recycled : at + recycled + fresh] if carried is None else as_like(carried, target)",
        "A guess without a law is treated as if it had been drawn from the target, and always accepted.",
        EXACT,
    ),
    Bug(
        "row-begins-unannounced",
        "HostStep.begin",
        "self.provider.begin(row, prompt)",
        "pass",
        "A provider that must know the row's prompt keeps that of the sequence before.",
        ("test_guidance",),
    ),
    Bug(
        "laws-remembered-for-the-position-after",
        "HostStep._remember",
        "int(slots.sites.position[b, 0])",
        "int(slots.sites.position[b, 0]) + 1",
        "The laws kept for the next round are filed one position too far to the right.",
        EXACT,
    ),
    Bug(
        "recalled-laws-begin-at-the-last-window",
        "KeptLaws.recall",
        "laws[begin : begin + count, ...]",
        "laws[:count, ...]",
        "After a commit of several tokens, recycled drafts are tested with laws of positions further left.",
        EXACT,
    ),
    Bug(
        "latest-laws-whatever-the-round",
        "LawBook.find",
        "held.round == round_",
        "held.round >= round_",
        "A step that is done again tests its drafts with laws of the outcome that was lost.",
        ("test_decoding",),
    ),
    Bug(
        "laws-of-one-round-only",
        "LawBook.target",
        "1 if self.zero is not None and self.zero.round == round_ - 1 else 0",
        "0",
        "A step whose outcome was lost cannot be done again: the laws of its drafts are gone.",
        ("test_decoding", "test_draft_laws"),
    ),
    Bug(
        "the-laws-being-read-are-given-up",
        "KeptLaws.room",
        "self._books[row].target(round_)",
        "self._books[row].target(round_ - 1)",
        "Memory is made free for the new laws that holds the laws of this step's drafts.",
        ("test_draft_laws", "test_decoding"),
    ),
    Bug(
        "law-memory-reused-while-held",
        "KeptLaws.room",
        "(block for block in fitting if id(block) not in taken)",
        "iter(fitting)",
        "The new target laws are written over the draft laws that they are to be compared with.",
        EXACT,
    ),
    Bug(
        "residual-is-the-absolute-difference",
        "DraftLaws.residuals",
        "np.maximum(np.subtract(own, run.laws[j - run.first], out=own), 0, out=own)",
        "np.abs(np.subtract(own, run.laws[j - run.first], out=own), out=own)",
        "Corrections are drawn where the draft law exceeds the target too.",
        EXACT,
    ),
    Bug(
        "residual-of-a-neighbouring-law",
        "DraftLaws.residuals",
        "j - run.first",
        "j - run.first - 1",
        "The residual is taken with the draft law of another position.",
        EXACT,
    ),
    Bug(
        "refused-guess-drawn-again",
        "DraftLaws.residuals",
        "own[self.draft[b, j]] = 0",
        "own[self.draft[b, j]] *= 1",
        "The correction of a refused guess may be that same guess.",
        EXACT,
    ),
    Bug(
        "empty-residual-left-empty",
        "DraftLaws.residuals",
        "weights[empty] = target[rows[empty], slots[empty]]",
        "",
        "Where rounding leaves no residual, a token that the target forbids is drawn.",
        ("test_draft_laws",),
    ),
    Bug(
        "foreign-point-mass-of-chance-zero",
        "DraftLaws.of_drafts",
        "filled((run.end - run.first,), 1, like)",
        "filled((run.end - run.first,), 0, like)",
        "In other array libraries every guess of positive target probability is accepted.",
        ARRAYS,
    ),
    Bug(
        "forbidden-drafts-accepted",
        "acceptance_probability",
        "xp.where(target > 0, ratio, xp.zeros_like(ratio))",
        "ratio",
        "A draft that neither law allows is accepted.",
        ("test_couplings",),
    ),
    Bug(
        "ratio-not-bounded",
        "acceptance_probability",
        "xp.where(proposed > target, target / larger, xp.ones_like(target))",
        "target / larger",
        "Where the target exceeds the draft law, the draft is kept with the target's own probability.",
        (*EXACT[:1], "test_couplings"),
    ),
    Bug(
        "small-residual-taken-for-none",
        "residual",
        "xp.max(left, axis=-1, keepdims=True) > 0",
        "xp.max(left, axis=-1, keepdims=True) > 0.05",
        "A small residual is taken for none, and the correction comes from the target law.",
        ("test_couplings",),
    ),
)
