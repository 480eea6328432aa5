"""Is a coupling what it says? For the author of a new one.

::

    from coupled_sampling.testing import check_coupling

    check_coupling(my_coupling, kind="maximal")            # raises CheckFailed with every failure by name

``kind`` says which randomness the coupling takes and how often its draws must agree (TV is the total variation distance):

================== ============================================================== ============================
kind               call                                                           P(agree)
================== ============================================================== ============================
``independent``    ``coupling(target_law, uniform)``, a fresh uniform             sum of p * q
``maximal``        ``coupling(draft, draft_law, target_law, uniform, uniform)``   1 - TV
``gumbel``         ``coupling(law, gumbel_noise)``, the same noise for both laws  (1 - TV)/(1 + TV) to 1 - TV
``shared-uniform`` ``coupling(law, uniform)``, the same uniform for both laws     0 to 1 - TV
================== ============================================================== ============================

Laws of functions of uniforms are found exactly (`coupled_sampling.testing.contracts.breakpoints`) and compared to 1e-9.
For Gumbel noise they are counted in draws with fixed seeds; what is tolerated is a finite-sample bound (Weissman et al.
2003 for laws, Hoeffding 1963 for agreement), so a right coupling fails with probability at most ``false_alarm`` for a seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import Array
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import (
    check_callable,
    check_choice,
    check_count,
    check_law,
    check_level,
    check_names,
    check_seed,
    check_sequence,
    shown,
)
from coupled_sampling.testing.contracts.coupling_subject import (
    EXACT,
    JUST_BELOW_ONE,
    KINDS,
    Bound,
    Kind,
    Law,
    Subject,
    bounds,
    distance,
)
from coupled_sampling.testing.contracts.report import CheckFailed, CheckResult, Report

__all__ = ["COUPLING_CHECKS", "Bound", "Kind", "check_coupling", "coupling_report", "joint_law"]


def _numbers(law: Law) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in law) + ")"


def _marginal(subject: Subject, bound: Bound) -> str | None:
    for q, p in subject.pairs():
        joint = subject.joint_of(q, p)
        for which, found, law in (("later", joint.sum(axis=0), p), ("earlier", joint.sum(axis=1), q)):
            off = distance(found, law)
            if off > subject.slack(len(law)):
                return (
                    f"from draft law {_numbers(q)} to target law {_numbers(p)} the {which} draw has law {_numbers(found)}, at a "
                    f"TV of {off:.3g} from its own (tolerated: {subject.slack(len(law)):.2g}). The output would be biased: check "
                    "the acceptance ratio target/draft, the positive part in the residual, and that no uniform is used twice"
                )
    return None


def _agreement(subject: Subject, bound: Bound) -> str | None:
    for q, p in subject.pairs():
        agreement = float(np.trace(subject.joint_of(q, p)))
        least, most = bound(q, p)
        if not least - subject.slack(None) <= agreement <= most + subject.slack(None):
            return (
                f"draft law {_numbers(q)} and target law {_numbers(p)} have a TV of {distance(q, p):.4g}; their draws agree with "
                f"probability {agreement:.6g}, expected {least:.6g} to {most:.6g}"
            )
    return None


def _equal_laws(subject: Subject, bound: Bound) -> str | None:
    for q, p in subject.pairs():
        for law in (q, p):
            agreement = float(np.trace(subject.joint_of(law, law)))
            if agreement < 1 - EXACT:
                return f"two draws of the same law {_numbers(law)} agree with probability {agreement:.9g}, expected 1"
    return None


def _support(subject: Subject, bound: Bound) -> str | None:
    ends = np.array([0.0, 2.0**-60, 0.25, 0.5, 0.75, JUST_BELOW_ONE])
    first, second = (grid.reshape(-1) for grid in np.meshgrid(ends, ends))
    for q, p in [*subject.pairs(), (np.array([0.5, 0, 0.5, 0]), np.array([0, 0.5, 0, 0.5]))]:
        for draft in np.flatnonzero(q):
            if subject.kind == "gumbel":
                noise = subject.random.gumbel(size=(50, len(p)))
                noise[:, p == 0] += np.linspace(0, 36, 50)[:, None]
                tokens = subject.call(None, q, p, noise)
            else:
                tokens = subject.call(np.full(len(first), draft), q, p, first, second)
            for token in np.unique(tokens):
                if not 0 <= token < len(p) or p[token] == 0:
                    return (
                        f"token {token} was drawn from the law {_numbers(p)}, which forbids it. Look at uniforms of exactly 0 or "
                        "just below 1, and at ties"
                    )
    return None


def _monotone(subject: Subject, bound: Bound) -> str | None:
    for q, p in subject.pairs():
        least = 1.0
        for share in np.linspace(0, 1, 5):
            further = q + share * (p - q)
            agreement = float(np.trace(subject.joint_of(q, further / further.sum())))
            if agreement > least + 2 * subject.slack(None):
                return (
                    f"on the way from {_numbers(q)} to {_numbers(p)} the probability to agree rises again, from {least:.6g} to "
                    f"{agreement:.6g} at {share:.3g} of the way, though the TV grows"
                )
            least = min(least, agreement)
    return None


def _permutation(subject: Subject, bound: Bound) -> str | None:
    for q, p in subject.pairs():
        order = subject.random.permutation(len(p))
        if subject.kind == "gumbel":
            noise = subject.random.gumbel(size=(500, len(p)))
            plain, renamed = subject.call(None, q, p, noise), subject.call(None, q, p[order], noise[:, order])
            if (order[renamed] != plain).any():
                return f"law {_numbers(p)}: renaming the tokens with their noise changes which one is drawn"
            continue
        joint, renamed_joint = subject.joint_of(q, p), subject.joint_of(q[order], p[order])
        before, after = float(np.trace(joint)), float(np.trace(renamed_joint))
        off = distance(renamed_joint.sum(axis=0), joint.sum(axis=0)[order])
        if max(abs(before - after), off) > EXACT:
            return (
                f"draft law {_numbers(q)}, target law {_numbers(p)}: renaming the tokens changes the probability to agree from "
                f"{before:.6g} to {after:.6g} and the law by a TV of {off:.3g}"
            )
    return None


def _batches(subject: Subject, bound: Bound) -> str | None:
    arguments, _ = _some_arguments(subject, (3, 2))
    kept = [argument.copy() for argument in arguments]
    together = to_host(subject.coupling(*arguments))
    if any((argument != copy).any() for argument, copy in zip(arguments, kept, strict=True)):
        return "the coupling writes into its arguments"
    if together.shape != (3, 2):
        return f"laws of shape (3, 2, V) give tokens of shape {together.shape}, expected (3, 2)"
    for index in np.ndindex(3, 2):
        own = int(to_host(subject.coupling(*(np.asarray(argument[index]) for argument in arguments))))
        if own != together[index]:
            return f"entry {index} of a batch gives token {together[index]}, alone it gives {own}: entries must be independent"
    return None


def _some_arguments(subject: Subject, shape: tuple[int, ...]) -> tuple[list[NDArray[Any]], int]:
    """Arguments of the coupling with leading axes ``shape``, and the vocabulary."""
    size, random = 6, subject.random
    q, p = (random.dirichlet(np.ones(size), shape) for _ in range(2))
    if subject.kind == "gumbel":
        return [p, random.gumbel(size=p.shape)], size
    if subject.kind != "maximal":
        return [p, random.random(shape)], size
    draft = np.asarray(np.argmax(q / random.exponential(size=q.shape), axis=-1), np.int64)
    return [draft, q, p, random.random(shape), random.random(shape)], size


Check: TypeAlias = Callable[[Subject, Bound], str | None]

COUPLING_CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "support": (_support, KINDS),
    "batches": (_batches, KINDS),
    "marginal": (_marginal, KINDS),
    "agreement": (_agreement, KINDS),
    "equal-laws": (_equal_laws, ("maximal", "gumbel", "shared-uniform")),
    "monotone": (_monotone, ("maximal", "gumbel")),
    "permutation": (_permutation, ("independent", "maximal", "gumbel")),
}
"""Checks by name, each with the kinds it holds for; ``array-libraries`` comes after them where libraries are given.

