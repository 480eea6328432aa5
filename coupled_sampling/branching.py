"""Which branches a window gets: the rule, and the one that is used unless you bring your own.

A pass ends at the first draft that is not the token which the position draws. Behind a branch with that token it goes on. So a rule
is asked, in every step and for every row, for drafts beside those of its path: for the same positions, or for later ones. Branches
are for the acceptance "match" alone. There a committed token is a function of the seed and the position, and not of anything that
was guessed, so that a rule may look at whatever it likes.

`BestFirst` takes the likeliest paths. It knows from the step before the best candidates of every redraft: the tokens that came
close in the position's race, with what they came to. A candidate's probability is the softmax of that within its position, given
the token before it: where that is another one than the law was computed with, a corrector says what the change adds to each
candidate (`coupled_sampling.corrections.Shifts`). From the path, whose drafts are there in any case, it then adds the branch of
the largest probability, and the next one, until no slot is left. All branches together are the most that so many slots can hold.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, check_number, shown
from coupled_sampling.contracts import CoupledStep, TreeSteps
from coupled_sampling.corrections import Corrector, Shifts
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Integers
from coupled_sampling.slots import Candidates

__all__ = ["BestFirst", "BranchContext", "Branches", "Branching"]


class BranchContext(NamedTuple):
    """What one row asks for.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.branching import BranchContext
    >>> context = BranchContext(tokens=np.array([9, 4, 5]), committed=1, most=8, reach=5)
    >>> context.path.tolist()  # drafts for positions 1 and 2; branches may guess for positions 1 to 5
    [4, 5]
    """

    tokens: Integers
    """(L,) the row's tokens from position 0 on: committed ones, then the drafts of its path."""
    committed: int
    most: int
    """Most branch slots, >= 1."""
    reach: int
    """Branches may guess for the positions ``committed`` to ``committed + reach - 1``, at least as far as the path."""
    candidates: Candidates | None = None
    """Of the positions from ``committed`` on, as far as the step before knew any."""
    corrections: Corrector | None = None
    """What the step corrects laws with."""

    @property
    def path(self) -> Integers:
        """The drafts of the path."""
        return self.tokens[self.committed :]


class Branches(NamedTuple):
    """Drafts beside the path.

    Examples
    --------
    Beside a path of two drafts another guess for the first position, and one behind it:

    >>> import numpy as np
    >>> from coupled_sampling.branching import Branches
    >>> Branches(parents=np.array([-1, 2]), tokens=np.array([7, 3])).tokens
    array([7, 3])
    """

    parents: Integers
    """(m,) what each follows: -1 is the last committed token, 0 to the path's length less one its drafts, and behind these come the
    branches themselves, of which one may follow an earlier one."""
    tokens: Integers
    """(m,)."""


@runtime_checkable
class Branching(Protocol):
    """A rule for branches.

    Examples
    --------
    One of your own, which guesses that the first draft's runner-up will do:

    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.branching import Branches, Branching
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class RunnerUp:
    ...     most, candidates = 1, 2
    ...     def branches(self, context):
    ...         known = [] if context.candidates is None else context.candidates.tokens[:1, 1]
    ...         return Branches(np.full(len(known), -1), np.array(known, int))
    >>> isinstance(RunnerUp(), Branching)
    True
    >>> model = TableProvider(random_table(0, 6), 6, max_length=256)
    >>> plain, branching = (
    ...     generate(model, [[0]], length=200, method="scd-match", window=4, branches=branches) for branches in (0, RunnerUp())
    ... )
    >>> bool((plain.tokens[0] == branching.tokens[0]).all())
    True
    """

    @property
    def most(self) -> int:
        """Slots of a window that are kept for branches; a row may get more where its path is shorter. With 0 there are none.

        Where the rule for windows chooses how many are kept, this is not asked.
        """
        ...

    @property
    def candidates(self) -> int:
        """How many candidates of each position it wants to know, at least 1."""
        ...

    def branches(self, context: BranchContext) -> Branches:
        """At most ``context.most`` drafts beside the path."""
        ...


def checked_branches(rule: Branching, context: BranchContext, vocab_size: int) -> Branches:
    """What ``rule`` proposes, if it can be.

    Raises
    ------
    InvalidArgument
        There are too many, a parent or a token is none, or one reaches too far.
    """
    made = rule.branches(context)
    if not isinstance(made, Branches):
        raise InvalidArgument(f"{rule!r} returned a {type(made).__name__}, expected Branches")
    parents, tokens = (each if each.size else each.astype(np.int64) for each in map(np.asarray, made))
    if parents.shape != tokens.shape or parents.ndim != 1 or not all(a.dtype.kind == "i" for a in (parents, tokens)):
        raise InvalidArgument(
            f"{rule!r} returned parents {parents.dtype} {parents.shape} and tokens {tokens.dtype} {tokens.shape}, expected "
            "integers, as many of both"
        )
    if len(tokens) > context.most:
        raise InvalidArgument(f"{rule!r} returned {len(tokens)} branches, expected at most {context.most}")
    if ((tokens < 0) | (tokens >= vocab_size)).any():
        raise InvalidArgument(f"{rule!r} returned tokens {tokens}, expected tokens in [0, {vocab_size})")
    drafts = len(context.path)
    depths = list(range(drafts))
    for i, parent in enumerate(parents.tolist()):
        if not -1 <= parent < drafts + i:
            raise InvalidArgument(
                f"{rule!r} returned {parent} as the parent of branch {i}, expected -1 to {drafts + i - 1}: the path's {drafts} "
                "drafts, then earlier branches"
            )
        depths.append(0 if parent < 0 else depths[parent] + 1)
        if depths[-1] >= context.reach:
            raise InvalidArgument(
                f"{rule!r} returned a branch that guesses for the position {depths[-1] + 1} behind the committed ones, expected at "
                f"most {context.reach}"
            )
    return Branches(parents.astype(np.int64), tokens.astype(np.int64))


