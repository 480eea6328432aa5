"""Rotary tables against the formulas of their papers, and parts of a description that cannot be."""

import dataclasses
import math

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.description import LayerKind, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.rotary import GridRotary, Rotary, RotaryScaling, rotary_tables
from standins.rotary_scalings import LLAMA3, OWN_FACTORS, YARN


@pytest.mark.parametrize("size", [8, 6])
def test_rotary_tables_are_the_angles_of_the_paper(size):
    cos, sin = rotary_tables(Rotary(base=100.0), size, 50)
    for position in (0, 1, 7, 49):
        for pair in range(size // 2):
            angle = position * 100.0 ** (-2 * pair / size)
            assert cos[position, pair] == pytest.approx(math.cos(angle), abs=1e-5)
            assert sin[position, pair] == pytest.approx(math.sin(angle), abs=1e-5)


def test_linear_scaling_stretches_positions():
    plain, stretched = Rotary(), Rotary(scaling=RotaryScaling("linear", 4.0))
    np.testing.assert_allclose(rotary_tables(stretched, 8, 40)[1][::4], rotary_tables(plain, 8, 10)[1], atol=1e-6)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    """Position 1's angles are the frequencies; wavelengths are 2 pi over them."""
    rotary = Rotary(base=500.0)
    scaled = dataclasses.replace(rotary, scaling=LLAMA3)
    (plain, changed) = (
        np.arctan2(*(table[1] for table in reversed(rotary_tables(each, 16, 2)))) for each in (rotary, scaled)
    )
    for before, after in zip(plain, changed, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 40 / 4:
            assert after == pytest.approx(before, rel=1e-4)
        elif wavelength > 40 / 1:
            assert after == pytest.approx(before / 8, rel=1e-4)
        else:
            share = (40 / wavelength - 1) / 3
            assert after == pytest.approx((1 - share) * before / 8 + share * before, rel=1e-4)
    lengths = 2 * math.pi / plain
    assert (lengths < 10).any()
    assert ((lengths > 10) & (lengths < 40)).any()
    assert (lengths > 40).any()


def test_yarn_keeps_the_first_pairs_stretches_the_last_and_strengthens_all():
    """Pair i makes 64 * 100^(-i/8) / (2 pi) turns: 3 turns at pair 2.1, 1 at pair 4.03, rounded outward to 2 and 5."""
    cos, sin = (table[1] / 1.2 for table in rotary_tables(Rotary(base=100.0, scaling=YARN), 16, 2))
    plain = 100.0 ** (-np.arange(8) / 8)
    kept = np.array([1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0])
    np.testing.assert_allclose(np.arctan2(sin, cos), kept * plain + (1 - kept) * plain / 4, rtol=1e-5)
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=1e-5)


def test_each_pair_may_have_a_factor_of_its_own():
    cos, sin = (table[3] / 1.3 for table in rotary_tables(Rotary(scaling=OWN_FACTORS), 8, 4))
    expected = 3 * 10000.0 ** (-np.arange(4) / 4) / np.array([1.0, 1.5, 2.0, 6.0])
    np.testing.assert_allclose(np.arctan2(sin, cos), expected, rtol=1e-5)
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=1e-5)


def test_a_grid_turns_half_the_pairs_by_row_and_half_by_column():
    cos, sin = rotary_tables(Rotary("interleaved", 100.0, grid=GridRotary(3, 5, 2)), 8, 19)
    assert not cos[:2].any()
    assert not sin[:2].any()
    for row in range(3):
        for column in range(5):
            angles = [row, row * 100**-0.5, column, column * 100**-0.5]
            np.testing.assert_allclose(cos[2 + 5 * row + column], np.cos(angles), atol=1e-5)
            np.testing.assert_allclose(sin[2 + 5 * row + column], np.sin(angles), atol=1e-5)
    assert (cos[17:] == 1).all()
    assert not sin[17:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Norm("batch"), "kind of the norm is 'batch'"),
        (lambda: Norm(epsilon=0), "epsilon of the norm is 0"),
        (lambda: Rotary("both"), "pairs is 'both'"),
        (lambda: Rotary(base=-1), "base of the rotary positions is -1"),
        (lambda: Rotary(size=3), "size of the rotary positions is 3"),
        (lambda: Rotary(scaling=LLAMA3, grid=GridRotary(1, 1)), "trained without scaling"),
        (lambda: RotaryScaling("dynamic", 2.0), "kind of rotary scaling is 'dynamic'"),
        (lambda: RotaryScaling("linear", 0.5), "factor of rotary scaling is 0.5"),
        (lambda: RotaryScaling("yarn", 2.0, 32.0, 1.0), "expected 0 < low < high"),
        (lambda: RotaryScaling("factors"), "factors of rotary scaling are"),
        (lambda: RotaryScaling("factors", factors=(1.0, 0.0)), "factors of rotary scaling are"),
        (lambda: RotaryScaling("yarn", 2.0, factors=(1.0,)), "factors of rotary scaling are"),
        (lambda: RotaryScaling("yarn", 2.0, attention_factor=0.0), "attention_factor is 0"),
        (lambda: Rotary(base=1.0, scaling=YARN), "expected a number > 1 for yarn"),
        (lambda: LayerKind(-1), "window of a layer is -1"),
        (lambda: QueryKeyNorm(per_head=True, whole=True), "per_head and whole"),
        (lambda: RotaryScaling("llama3", 8.0, 4.0, 1.0), "expected 0 < low < high"),
        (lambda: GridRotary(0, 3), "a grid of 0 by 3"),
    ],
)
def test_parts_that_cannot_be_are_refused(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()
