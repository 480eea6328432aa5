"""Bugs of windows whose branches are chosen while decoding."""

from planting import Bug

__all__ = ["BUGS"]

BUGS = (
    Bug(
        "branch-without-a-slot-was-walked",
        "Walk.within",
        "self.drafts - self.path >= branches[:, None]",
        "self.drafts - self.path > branches[:, None]",
        "A narrower window is said to hold one branch more than it has slots for.",
        ("test_walks",),
    ),
    Bug(
        "narrower-windows-have-no-known-tokens",
        "Walk.within",
        "(widths - branches - self.known)[:, None]",
        "(widths - branches)[:, None]",
        "The path of a narrower window is taken to be longer than it is.",
        ("test_walks",),
    ),
    Bug(
        "rejection-is-told-at-once-as-well",
        "WindowChoice.__init__",
        'step.method.acceptance == "match"',
        "True",
        "Where tokens depend on drafts, the time of a step is known while its drafts are still to be tested.",
        ("test_window_choice",),
    ),
    Bug(
        "a-given-number-of-branches-is-changed",
        "WindowChoice.__init__",
        "chooses = branches is None and refused is None and (auto or isinstance(window, TreeWindowRule))",
        "chooses = refused is None and (auto or isinstance(window, TreeWindowRule))",
        "The search finds a number of branches where the user has said one.",
        ("test_window_choice",),
    ),
    Bug(
        "branches-without-candidates",
        "Assembly.window",
        "0 if branching is None else int(branching.candidates)",
        "0 if self.branching is not None else 0",
        "A window that may have branches never gets any, for want of candidates.",
        ("test_window_choice",),
    ),
    Bug(
        "steps-without-branches-are-not-told",
        "StepRecords.add",
        "path >= width - branches",
        "path > width - branches",
        "Where no branch is found, as for a greedy sequence, the search waits for ever for a window that is full.",
        ("test_window_choice",),
    ),
    Bug(
        "branches-without-a-slot-are-left-out",
        "branching:check_room",
        "branches > window - 2 and branches",
        "False",
        "Branches are asked for in a window of two slots, and there are none, without a word.",
        ("test_window_choice",),
    ),
)
