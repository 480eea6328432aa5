"""Acceptance, correction, redrafting, and the laws that are kept for the next round."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

STEP = "coupled_sampling/step.py"
DRAFT_LAWS = "coupled_sampling/draft_laws.py"
ACCEPTANCE = "coupled_sampling/acceptance.py"
EXACT = ("tests/test_negative_controls.py", "tests/test_exact.py")
MATCH = ("tests/test_match.py",)
ARRAYS = ("tests/test_arrays.py", "tests/test_draft_laws.py")

BUGS = (
    Bug(
        "old-law-of-kept-drafts",
        STEP,
        "            self._remember(target, slots, decided)\n",
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
        STEP,
        "return namespace(target).where(later, redrawn, tokens)",
        "return namespace(target).where(later & ~from_host(slots.has_draft, target), redrawn, tokens)",
        "Drafts after the refusal are not redrawn, while the new law is recorded for them.",
        EXACT,
    ),
    Bug(
        "accept-uniform-corrects-too",
        STEP,
        "drawn = self.noise.categorical(weights, each, Purpose.RESIDUAL, where",
        "drawn = self.noise.categorical(weights, each, Purpose.ACCEPT, where",
        "The uniform that refused a draft also chooses its correction.",
        ("tests/test_noise.py",),
    ),
    Bug(
        "maximal-coupling-ends-at-the-refusal",
        STEP,
        "leading=not everywhere",
        "leading=True",
        "The maximal coupling promises not to use answers after the first refusal, and uses them.",
        EXACT,
    ),
    Bug(
        "match-accepts-everything",
        STEP,
        "(own == from_host(slots.draft, target))",
        "(own >= 0)",
        "A draft that is not the target's own token is committed as context of the next ones.",
        MATCH,
    ),
    Bug(
        "free-token-dropped",
        STEP,
        "        committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)\n",
        """\
        committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)
        committed = np.minimum(committed, np.maximum(window.recycled + window.fresh, 1))
""",
        "A window whose drafts were all accepted no longer gives one more token.",
        ("tests/test_drafting.py",),
    ),
    Bug(
        "minimum-over-the-batch",
        STEP,
        "        committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)\n",
        """\
        committed = np.where(window.draws, to_host(decided.last) - first_new + 1, 0)
        committed = np.where(window.draws, committed[window.draws].min(), 0)
