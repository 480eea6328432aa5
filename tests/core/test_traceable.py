"""The rule runs where libraries trace, compile and map functions, with numpy's results and without a warning.

Nothing is imported before a test runs: each library's tests are skipped where it is not installed.
"""

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from coupled_sampling import METHODS, Sampling, couplings, draws, step_rule, target
from coupled_sampling.arrays import is_concrete, namespace, to_host
from coupled_sampling.contracts import Decisions, RowInfo, Sites, TreeDecisions
from coupled_sampling.corrections import Changes
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.law_forms import DraftLawArray
from coupled_sampling.noise import ArrayNoise, CounterNoise
from coupled_sampling.step_rule import CorrectedSite, decide, decide_tree
from coupled_sampling.trees import Tree
from standins import ROOT
from standins.correctors import random_low_rank
from standins.frameworks import TRANSFORMATIONS, Framework

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("error")]

EVERYWHERE = [(name, kind) for name, kinds in TRANSFORMATIONS.items() for kind in kinds]
WITHOUT_VMAP = [(name, kind) for name, kind in EVERYWHERE if "vmap" not in kind]
TRACING = [(name, kind) for name, kind in EVERYWHERE if kind != "eager"]

ROWS, SLOTS = 2, 5
SETTINGS = {
    "plain": Sampling(),
    "greedy": Sampling(temperature=0),
    "top-k": Sampling(0.8, top_k=3),
    "top-p": Sampling(top_p=0.9),
    "all": Sampling(1.3, top_k=4, top_p=0.8, min_p=0.05),
}


def random_laws(generator, vocab_size):
    weights = generator.random((ROWS, SLOTS, vocab_size)) ** 3
    weights[..., 1] = 0
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


class Given:
    """Arguments: laws, drafts and noise, float32 where they are floats."""

    def __init__(self, vocab_size):
        generator = np.random.default_rng(vocab_size)
        self.target = random_laws(generator, vocab_size)
        self.law = (0.6 * self.target + 0.4 * random_laws(generator, vocab_size)).astype(np.float32)
        self.draft = draws.categorical(self.law, generator.random((ROWS, SLOTS)))
        self.uniforms = generator.random((ROWS, SLOTS, 4)).astype(np.float32)
        self.gumbel = generator.gumbel(size=self.law.shape).astype(np.float32)
        self.race = np.exp(self.gumbel)
        self.logits = (5 * generator.standard_normal(self.law.shape)).astype(np.float32)
        self.logits[..., 2] = -np.inf
        self.valid = np.ones((ROWS, SLOTS), bool)
        self.valid[1, 0] = False
        self.drafted = self.valid & (np.arange(SLOTS) < SLOTS - 1)
        self.guessed = np.broadcast_to(np.arange(SLOTS) >= 3, (ROWS, SLOTS)).copy()


def flat(value):
    return [to_host(part) for part in value] if isinstance(value, tuple) else [to_host(value)]


def assert_as_numpy(framework, kind, function, arguments, where=None):
    library = Framework(framework)
    expected = flat(function(*arguments))
    found = flat(library.transformed(kind, function)(*map(library.array, arguments)))
    assert len(found) == len(expected)
    for own, other in zip(expected, found, strict=True):
        assert other.shape == own.shape
        assert other.dtype.kind == own.dtype.kind
        if own.dtype.kind == "f":
            np.testing.assert_allclose(other, own, rtol=2e-6, atol=1e-7)
        else:
            asked = np.ones(own.shape, bool) if where is None or own.ndim < 2 else where
            np.testing.assert_array_equal(other[asked], own[asked])


def leading_maximal(*arguments):
    return couplings.maximal(*arguments, leading=True)


def maximal_where(draft, law, target_law, accept, correct, where):
    return couplings.maximal(draft, law, target_law, accept, correct, where=where)


def three_best(law, weights):
    return draws.ranked(law, weights, 3)


