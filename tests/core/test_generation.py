"""Keywords that are passed on are checked like any other: a misspelt one is refused, never ignored."""

import pytest

from coupled_sampling import generate, stream
from coupled_sampling.testing import (
    TableProvider,
    assert_lossless_exactly,
    check_provider,
    provider_report,
    random_table,
    shipped_decoder,
)
from coupled_sampling.testing.verification import verify

TABLE = random_table(0, 3)


def model():
    return TableProvider(TABLE, 3, 1, 40)


@pytest.mark.parametrize(
    "call",
    [
        lambda **more: generate(model(), [[0]], length=3, **more),
        lambda **more: stream(model(), [[0]], length=3, **more),
        lambda **more: provider_report(model(), **more),
        lambda **more: check_provider(model(), **more),
        lambda **more: verify(model, [0], ["sjd"], samples=2, positions=1, **more),
        lambda **more: assert_lossless_exactly(shipped_decoder("sjd"), TABLE, [[0]], vocab_size=3, length=1, **more),
    ],
    ids=["generate", "stream", "provider_report", "check_provider", "verify", "assert_lossless_exactly"],
)
def test_an_unknown_keyword_is_refused_by_its_name(call):
    with pytest.raises(TypeError, match="windwo"):
        call(windwo=4)