""",
        "Every row commits what the slowest row commits.",
        MATCH,
    ),
    Bug(
        "ragged-rows-counted-from-the-first-slot",
        STEP,
        "first_new = np.maximum(window.known - 1 - slots.first, 0)",
        "first_new = np.zeros(rows, np.int64)",
        "Rows whose drafts begin later in the window commit known tokens again.",
        ("tests/test_decoding.py",),
    ),
    Bug(
        "padding-is-decided",
        STEP,
        "end = np.where(window.draws, window.known + window.recycled + window.fresh, 0)",
        "end = np.where(window.draws, width, 0)",
        "Slots that only pad a short row are taken for drafts.",
        MATCH,
    ),
    Bug(
        "positions-one-too-low",
        STEP,
        "position=window.start[:, None] + slot + 1,",
        "position=window.start[:, None] + slot,",
        "A slot is named by its own position instead of the one it predicts, so processors and errors are off by one.",
        ("tests/test_decoding.py", "tests/test_target.py"),
    ),
    Bug(
        "draft-laws-of-ragged-rows-misplaced",
        STEP,
        "at = int(window.known[b]) - 1 - slots.first",
        "at = 0",
        "A row whose drafts begin later in the window has their laws at the wrong slots.",
        (*MATCH, "tests/test_exact.py"),
    ),
    Bug(
        "draft-laws-one-position-late",
        STEP,
        "position = int(window.start[b] + window.known[b])",
        "position = int(window.start[b] + window.known[b]) - 1",
        "Each recycled draft is tested with the law of the position before it.",
        EXACT,
    ),
    Bug(
        "point-mass-taken-for-the-target",
        STEP,
        "laws = None if carried is None else as_like(carried, target)",
        "laws = target[b, at + recycled : at + recycled + fresh] if carried is None else as_like(carried, target)",
        "A guess without a law is treated as if it had been drawn from the target, and always accepted.",
        EXACT,
    ),
    Bug(
        "row-begins-unannounced",
        STEP,
        "            self.provider.begin(row, prompt)\n",
        "            pass\n",
        "A provider that must know the row's prompt keeps that of the sequence before.",
        ("tests/test_guidance.py",),
    ),
    Bug(
        "laws-remembered-for-the-position-after",
        STEP,
        "int(slots.sites.position[b, 0]), target[b, ...]",
        "int(slots.sites.position[b, 0]) + 1, target[b, ...]",
        "The laws kept for the next round are filed one position too far to the right.",
        EXACT,
    ),
    Bug(
        "recalled-laws-begin-at-the-last-window",
        DRAFT_LAWS,
        "return laws[begin : begin + count, ...]",
        "return laws[:count, ...]",
        "After a commit of several tokens, recycled drafts are tested with laws of positions further left.",
        EXACT,
    ),
    Bug(
        "latest-laws-whatever-the-round",
        DRAFT_LAWS,
        "first, laws = self._held.get(row, {}).get(round_, (0, None))",
        "first, laws = max(self._held.get(row, {}).items(), default=(0, (0, None)))[1]",
        "A step that is done again tests its drafts with laws of the outcome that was lost.",
        ("tests/test_decoding.py",),
    ),
    Bug(
        "laws-of-one-round-only",
        DRAFT_LAWS,
        "self._held[row] = {**before, round_: (position, laws)}",
        "self._held[row] = {round_: (position, laws)}",
        "A step whose outcome was lost cannot be done again: the laws of its drafts are gone.",
        ("tests/test_decoding.py",),
    ),
    Bug(
        "law-memory-reused-while-held",
        DRAFT_LAWS,
        "free = next((block for block in fitting if id(block) not in taken), None)",
        "free = next(iter(fitting), None)",
        "The new target laws are written over the draft laws that they are to be compared with.",
        EXACT,
    ),
    Bug(
        "residual-is-the-absolute-difference",
        DRAFT_LAWS,
        "np.maximum(np.subtract(own, run.laws[j - run.first], out=own), 0, out=own)",
        "np.abs(np.subtract(own, run.laws[j - run.first], out=own), out=own)",
        "Corrections are drawn where the draft law exceeds the target too.",
        EXACT,
    ),
    Bug(
        "residual-of-a-neighbouring-law",
        DRAFT_LAWS,
        "run.laws[j - run.first], out=own)",
        "run.laws[j - run.first - 1], out=own)",
        "The residual is taken with the draft law of another position.",
        EXACT,
    ),
    Bug(
        "refused-guess-drawn-again",
        DRAFT_LAWS,
        "own[self._draft[b, j]] = 0",
        "own[self._draft[b, j]] *= 1",
        "The correction of a refused guess may be that same guess.",
        EXACT,
    ),
    Bug(
        "empty-residual-left-empty",
        DRAFT_LAWS,
        "        weights[empty] = target[rows[empty], slots[empty]]\n",
        "",
        "Where rounding leaves no residual, a token that the target forbids is drawn.",
        ("tests/test_draft_laws.py",),
    ),
    Bug(
        "foreign-point-mass-of-chance-zero",
        DRAFT_LAWS,
        "pieces.append(ones if run.laws is None else pick(run.laws, drafts))",
        "pieces.append(0 * ones if run.laws is None else pick(run.laws, drafts))",
        "In other array libraries every guess of positive target probability is accepted.",
        ARRAYS,
    ),
    Bug(
        "forbidden-drafts-accepted",
        ACCEPTANCE,
        "return xp.where(target > 0, ratio, 0.0)",
        "return ratio",
        "A draft that neither law allows is accepted.",
        ("tests/test_couplings.py",),
    ),
    Bug(
        "ratio-not-bounded",
        ACCEPTANCE,
        "ratio = xp.where(proposed > target, target / larger, 1.0)",
        "ratio = target / larger",
        "Where the target exceeds the draft law, the draft is kept with the target's own probability.",
        (*EXACT[:1], "tests/test_couplings.py"),
    ),
    Bug(
        "small-residual-taken-for-none",
        ACCEPTANCE,
        "empty = ~(xp.max(left, axis=-1) > 0)",
        "empty = ~(xp.max(left, axis=-1) > 0.05)",
        "A small residual is taken for none, and the correction comes from the target law.",
        ("tests/test_couplings.py",),
    ),
)
