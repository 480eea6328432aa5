"""Wrong arguments to anything public in `coupled_sampling.testing` are refused by the library's own errors, and at once."""

import contextlib
import inspect
import random
import signal
import typing

import numpy as np
import pytest

import coupled_sampling.testing as testing
from coupled_sampling import HostStep, Sampling
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.testing import strategies
from coupled_sampling.testing.contracts.couplings import COUPLING_CHECKS
from coupled_sampling.testing.contracts.processors import ProcessorSettings
from coupled_sampling.testing.contracts.providers import PROVIDER_CHECKS, ProviderSettings
from coupled_sampling.testing.exact.enumeration import enumerate_paths
from coupled_sampling.testing.exact.proof import Enumeration
from coupled_sampling.testing.verification import Decoding, verify

pytest.importorskip("scipy.stats")
pytest.importorskip("hypothesis")

SECONDS = 10
"""For one call, generously: wrong ones take less than a millisecond, those that turn out right some tenths of a second."""


class Broken:
    """An object that raises at whatever is asked of it."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __len__(self):
        raise RuntimeError("no length")

    def __iter__(self):
        raise RuntimeError("no items")


VALUES = [
    None, True, False, np.True_, 0, -1, -7, 2**70, 0.5, 1.0, -0.5, float("nan"), float("inf"), -float("inf"), 1j, "",
    "abc", "sjd", b"ab",
    (), [], {}, set(), [[]], [None], ["a"], [-1], [True], [1.5], [float("nan")], [[0], [None]], [[0], [1, 2]], [[[0]]], {0: None},
    {(0,): float("nan")}, {"a": 1}, [{}], np.zeros(()), np.zeros((2, 3)), np.zeros((0,)), np.array([np.nan, 1.0]), np.array(["a"]),
    np.array([None]), np.int64(-3), object(), object, Broken(), iter([0]), range(0), lambda: None, lambda *_: None, lambda *_: [],
    lambda *_: "ab", lambda *_: [float("nan")], lambda *_: [2.0, -1.0], lambda *_: np.zeros((1, 1)), lambda *_: object(),
    lambda *_: [[None]], lambda *_: Broken(),
]  # fmt: skip


def inverse_cdf(law, uniform):
    return np.argmax(np.cumsum(law, axis=-1) > uniform[..., None], axis=-1)


def model():
    return testing.TableProvider(testing.random_table(0, 3), 3, 4, 24)


COINS = np.random.default_rng(0).integers(2, size=60)
TABLE = testing.random_table(0, 2)
ALL_BUT_ONE = [name for name in PROVIDER_CHECKS if name != "causal"]
COUPLING = {
    "coupling": inverse_cdf, "kind": "shared-uniform", "bound": lambda q, p: (0.0, 1.0), "namespaces": [], "seed": 0, "samples": 10,
    "false_alarm": 1e-3, "skip": [name for name in COUPLING_CHECKS if name != "batches"],
}  # fmt: skip
PROVIDER = {
    "provider": model(), "tolerance": 1e-3, "reference": lambda tokens: np.zeros((len(tokens), 3)), "fresh": model,
    "skip": ALL_BUT_ONE,
    "seed": 0, "tokens": [0, 1], "prompts": [[0]], "length": 8, "conditions": None,
}  # fmt: skip
PROCESSOR = {
    "processor": lambda logits, tokens, positions: logits + 0, "vocab_size": 3, "prompts": [[0]], "length": 2, "stop": (),
    "array": np.asarray, "tolerance": 1e-5, "seed": 0,
}  # fmt: skip
EQUIVALENCE = {
    "sample": COINS, "other": {(0,): 0.5, (1,): 0.5}, "alpha": 0.01, "method": "chi-square", "least_expected": 5.0,
    "permutations": 200,
    "control_tv": 0.25, "seed": 0,
}  # fmt: skip


class First:
    """Chooses the first possible answer."""

    def choose(self, probabilities, text):
        return next(i for i, p in enumerate(probabilities) if p > 0)


def noise_run(noise):
    return 0


CALLS = {
    "EnumeratingGenerator": {"chooser": First()},
    "EnumeratingNoise": {"chooser": First(), "number": float},
    "ExactLaw": {},
    "CheckFailed": {"report": testing.provider_report(model(), skip=ALL_BUT_ONE)},
    "StepsDisagree": {},
    "StepComparison": {"provider": model(), "other": HostStep(model(), "sjd"), "logits_error": 0.0, "unit": 1e-7},
    "TableProvider": {"next_law": TABLE, "vocab_size": 2, "batch_size": 1, "max_length": 8},
    "RationalProvider": {"next_law": testing.rational_table(0, 2), "vocab_size": 2, "batch_size": 1, "max_length": 8},
    "random_table": {"seed": 0, "vocab_size": 2, "zeros": 0.1, "concentration": 1.0},
    "rational_table": {"seed": 0, "vocab_size": 2, "zeros": 0.1, "most": 6},
    "assert_equivalent": EQUIVALENCE,
    "equivalence_test": EQUIVALENCE,
    "assert_lossless_exactly": {
        "decode": testing.shipped_decoder("ar"), "next_law": TABLE, "prompts": [[0]], "vocab_size": 2, "length": 1, "stop": (),
        "rows": 1, "arithmetic": "float", "tolerance": 1e-9, "max_paths": 50,
        "sampling": Sampling(),
    },
    "shipped_decoder": {
        "method": "scd-match", "window": 2, "drafting": "repeat", "stop": (), "sampling": None, "branches": 1, "step": HostStep,
    },
    "autoregressive_law": {"next_law": TABLE, "prompt": [0], "length": 2, "stop": ()},
    "sampled_law": {"next_law": TABLE, "sampling": Sampling(), "prompt": [0], "arithmetic": "float"},
    "least_hit_rate": {"draft_law": [0.5, 0.5], "target_law": [0.25, 0.75], "candidates": 1},
    "joint_law": {"laws": [{0: 0.5, 1: 0.5}]},
    "total_variation": {"first": {0: 1.0}, "second": {0: 1.0}},
    "exact_law": {"run": noise_run, "max_paths": 10, "arithmetic": "float"},
    "exact_law_from_uniforms": {"run": lambda generator: 0, "max_paths": 10},
    "check_coupling": COUPLING,
    "coupling_report": COUPLING,
    "check_provider": PROVIDER,
    "provider_report": PROVIDER,
    "check_processor": PROCESSOR,
    "processor_report": PROCESSOR,
    "verify": {
        "open_model": model, "prompt": [0], "methods": ["sjd"], "samples": 20, "positions": 2, "alpha": 0.01, "make_step": HostStep,
        "window": 2, "drafting": "repeat", "sampling": None, "branches": 0, "seed": 0,
        "progress": lambda name, count: None,
    },
    "Table": {"vocab_size": 2, "order": 1, "weights": ((1, 3), (1, 1))},
    "World": {
        "table": strategies.Table(2, 0, ((1, 3),)), "prompts": ((0,),), "length": 1, "window": 1, "rows": 1, "stop": (),
    },
    "laws": {"vocab_size": 3, "kind": "flat"},
    "pairs_of_laws": {"vocab_size": 3, "tv": 0.5},
    "tables": {"vocab_size": 2, "order": 1},
    "prompts": {"vocab_size": 2, "max_length": 3},
    "batches": {"vocab_size": 2, "max_rows": 2, "max_length": 2},
    "windows": {"max_window": 3},
    "samplings": {"vocab_size": 3},
    "worlds": {"vocab_size": 2, "max_length": 2, "max_window": 2, "max_rows": 1, "stops": False},
}  # fmt: skip
"""A right call of everything that is public, with every parameter."""
RECORDS = {"Equivalence", "Report", "TieReport"}
"""What the functions return: nobody makes one."""
MORE_KEYWORDS = {
    "assert_lossless_exactly": Enumeration, "provider_report": ProviderSettings, "check_provider": ProviderSettings,
    "check_processor": ProcessorSettings, "verify": Decoding,
}  # fmt: skip
SETTINGS_OF = {"assert_equivalent": "equivalence_test", "check_coupling": "coupling_report"}
VERDICTS = {"assert_equivalent", "assert_lossless_exactly"}
"""Raise AssertionError when what they were asked about is not so."""


def find(name):
    if name == "verify":
        return verify
    return getattr(strategies if name in strategies.__all__ else testing, name)


@contextlib.contextmanager
def at_most(seconds):
    """A call that does not end becomes an error, on platforms that have alarms."""

    def alarm(*_):
        raise TimeoutError(f"not done after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def foreign(name, arguments):
    """What is wrong with a call; None if it is refused by the library, says that something is not so, or simply works."""
    try:
        with at_most(SECONDS):
            made = find(name)(**arguments)
            if name in ("TableProvider", "RationalProvider"):
                made.forward(np.array([[0]]), np.array([0]))
            elif name in ("random_table", "rational_table"):
                made((0,))
            elif name == "shipped_decoder":
                testing.assert_lossless_exactly(made, TABLE, [[0]], vocab_size=2, length=1, max_paths=1000)
            elif name in strategies.__all__ and name not in ("Table", "World"):
                made.validate()
    except CoupledSamplingError:
        return None
    except AssertionError:
        return None if name in VERDICTS or name == "shipped_decoder" else "AssertionError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    return None


def test_everything_public_has_a_right_call_here():
    public = {*testing.__all__, *strategies.__all__, "verify"}
    assert public == {*CALLS, *RECORDS}
    for name, arguments in CALLS.items():
        if name in ("StepsDisagree", "ExactLaw"):
            continue
        parameters = inspect.signature(find(SETTINGS_OF.get(name, name))).parameters
        expected = {key for key, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
        if name in MORE_KEYWORDS:
            expected |= set(typing.get_type_hints(MORE_KEYWORDS[name]))
        assert set(arguments) == expected, name
        find(name)(**arguments)


@pytest.mark.cases(12)
@pytest.mark.parametrize("name", [name for name, arguments in CALLS.items() if arguments])
def test_one_wrong_argument_is_refused_by_the_library_or_is_none(name):
    """Each parameter gets every value in turn, the others being right."""
    found = {}
    for parameter in CALLS[name]:
        for i, value in enumerate(VALUES):
            problem = foreign(name, {**CALLS[name], parameter: value})
            if problem:
                found[f"{parameter} = value {i}"] = problem
    assert not found


def test_several_wrong_arguments_are_refused_by_the_library():
    generator, found = random.Random(0), {}
    for _ in range(1500):
        name = generator.choice([name for name, arguments in CALLS.items() if arguments])
        arguments = dict(CALLS[name])
        for parameter in generator.sample(list(arguments), min(2, len(arguments))):
            arguments[parameter] = generator.choice(VALUES)
        problem = foreign(name, arguments)
        if problem:
            found[name] = problem
    assert not found


BAD_NUMBERS = [float("nan"), float("inf"), -float("inf"), True, False, -1, "0.1", None, [0.1], 1j, np.nan, np.True_]


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("assert_lossless_exactly", "tolerance"),
        ("check_provider", "tolerance"),
        ("provider_report", "tolerance"),
        ("check_processor", "tolerance"),
        ("processor_report", "tolerance"),
        ("check_coupling", "false_alarm"),
        ("coupling_report", "false_alarm"),
        ("equivalence_test", "alpha"),
        ("assert_equivalent", "alpha"),
        ("equivalence_test", "control_tv"),
        ("equivalence_test", "least_expected"),
        ("StepComparison", "logits_error"),
        ("StepComparison", "unit"),
        ("verify", "alpha"),
        ("random_table", "zeros"),
        ("random_table", "concentration"),
        ("rational_table", "zeros"),
    ],
)
@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
def test_tolerances_levels_and_probabilities_that_cannot_fail_are_refused_by_name(name, parameter, value):
    if (parameter, value) == ("tolerance", None) and name == "assert_lossless_exactly":
        pytest.skip("None is the default")
    with pytest.raises(InvalidArgument, match=parameter):
        find(name)(**{**CALLS[name], parameter: value})


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
def test_a_share_of_ties_that_cannot_fail_is_refused(value):
    report = testing.StepComparison(model(), HostStep(model(), "sjd")).report()
    with pytest.raises(InvalidArgument, match="share"):
        report.check(value)


@pytest.mark.parametrize("value", [0, -1, True, None, 1.5, "2"], ids=repr)
@pytest.mark.parametrize("parameter", ["vocab_size", "batch_size", "max_length"])
@pytest.mark.parametrize("kind", ["TableProvider", "RationalProvider"])
def test_a_model_of_no_size_is_refused_by_name(kind, parameter, value):
    with pytest.raises(InvalidArgument, match=f"{parameter} is {value!r}"):
        find(kind)(**{**CALLS[kind], parameter: value})


NO_LAWS = [[0.5], [0.5, 0.4], [1.5, -0.5], [np.nan, 1.0], [0.2, 0.3, 0.5], "ab", None, [[0.5, 0.5]], np.log([0.5, 0.5])]


@pytest.mark.parametrize("law", NO_LAWS, ids=repr)
def test_what_is_no_law_is_refused_with_its_context(law):
    provider = testing.TableProvider(lambda context: law if context == (0, 1) else [0.5, 0.5], 2)
    with pytest.raises(InvalidArgument, match=r"next_law\(\(0, 1\)\)"):
        provider.forward(np.array([[0, 1]]), np.array([0]))


@pytest.mark.parametrize("dead", [np.zeros(2), np.full(2, np.nan)], ids=["zeros", "nan"])
def test_a_dead_end_is_not_refused_by_the_model_but_by_the_decoder(dead):
    provider = testing.TableProvider(lambda context: dead, 2)
    assert not np.isfinite(provider.forward(np.array([[0, 1]]), np.array([0]))).any()


class Calls:
    """A generator's methods, wrongly called within an enumeration."""

    @staticmethod
    def law(draw):
        return enumerate_paths(lambda chooser: repr(draw(testing.EnumeratingGenerator(chooser))), max_paths=100)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_wrong_questions_to_a_generator_are_refused(value):
    draws = [
        lambda generator: generator.integers(value),
        lambda generator: generator.integers(0, value),
        lambda generator: generator.choice(value),
        lambda generator: generator.choice([0, 1], p=value),
        lambda generator: generator.random() < value,
        lambda generator: generator.random() * value < 1,
        lambda generator: generator.random() / value < 1,
        lambda generator: generator.random() + value < 1,
        lambda generator: value - generator.random() < 1,
    ]
    for draw in draws:
        with contextlib.suppress(CoupledSamplingError), at_most(SECONDS):
            Calls.law(draw)