FUNCTIONS = {
    "acceptance_probability": (couplings.acceptance_probability, lambda g: (g.draft, g.law, g.target)),
    "residual": (couplings.residual, lambda g: (g.target, g.law)),
    "an empty residual": (couplings.residual, lambda g: (g.target, g.target)),
    "independent": (couplings.independent, lambda g: (g.target, g.uniforms[..., 0])),
    "maximal": (couplings.maximal, lambda g: (g.draft, g.law, g.target, g.uniforms[..., 0], g.uniforms[..., 1])),
    "maximal, leading": (
        leading_maximal,
        lambda g: (g.draft, g.law, g.target, g.uniforms[..., 0], g.uniforms[..., 1]),
    ),
    "maximal, some sites": (
        maximal_where,
        lambda g: (g.draft, g.law, g.target, g.uniforms[..., 0], g.uniforms[..., 1], g.valid),
    ),
    "gumbel": (couplings.gumbel, lambda g: (g.target, g.gumbel)),
    "match": (couplings.match, lambda g: (g.draft, g.target, g.gumbel)),
    "categorical": (draws.categorical, lambda g: (g.law, g.uniforms[..., 0])),
    "race": (draws.race, lambda g: (g.law, g.race)),
    "ranked": (three_best, lambda g: (g.law, g.race)),
}


@pytest.mark.parametrize("vocab_size", [7, 300])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("framework", "kind"), EVERYWHERE)
def test_functions_of_the_rule(framework, kind, name, vocab_size):
    function, arguments = FUNCTIONS[name]
    given = Given(vocab_size)
    where = given.valid if name == "maximal, some sites" else None
    assert_as_numpy(framework, kind, function, arguments(given), where)


def test_every_public_function_is_among_them():
    tested = {name.split(",")[0] for name in FUNCTIONS}
    public = {name for module in (couplings, draws, step_rule) for name in module.__all__ if name[0].islower()}
    assert public - tested == {"decide", "decide_tree"}  # whole steps, see below


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("framework", "kind"), EVERYWHERE)
def test_target_laws_of_one_setting(framework, kind, name):
    sampling = SETTINGS[name]
    assert_as_numpy(framework, kind, lambda logits: target.target_law(logits, sampling), (Given(40).logits,))


@pytest.mark.parametrize("settings", [["all", "all"], ["plain", "top-k"], ["top-p", None]])
@pytest.mark.parametrize(("framework", "kind"), WITHOUT_VMAP)
def test_target_laws_of_a_batch(framework, kind, settings):
    rows = [None if name is None else RowInfo(0, 0, SETTINGS[name]) for name in settings]
    positions, wanted = np.arange(SLOTS)[None].repeat(ROWS, 0), np.ones((ROWS, SLOTS), bool)
    wanted[[info is None for info in rows]] = False
    used = [b for b, info in enumerate(rows) if info is not None]

    def laws(logits):
        made = target.target_laws(logits, rows, [np.zeros(0, np.int64)] * ROWS, positions, wanted)
        return tuple(made.laws[b, ...] for b in used)

    assert_as_numpy(framework, kind, laws, (Given(40).logits,))


def doubled(logits, tokens, positions):
    return logits * 2


@pytest.mark.parametrize(("framework", "kind"), [pair for pair in WITHOUT_VMAP if pair != ("torch", "compile")])
def test_target_laws_with_processors(framework, kind):
    """Not under torch.compile, which traces numpy too: processors are told tokens and positions in numpy arrays."""
    rows = [RowInfo(0, 0, Sampling(processors=(doubled,))), RowInfo(0, 0, Sampling())]
    positions, wanted = np.arange(SLOTS)[None].repeat(ROWS, 0), np.ones((ROWS, SLOTS), bool)

    def laws(logits):
        return target.target_laws(logits, rows, [np.zeros(0, np.int64)] * ROWS, positions, wanted).laws

    assert_as_numpy(framework, kind, laws, (Given(40).logits,))


@pytest.mark.parametrize(("framework", "kind"), WITHOUT_VMAP)
def test_slots_without_a_law_are_told_while_a_library_traces(framework, kind):
    rows = [RowInfo(0, b, Sampling()) for b in range(ROWS)]
    positions, wanted = np.arange(SLOTS)[None].repeat(ROWS, 0), np.ones((ROWS, SLOTS), bool)
    logits = np.array(Given(40).logits)
    logits[0, 1], logits[1, 2, 3] = -np.inf, np.nan

    def laws(logits):
        made = target.target_laws(logits, rows, [np.zeros(0, np.int64)] * ROWS, positions, wanted)
        return made.laws, made.usable

    assert_as_numpy(framework, kind, laws, (logits,))


