"""The checks pass the shipped couplings and name what is wrong with broken ones."""

import numpy as np
import pytest

from coupled_sampling import couplings, draws
from coupled_sampling.arrays import to_host
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.contracts.breakpoints import law_of_one, law_of_two
from coupled_sampling.testing.contracts.couplings import COUPLING_CHECKS, check_coupling, coupling_report, joint_law
from coupled_sampling.testing.contracts.report import CheckFailed

SHIPPED = {"independent": couplings.independent, "maximal": couplings.maximal, "gumbel": couplings.gumbel}
Q, P = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.1, 0.3, 0.2, 0.4])


@pytest.mark.cases(2)
@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.parametrize("seed", range(2))
def test_shipped_couplings_pass(kind, seed):
    check_coupling(SHIPPED[kind], kind=kind, seed=seed, samples=20_000)


@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_shipped_couplings_agree_between_array_libraries(kind, library):
    namespace = pytest.importorskip(library)
    others = ["support", "batches", "marginal", "agreement", "equal-laws", "monotone", "permutation"]
    report = check_coupling(SHIPPED[kind], kind=kind, namespaces=[namespace], skip=others)
    assert [result.name for result in report.results] == ["array-libraries"]


def test_a_shared_uniform_is_a_coupling_too():
    check_coupling(couplings.independent, kind="shared-uniform")


def rejection_with(ratio, weights):
    """The maximal coupling with another acceptance probability and another residual."""

    def coupling(draft, draft_law, target_law, accept_uniform, residual_uniform):
        corrected = draws.categorical(weights(target_law, draft_law), residual_uniform)
        q, p = (np.take_along_axis(law, draft[..., None], axis=-1)[..., 0] for law in (draft_law, target_law))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(accept_uniform < ratio(p, q), draft, corrected)

    return coupling


def ratio(p, q):
    return np.where(p > 0, p / q, 0)


def one_uniform(draft, draft_law, target_law, accept_uniform, residual_uniform):
    return couplings.maximal(draft, draft_law, target_law, accept_uniform, accept_uniform)


def searches_from_the_left(target_law, uniform):
    """Returns a token of no mass where the uniform is 0 and the law begins with zeros."""
    return np.argmax(np.cumsum(target_law, axis=-1) >= uniform[..., None], axis=-1)


def far_only(draft, draft_law, target_law, accept_uniform, residual_uniform):
    """Couples laws that are far apart and draws afresh where they are near: no bound but 1 - TV is broken."""
    near = np.abs(draft_law - target_law).sum(axis=-1) < 0.2
    coupled = couplings.maximal(draft, draft_law, target_law, accept_uniform, residual_uniform).tokens
    return np.where(near, couplings.independent(target_law, residual_uniform), coupled)


def first_law_for_all(target_law, uniform):
    return couplings.independent(
        np.broadcast_to(target_law.reshape(-1, target_law.shape[-1])[0], target_law.shape), uniform
    )


def to_numpy(target_law, uniform):
    return couplings.independent(to_host(target_law), to_host(uniform))


def writes(target_law, noise):
    tokens = couplings.gumbel(target_law, noise)
    if target_law.flags.writeable:
        target_law[:] = 0
    return tokens


BROKEN = {
    "absolute difference in the residual": (
        "marginal",
        "maximal",
        rejection_with(ratio, lambda p, q: np.abs(p - q) + 1e-300),
    ),
    "redraws from the target": ("marginal", "maximal", rejection_with(ratio, lambda p, q: p)),
    "ratio upside down": (
        "marginal",
        "maximal",
        rejection_with(lambda p, q: np.where(p > 0, q / p, 0), couplings.residual),
    ),
    "always keeps the draft": ("marginal", "maximal", lambda draft, *rest: draft),
    "one uniform for both": ("marginal", "maximal", one_uniform),
    "accepts a little less": (
        "equal-laws",
        "maximal",
        rejection_with(lambda p, q: 0.9 * ratio(p, q), couplings.residual),
    ),
    "draws afresh": ("agreement", "maximal", lambda draft, q, p, u, v: couplings.independent(p, v)),
    "couples only far laws": ("monotone", "maximal", far_only),
    "noise with the wrong sign": ("marginal", "gumbel", lambda law, noise: couplings.gumbel(law, -noise)),
    "noise forgets the law's scale": ("marginal", "gumbel", lambda law, noise: np.argmax(law + noise, axis=-1)),
    "noise in another order": (
        "permutation",
        "gumbel",
        lambda law, noise: couplings.gumbel(law, noise[..., ::-1].copy()),
    ),
    "writes into its arguments": ("batches", "gumbel", writes),
    "leaves the support": ("support", "independent", searches_from_the_left),
    "one law for the batch": ("batches", "independent", first_law_for_all),
}


@pytest.mark.parametrize(("name", "kind", "coupling"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("seed", range(2))
def test_a_broken_coupling_is_named(name, kind, coupling, seed):
    with pytest.raises(CheckFailed, match=f"- {name}: "):
        check_coupling(coupling, kind=kind, seed=seed, samples=20_000, skip=set(COUPLING_CHECKS) - {name})


def test_a_coupling_that_leaves_its_library_is_named():
    namespace = pytest.importorskip("array_api_strict")
    failures = coupling_report(to_numpy, kind="independent", namespaces=[namespace]).failures
    assert list(failures) == ["array-libraries"]


def test_a_bound_of_ones_own():
    lower = lambda q, p: (0.0, 1.0)  # noqa: E731
    fresh = lambda draft, q, p, u, v: couplings.independent(p, v)  # noqa: E731
    assert "agreement" not in coupling_report(fresh, kind="maximal", bound=lower).failures
    too_much = lambda q, p: (1.0, 1.0)  # noqa: E731
    assert list(coupling_report(couplings.maximal, kind="maximal", bound=too_much).failures) == ["agreement"]


def test_the_joint_law_of_the_maximal_coupling_is_its_formula():
    left = np.maximum(P - Q, 0)
    expected = np.diag(np.minimum(P, Q)) + np.outer(np.maximum(Q - P, 0), left / left.sum())
    np.testing.assert_allclose(joint_law(couplings.maximal, "maximal", Q, P), expected, atol=1e-11)


def test_the_joint_law_of_the_gumbel_coupling_agrees_with_its_formula():
    """P(both x) = 1 / sum over y of max(p(y)/p(x), q(y)/q(x))."""
    both = [1 / np.maximum(P / P[x], Q / Q[x]).sum() if P[x] * Q[x] else 0.0 for x in range(4)]
    found = joint_law(couplings.gumbel, "gumbel", Q, P, samples=200_000)
    np.testing.assert_allclose(np.diag(found), both, atol=0.006)


def test_laws_of_functions_of_uniforms_are_exact():
    edges = np.array([0.1, 1 / 3, 0.7])
    np.testing.assert_allclose(
        law_of_one(lambda u: np.searchsorted(edges, u, "right"), 4), np.diff([0, *edges, 1]), atol=1e-11
    )
    found = law_of_two(lambda u, v: np.where(u < 0.3, 0, 1 + np.searchsorted(edges, v, "right")), 5)
    np.testing.assert_allclose(found, [0.3, *(0.7 * np.diff([0, *edges, 1]))], atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"), [({"kind": "max"}, "kind is 'max'"), ({"skip": ["laws"]}, r"\['laws'\]")]
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        check_coupling(couplings.maximal, **{"kind": "maximal", **settings})