class BestFirst:
    """The likeliest branches.

    Parameters
    ----------
    most
        Slots for branches.
    candidates
        How many tokens of a position to choose from.
    temperature
        What scores are divided by before the softmax. Candidates are farther apart than their scores say, since a race's first is
        known to have been the first.
    fresh
        The probability of a draft that no pass has looked at yet.

    Examples
    --------
    A path of two drafts, 4 and 2. Nobody knows whether the first is a 4 or a 9, and the second is nearly certain. So the branch
    begins with the 9, and goes on with a 2:

    >>> import numpy as np
    >>> from coupled_sampling.branching import BestFirst, BranchContext
    >>> from coupled_sampling.contracts import Candidates
    >>> candidates = Candidates(np.array([[4, 9], [2, 7]]), np.array([[1.2, 1.1], [3.0, -2.0]]))
    >>> context = BranchContext(np.array([0, 4, 2]), committed=1, most=2, reach=2, candidates=candidates)
    >>> BestFirst(2).branches(context)
    Branches(parents=array([-1,  2]), tokens=array([9, 2]))
    """

    def __init__(self, most: int, *, candidates: int = 16, temperature: float = 0.55, fresh: float = 0.35) -> None:
        self.most, self.candidates = check_count("most", most), check_count("candidates", candidates)
        if check_number("temperature", temperature, "a number > 0") <= 0:
            raise InvalidArgument(f"temperature is {temperature!r}, expected a number > 0")
        if not 0 < check_number("fresh", fresh, "a probability") <= 1:
            raise InvalidArgument(f"fresh is {fresh!r}, expected a probability above 0")
        self.temperature, self.fresh = float(temperature), float(fresh)

    def __repr__(self) -> str:
        return f"BestFirst({self.most})"

    def branches(self, context: BranchContext) -> Branches:
        """See `Branching.branches`."""
        known, path = context.candidates, context.path
        if known is None or not len(known.tokens):
            return Branches(np.zeros(0, np.int64), np.zeros(0, np.int64))
        count = min(len(known.tokens), context.reach)
        tokens, scores = known.tokens[:count], np.asarray(known.scores[:count], np.float64)
        return _Search(self._chances(context, tokens, scores), _led_by(tokens, path), context, self.fresh).run()

    def _chances(self, context: BranchContext, tokens: Integers, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability (D, L, K) of each candidate (D, K) of a position, given which of the L best of the one before it stands
        there; of the first position, where something committed stands, all L are the same."""
        usual = min(_LIKELY, tokens.shape[1])
        scaled = np.repeat(scores[:, None, :], usual, axis=1)
        corrections = context.corrections
        if isinstance(corrections, Shifts) and 1 in corrections.lags and len(tokens) > 1:
            lag = list(corrections.lags).index(1)
            scaled[1:] += corrections.shifts(lag, tokens[:-1, 0], tokens[:-1, :usual], tokens[1:])
        scaled /= self.temperature
        highest = scaled.max(axis=-1, keepdims=True)
        chances = np.exp(scaled - np.where(np.isfinite(highest), highest, 0))
        total = chances.sum(axis=-1, keepdims=True)
        shares: NDArray[np.float64] = np.divide(chances, total, out=np.zeros_like(chances), where=total > 0)
        return shares


_LIKELY = 8
"""Of how many candidates a change of the law behind them is reckoned with; one that ranks lower is taken for the first."""


def _led_by(tokens: Integers, path: Integers) -> list[list[int]]:
    """Candidates (D, K) of each position as lists; where the path's draft is not the first of them, it is put before them."""
    listed: list[list[int]] = tokens.tolist()
    for depth, draft in enumerate(path[: len(listed)].tolist()):
        if listed[depth][0] != draft:
            listed[depth] = [draft, *listed[depth]]
    return listed


class _Search:
    """One search: from the path, always the likeliest branch next.

    Parameters
    ----------
    chances
        See `BestFirst._chances`.
    tokens
        Candidates of each position, the draft of the path first: it may be one more than there are chances.
    context, fresh
        What is asked for, and the probability of a draft that comes from elsewhere.
    """

    def __init__(
        self, chances: NDArray[np.float64], tokens: list[list[int]], context: BranchContext, fresh: float
    ) -> None:
        self._chances, self._tokens, self._fresh = chances, tokens, fresh
        self._path, self._most = context.path.tolist(), context.most
        self._reach = min(context.reach, max(len(tokens), len(self._path)))
        self._ordered: dict[tuple[int, int], list[tuple[float, int]]] = {}
        self._heap: list[tuple[float, int, int, int, int, int, float]] = []
        self._pushed = 0

    def run(self) -> Branches:
        """The branches, the likeliest first."""
        parents: list[int] = []
        tokens: list[int] = []
        before = 1.0
        for depth in range(min(self._reach, len(self._path) + 1)):
            self._push(depth - 1, depth, 0, 0, before)
            if depth < len(self._path):
                before *= next((chance for chance, candidate in self._behind(depth, 0) if candidate == 0), 0.0)
        while self._heap and len(parents) < self._most:
            chance, _, parent, depth, previous, place, before = heapq.heappop(self._heap)
            candidate = self._behind(depth, previous)[place][1]
            self._push(parent, depth, previous, place + 1, before)
            self._push(len(self._path) + len(parents), depth + 1, candidate, 0, -chance)
            parents.append(parent)
            tokens.append(self._tokens[depth][candidate] if depth < len(self._tokens) else self._path[depth])
        return Branches(np.array(parents, np.int64), np.array(tokens, np.int64))

    def _behind(self, depth: int, previous: int) -> list[tuple[float, int]]:
        """Candidates of ``depth`` and their probabilities, the likeliest first, where the candidate ``previous`` stands before."""
        if depth >= len(self._tokens):
            return [(self._fresh, 0)]  # a draft that is new is the only candidate of its position
        if depth and len(self._tokens[depth - 1]) > self._chances.shape[2]:
            previous = max(0, previous - 1)  # the draft that was put before them stands where the first would
        key = depth, previous if previous < self._chances.shape[1] else 0
        if key not in self._ordered:
            chances: list[float] = self._chances[key].tolist()
            if len(self._tokens[depth]) > len(chances):
                draft = self._tokens[depth][0]
                known = self._tokens[depth][1:]
                rest = [
                    0.0 if token == draft else (1 - self._fresh) * chance
                    for token, chance in zip(known, chances, strict=True)
                ]
                chances = [self._fresh, *rest]
            found = [(chance, i) for i, chance in enumerate(chances) if chance > 0]
            found.sort(key=lambda pair: -pair[0])
            self._ordered[key] = found
        return self._ordered[key]

    def _push(self, parent: int, depth: int, previous: int, place: int, before: float) -> None:
        """Take the ``place``-th candidate of ``depth`` behind ``parent`` into account, if there is one."""
        if depth >= self._reach:
            return
        found = self._behind(depth, previous)
        if place < len(found) and parent == depth - 1 and depth < len(self._path) and found[place][1] == 0:
            place += 1  # the path's own draft, which has a slot
        if place < len(found):
            self._pushed += 1
            chance = before * found[place][0]
            heapq.heappush(self._heap, (-chance, self._pushed, parent, depth, previous, place, before))


def refusal_of_branches(step: CoupledStep) -> str | None:
    """Why ``step`` cannot decide windows with branches, and what to do instead; None where it can.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.branching import refusal_of_branches
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> refusal_of_branches(HostStep(TableProvider(random_table(0, 4), 4), "scd-match")) is None
    True
    """
    if isinstance(step, TreeSteps):
        return step.refuses_branches
    return f"a {type(step).__name__} does not do them; use HostStep"


def check_room(branches: int, window: int) -> None:
    """Refuse a number of ``branches`` that a ``window`` of so many slots has no room for: `InvalidArgument`."""
    if branches > window - 2 and branches:
        raise InvalidArgument(
            f"branches is {branches}, expected at most {max(0, window - 2)} of the window's {window} slots: one is for a known "
            "token, and one for a guess to stand beside; ask for fewer, or for a wider window"
        )


def find_branching(branches: int | Branching, step: CoupledStep) -> Branching | None:
    """The rule that ``branches`` means for ``step``; None for none.

    Raises
    ------
    InvalidArgument
        It is neither a number of slots nor a rule, or the step cannot decide windows with branches.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.branching import find_branching
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> find_branching(24, HostStep(TableProvider(random_table(0, 4), 4), "scd-match"))
    BestFirst(24)
    """
    if not isinstance(branches, Branching):
        if isinstance(branches, bool) or not isinstance(branches, int | np.integer) or branches < 0:
            raise InvalidArgument(
                f"branches is {shown(branches)}, expected a number of slots >= 0, or a rule for branches"
            )
        if not branches:
            return None
    refused = refusal_of_branches(step)
    if refused is not None:
        raise InvalidArgument(f"branches is {shown(branches)}, but {refused}")
    if isinstance(branches, Branching):
        check_count("branches.candidates", branches.candidates)
        check_count("branches.most", branches.most, least=0)
    return branches if isinstance(branches, Branching) else BestFirst(int(branches))