def decision(method):
    """`decide` as a function of arrays alone."""

    def decided(valid, draft, drafted, guessed, law, target_law, uniforms, race_weights):
        sites = Sites(seed=None, sequence=None, round=None, position=None, valid=valid)
        laws = DraftLawArray(draft, drafted, law).guessed(guessed)
        return tuple(decide(method, target_law, sites, laws, ArrayNoise(uniforms, race_weights)))

    return decided


def arguments_of_a_decision(given):
    return (
        given.valid, given.draft, given.drafted, given.guessed, given.law, given.target, given.uniforms, given.race
    )  # fmt: skip


@pytest.mark.parametrize("vocab_size", [7, 300])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("framework", "kind"), EVERYWHERE)
def test_a_whole_step_is_decided(framework, kind, method, vocab_size):
    given = Given(vocab_size)
    if kind == "vmap" or kind == "jit of vmap":
        given.valid[1, 0] = True  # a row alone is one that decides from its first site on
    arguments = arguments_of_a_decision(given)
    assert_as_numpy(framework, kind, decision(METHODS[method]), arguments, where=given.valid)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("framework", "kind"), WITHOUT_VMAP)
def test_a_step_ends_a_rows_drafts_where_there_is_no_law(framework, kind, method):
    given = Given(7)
    usable = np.ones((ROWS, SLOTS), bool)
    usable[0, 3] = usable[1, 2] = False
    make = METHODS[method]

    def decided(usable, valid, draft, drafted, guessed, law, target_law, uniforms, race_weights):
        sites = Sites(seed=None, sequence=None, round=None, position=None, valid=valid)
        laws = DraftLawArray(draft, drafted, law).guessed(guessed)
        return tuple(decide(make, target_law, sites, laws, ArrayNoise(uniforms, race_weights), usable=usable))

    assert_as_numpy(framework, kind, decided, (usable, *arguments_of_a_decision(given)), where=given.valid)
    tokens, last, _ = decided(usable, *arguments_of_a_decision(given))
    assert (tokens[0, 3:][given.valid[0, 3:]] == -1).all()
    assert last[0] <= 3


class FromLogits:
    """A `Correction` on arrays alone: a fitted table, of which nothing can follow token 4 where ``ends``."""

    def __init__(self, fitted, logits, draft, ends):
        self.fitted, self.logits, self.draft, self.ends = fitted, logits, draft, ends

    def at(self, site, tokens, later):
        xp = namespace(self.logits)
        none = xp.full_like(tokens[:, 0], self.fitted.vocab_size)
        old, new = (
            xp.stack([held[:, site - lag] if lag <= site else none for lag in self.fitted.lags], axis=-1)
            for held in (self.draft, tokens)
        )
        raw = self.logits[:, site, :]
        law = target.target_law(self.fitted.correct(raw, Changes(old, new, none)), Sampling())
        return CorrectedSite(xp.any(new != old, axis=-1), law, new[:, 0] != 4 if self.ends else None)


def decided_tree(usable, valid, has_draft, draft, on_path, parents, depth, sees, tips, target_law, race_weights):
    """`decide_tree` as a function of arrays alone."""
    sites = Sites(None, None, None, None, valid)
    slots = Decisions(sites, 0, draft, has_draft)
    tree = TreeDecisions(slots, slots._replace(sites=sites._replace(valid=on_path)), parents, depth, sees, tips)
    noise = ArrayNoise(race_weights=race_weights)
    tokens, last, laws, slots = decide_tree(METHODS["scd-match"], target_law, tree, noise, usable=usable)
    xp = namespace(tokens)
    redraft = (xp.arange(tokens.shape[1]) > last[:, None]) & (tokens >= 0)  # the laws of others mean nothing
    return tokens, last, xp.where(redraft[..., None], laws, xp.zeros_like(laws)), slots