A shared uniform agrees more or less often as tokens are renamed, and an independent draw agrees more often with a peaked law.
"""


def _run(check: Check, bound: Bound, subject: Subject) -> str | None:
    return check(subject, bound)


def _array_libraries(subject: Subject, namespaces: Sequence[Any]) -> str | None:
    arguments, _ = _some_arguments(subject, (40,))
    expected = to_host(subject.coupling(*arguments))
    for namespace in namespaces:
        converted = [namespace.asarray(argument) for argument in arguments]
        tokens = subject.coupling(*converted)
        name = getattr(namespace, "__name__", str(namespace))
        if type(tokens) is not type(converted[0]):
            return f"arrays of {name} give {type(tokens).__name__}, expected {type(converted[0]).__name__}: stay in their library"
        if (to_host(tokens) != expected).any():
            return f"arrays of {name} give tokens {to_host(tokens).tolist()}, numpy's give {expected.tolist()}"
    return None


def _check_subject(coupling: Any, kind: Any, seed: Any, samples: Any) -> None:
    check_callable("coupling", coupling)
    check_choice("kind", kind, KINDS)
    check_seed("seed", seed)
    check_count("samples", samples, 1, 10**7)


def joint_law(
    coupling: Callable[..., Array],
    kind: Kind,
    draft_law: Law,
    target_law: Law,
    *,
    seed: int = 0,
    samples: int = 100_000,
) -> Law:
    """Joint law (V, V) of the earlier draw (rows) and the later one: exact, or counted in ``samples`` draws for ``gumbel``.

    Parameters
    ----------
    coupling, kind, seed, samples
        See `coupling_report`.
    draft_law, target_law
        Laws (V,).
    """
    _check_subject(coupling, kind, seed, samples)
    q = np.array(check_law("draft_law", draft_law), np.float64)
    p = np.array(check_law("target_law", target_law, len(q)), np.float64)
    return Subject(coupling, kind, seed, samples, 1e-6).joint_of(q, p)


def coupling_report(
    coupling: Callable[..., Array],
    *,
    kind: Kind,
    bound: Bound | None = None,
    namespaces: Sequence[Any] = (),
    seed: int = 0,
    samples: int = 100_000,
    false_alarm: float = 1e-6,
    skip: Collection[str] = (),
) -> Report:
    """What every check found. Failures are in the report, none is raised.

    Parameters
    ----------
    coupling
        Called as ``kind`` says (see the module): laws (..., V), other arguments (...), noise (..., V), tokens int64 (...).
    kind
        What randomness it takes.
    bound
        ``bound(draft_law, target_law) -> (least, most)`` probability of agreement, instead of the kind's own.
    namespaces
        Array libraries, such as ``torch`` or ``array_api_strict``: arrays of each must stay in it and give numpy's tokens.
    seed
        Chooses laws and noise.
    samples
        Draws per pair of laws where the law must be counted.
    false_alarm
        Probability that a right coupling of kind ``gumbel`` fails.
    skip
        Names of checks to leave out, see `COUPLING_CHECKS`.

    Raises
    ------
    InvalidArgument
        An argument cannot work; ``kind`` or a name in ``skip`` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import coupling_report
    >>> def most_probable(law, uniform):  # no draw at all
    ...     return np.argmax(law, axis=-1)
    >>> coupling_report(most_probable, kind="shared-uniform").passed
    False
    """
    _check_subject(coupling, kind, seed, samples)
    check_level("false_alarm", false_alarm)
    skip = check_names("skip", skip, [*COUPLING_CHECKS, "array-libraries"])
    if bound is not None:
        check_callable("bound", bound, 2)
    namespaces = check_sequence("namespaces", namespaces, "a list of array libraries")
    for i, namespace in enumerate(namespaces):
        if not hasattr(namespace, "asarray"):
            raise InvalidArgument(
                f"namespaces[{i}] is {shown(namespace)}, expected an array library, such as array_api_strict"
            )
    promised = bound or functools.partial(bounds, kind)
    runs: dict[str, Callable[[Subject], str | None]] = {
        name: functools.partial(_run, check, promised)
        for name, (check, kinds) in COUPLING_CHECKS.items()
        if kind in kinds
    }
    if namespaces:
        runs["array-libraries"] = functools.partial(_array_libraries, namespaces=namespaces)
    results = []
    for name, run in runs.items():
        if name in skip:
            continue
        try:
            failure = run(Subject(coupling, kind, seed, samples, false_alarm))
        except Exception as error:
            # A coupling may raise anything; it was given laws and noise within their bounds.
            failure = f"{type(error).__name__}: {error}"
        results.append(CheckResult(name, failure=failure))
    subject = getattr(coupling, "__name__", type(coupling).__name__)
    tolerated = Subject(coupling, kind, seed, samples, false_alarm).slack(None)
    return Report(f"{subject}, kind {kind}", tolerated, tuple(results))


def check_coupling(coupling: Callable[..., Array], *, kind: Kind, **settings: Any) -> Report:
    """`coupling_report` with the same ``settings``, raising if anything failed.

    Raises
    ------
    CheckFailed
        A check failed: an AssertionError that lists all failures by name.
    InvalidArgument
        As for `coupling_report`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import check_coupling
    >>> def inverse_cdf(law, uniform):
    ...     return np.argmax(np.cumsum(law, axis=-1) > uniform[..., None], axis=-1)
    >>> check_coupling(inverse_cdf, kind="shared-uniform").passed
    True
    """
    report = coupling_report(coupling, kind=kind, **settings)
    if not report.passed:
        raise CheckFailed(report)
    return report
