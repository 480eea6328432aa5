"""What providers may offer besides forward: right ones pass, wrong ones are named, and what is not offered is not checked."""

import pytest

from coupled_sampling import GuidedProvider
from coupled_sampling.testing import TableProvider, check_provider, provider_report, random_table
from coupled_sampling.testing.contracts.providers import PROVIDER_CHECKS
from standins.broken_offers import BROKEN_OFFERS, Held, Observing
from standins.broken_trees import (
    BROKEN_TREES,
    NoRoomBehind,
    OneShape,
    OneStart,
    SeesItsParent,
    SeesWhatIsBehind,
    TreesOfTheFirstRows,
)
from standins.ranged import Ranged, Unforked
from standins.treeless import Treeless

V, LENGTH = 5, 40
TREES = {name for name in PROVIDER_CHECKS if "tree" in name}
RANGES = {"prompt-chunk", "row-ranges", "row-ranges-refused", "tree-rows"}
OFFERS = {
    Treeless: {"fork"},
    Unforked: TREES - RANGES,
    TableProvider: {"fork", *TREES} - RANGES,
    Ranged: {"fork", *TREES, *RANGES},
    Observing: {"begin", "fork", "takes", *TREES, *RANGES},
}
OPTIONAL = OFFERS[Observing]
ELSEWHERE = {*PROVIDER_CHECKS} - TREES


def made(kind, rows=4, seed=0, zeros=0.2):
    return kind(random_table(seed, V, zeros=zeros), V, rows, LENGTH)


@pytest.mark.cases(12)
@pytest.mark.parametrize(("kind", "name"), BROKEN_OFFERS.items(), ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_offer_is_named(kind, name, seed):
    report = provider_report(made(kind, seed=seed), seed=seed, skip=TREES)
    assert name in report.failures
    assert set(report.failures) <= {name, "input-untouched"} or kind.__name__ == "LosesChunks"


@pytest.mark.cases(12)
@pytest.mark.parametrize(("kind", "name"), BROKEN_TREES.items(), ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_tree_is_named(kind, name, seed):
    report = provider_report(made(kind, seed=seed), seed=seed, skip=ELSEWHERE)
    assert name in report.failures


NEED_MORE = (OneShape, OneStart, TreesOfTheFirstRows, NoRoomBehind, SeesWhatIsBehind, SeesItsParent)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, name in BROKEN_TREES.items() if kind not in NEED_MORE]
)
def test_a_wrong_tree_is_named_in_a_single_row_with_a_prompt_and_little_room(kind, name):
    """The faults that are left out need rows, or room for five slots."""
    report = provider_report(made(kind, rows=1), prompts=[[1, 2, 0]], length=7, skip=ELSEWHERE)
    assert name in report.failures


@pytest.mark.parametrize("columns", [0, 3])
def test_as_many_columns_as_there_are_is_right(columns):
    class Crowded(TableProvider):
        @property
        def max_columns(self):
            return self.max_length + columns

    assert check_provider(made(Crowded), skip=ELSEWHERE).passed


@pytest.mark.cases(4)
@pytest.mark.parametrize(("kind", "offers"), OFFERS.items(), ids=lambda value: getattr(value, "__name__", "_"))
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_only_what_is_offered_is_checked(kind, offers, rows):
    report = check_provider(made(kind, rows))
    names = [result.name for result in report.results]
    assert set(names) & OPTIONAL == offers
    assert names == ["attributes", *(name for name in PROVIDER_CHECKS if name in {*names} - {"attributes"})]
    assert max(report.differences.values()) == 0
    if rows == 1 and kind is not Unforked:
        assert "nothing to see" in report.notes["fork"][0]


def test_a_correct_list_of_rows_passes_so_that_only_the_fault_of_a_shared_one_is_seen():
    class Copying(Held):
        def fork(self, source, targets, length):
            for target in targets:
                self._held[target][:length] = self._held[source][:length]

    assert check_provider(made(Copying), skip=TREES).passed


@pytest.mark.cases(4)
@pytest.mark.parametrize("kind", OFFERS)
@pytest.mark.parametrize("unconditional", [[1], [1, 2, 0], lambda prompt: [*prompt, 1]], ids=["one", "long", "made"])
def test_guidance_offers_what_its_provider_offers(kind, unconditional):
    guided = GuidedProvider(made(kind, 6, zeros=0), 2.0, unconditional)
    # What is made from prompts is known to fit by request, not by the whole length.
    skip = ["whole-length"] if callable(unconditional) else []
    report = check_provider(guided, prompts=[[1, 2, 3, 0], [2]], length=24, skip=skip)
    names = {result.name for result in report.results}
    assert names & OPTIONAL == OFFERS[kind] | {"begin", "takes", "prompt-chunk"}


def test_what_fails_in_begin_ends_the_report():
    """Nothing else can be looked at."""
    kind = next(kind for kind, name in BROKEN_OFFERS.items() if name == "begin")
    report = provider_report(made(kind))
    assert [result.name for result in report.results] == ["attributes", "begin"]
    assert "calling begin(0, request) with a prompt of 1 tokens: TypeError" in report.failures["begin"]


def test_a_request_that_is_refused_is_noted():
    class Particular(Observing):
        def takes(self, request):
            return "has no condition, which this model needs"

    assert "which this model needs" in check_provider(made(Particular)).notes["takes"][0]