def arguments_of_a_tree(given):
    """Two rows: one begins with its slot 0, the other with its slot 1 and has padding at its end; all drafts but one stand."""
    parents = np.array([[-1, 0, 0, 2, 3], [-1, 0, 1, 1, -1]])
    tree = Tree.of(parents)
    valid = np.array([[True] * 5, [False, True, True, True, False]])
    on_path = np.array([[True, True, False, False, False], [False, True, True, False, False]])
    has_draft = valid & ~np.array([[True, False, False, False, False], [False, True, False, False, False]])
    own = (given.target * given.race).argmax(axis=-1)
    draft = np.take_along_axis(own, np.maximum(parents, 0), axis=-1)
    draft[0, 1] = (draft[0, 1] + 1) % given.target.shape[-1]
    return (
        valid,
        has_draft,
        draft,
        on_path,
        np.maximum(parents, 0),
        tree.depth,
        tree.sees,
        tree.tips(),
        given.target,
        given.race,
    )


@pytest.mark.parametrize("vocab_size", [7, 300])
@pytest.mark.parametrize(("framework", "kind"), WITHOUT_VMAP)
def test_a_step_with_branches_is_decided(framework, kind, vocab_size):
    valid, *others = arguments_of_a_tree(Given(vocab_size))
    own = (others[-2] * others[-1]).argmax(axis=-1)
    expected = decided_tree(np.ones_like(valid), valid, *others)
    np.testing.assert_array_equal(expected[1], [3, 2])
    np.testing.assert_array_equal(expected[3][0, :4], [0, 2, 3, 4])  # along the branch
    np.testing.assert_array_equal(expected[0][0, :4], own[0, [0, 2, 3, 4]])
    usable = np.ones_like(valid)
    usable[0, 4] = usable[1, 1] = False
    for laws in (np.ones_like(valid), usable):
        arguments = laws, valid, *others
        # What stands beyond the path and the walk means nothing, and is the same for all that.
        assert_as_numpy(framework, kind, decided_tree, arguments)
    assert decided_tree(usable, valid, *others)[0][0, 3] == decided_tree(usable, valid, *others)[0][1, 1] == -1


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.recycles])
@pytest.mark.parametrize(("framework", "kind"), WITHOUT_VMAP)
def test_redrafts_from_corrected_laws(framework, kind, method, ends):
    given, fitted = Given(7), random_low_rank(0, 7, (1, 3))
    given.valid[1, 0] = True  # of a row that decides later, the sites before hold nothing that could change

    def decided(logits, valid, draft, drafted, guessed, law, target_law, uniforms, race_weights):
        sites = Sites(seed=None, sequence=None, round=None, position=None, valid=valid)
        laws = DraftLawArray(draft, drafted, law).guessed(guessed)
        correction, noise = FromLogits(fitted, logits, draft, ends), ArrayNoise(uniforms, race_weights)
        return tuple(decide(METHODS[method], target_law, sites, laws, noise, correction=correction))

    arguments = (given.logits, *arguments_of_a_decision(given))
    assert_as_numpy(framework, kind, decided, arguments, where=given.valid)
    plain, corrected = decision(METHODS[method])(*arguments[1:]), decided(*arguments)
    np.testing.assert_array_equal(plain[1], corrected[1])
    assert (plain[2] != corrected[2]).any()
    assert (corrected[0] == -1).any() == ends


@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_laws_noise_and_sites_may_be_arguments_of_a_jitted_function(method):
    jax = Framework("jax").library
    given = Given(30)
    compiled = jax.jit(decide, static_argnums=0)
    sites = Sites(
        np.zeros(ROWS, np.uint64),
        np.zeros(ROWS, np.uint64),
        np.zeros(ROWS, int),
        np.zeros((ROWS, SLOTS), int),
        given.valid,
    )
    noise = ArrayNoise(given.uniforms, given.race)
    laws = DraftLawArray(given.draft, given.drafted, given.law)
    expected = decide(METHODS[method], given.target, sites, laws, noise)
    found = compiled(METHODS[method], given.target, sites, laws, noise)
    np.testing.assert_array_equal(np.asarray(found.last), expected.last)
    np.testing.assert_array_equal(np.asarray(found.tokens)[given.valid], expected.tokens[given.valid])


def test_sites_may_stay_in_numpy_while_laws_are_traced():
    jax = Framework("jax").library
    given = Given(30)
    sites = Sites(None, None, None, None, given.valid)
    noise = ArrayNoise(*map(jax.numpy.asarray, (given.uniforms, given.race)))
    laws = DraftLawArray(given.draft, given.drafted, given.law)
    expected = decide(METHODS["scd-gumbel"], given.target, sites, laws, ArrayNoise(given.uniforms, given.race))
    found = jax.jit(lambda law: decide(METHODS["scd-gumbel"], law, sites, laws, noise))(given.target)
    np.testing.assert_array_equal(np.asarray(found.last), expected.last)
    np.testing.assert_array_equal(np.asarray(found.tokens)[given.valid], expected.tokens[given.valid])


def test_torchs_default_compiler_gives_the_same():
    """The other tests stop before C++ is written, which takes long."""
    torch = Framework("torch").library
    given = Given(300)
    arguments = arguments_of_a_decision(given)
    expected = decision(METHODS["scd-maximal"])(*arguments)
    torch._dynamo.reset()
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own imports
        found = torch.compile(decision(METHODS["scd-maximal"]), fullgraph=True)(*map(torch.from_numpy, arguments))
    np.testing.assert_array_equal(found[1].numpy(), expected[1])
    np.testing.assert_array_equal(found[0].numpy()[given.valid], expected[0][given.valid])


def test_jax_with_64_bits_computes_in_them():
    jax = Framework("jax").library
    given = Given(300)
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arguments_of_a_decision(given)]
    with jax.enable_x64(True):
        found = jax.jit(decision(METHODS["scd-maximal"]))(*wide)
        probability = couplings.acceptance_probability(*map(jax.numpy.asarray, (given.draft, given.law, given.target)))
    assert found[0].dtype == np.int64
    assert probability.dtype == np.float64
    expected = decision(METHODS["scd-maximal"])(*wide)
    np.testing.assert_array_equal(np.asarray(found[1]), expected[1])
    np.testing.assert_array_equal(np.asarray(found[0])[given.valid], expected[0][given.valid])


# What must fail


def branching(law):
    if bool(namespace(law).any(law > 2)):
        return law
    return law / 2


@pytest.mark.parametrize(("framework", "kind"), TRACING)
def test_a_branch_on_a_value_fails(framework, kind):
    """The negative control of everything above."""
    library = Framework(framework)
    law = library.array(Given(7).target)
    branching(law)
    with pytest.raises(Exception, match=r"(?i)trac|bool|data-dependent|compile|vmap|eval"):
        library.transformed(kind, branching)(law)


@pytest.mark.parametrize(("framework", "kind"), EVERYWHERE)
def test_values_are_checked_where_they_can_be_seen(framework, kind):
    library, given = Framework(framework), Given(7)
    wrong, uniform = library.array(2 * given.target), library.array(given.uniforms[..., 0])
    seen = []

    def function(law, uniform):
        seen.append(is_concrete(law))
        return couplings.independent(law, uniform)

    if kind == "eager":
        with pytest.raises(InvalidArgument, match="target_law"):
            function(wrong, uniform)
        assert seen == [True]
    else:
        library.transformed(kind, function)(wrong, uniform)
        assert not any(seen)


@pytest.mark.parametrize("framework", TRANSFORMATIONS)
def test_the_largest_uniform_is_still_below_one(framework, monkeypatch):
    """Rounded to float32 it would be 1, and a draft of probability 1 be refused."""
    library = Framework(framework)
    monkeypatch.setattr("coupled_sampling.noise.uniforms", lambda *where: np.full((where[-1], 4), 1 - 2.0**-53))
    sites = Sites(
        np.ones(1, np.uint64), np.ones(1, np.uint64), np.ones(1, int), np.arange(4)[None], np.ones((1, 4), bool)
    )
    probability = library.array(np.ones((1, 4), np.float32))
    answer = CounterNoise().bernoulli(probability, sites, draws.Purpose.ACCEPT, where=sites.valid)
    assert to_host(answer).all()
    tokens = CounterNoise().categorical(
        library.array(np.array([[[0.5, 0.5, 0.0]] * 4], np.float32)), sites, 1, where=None
    )
    assert to_host(tokens).tolist() == [[1] * 4]


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, importlib.util as u\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        f"spec = u.spec_from_file_location('traceable', {__file__!r})\n"
        "spec.loader.exec_module(u.module_from_spec(spec))\n"
        "import coupled_sampling.backends, coupled_sampling.testing\n"
        "print([name for name in ('jax', 'torch', 'mlx', 'cupy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
