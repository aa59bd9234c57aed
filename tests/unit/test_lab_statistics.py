"""Intervals over seeds are Student's, and pairing by seed takes out what the seeds have in common."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lab.statistics import interval, paired, student_cdf, student_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 3, 3.18245), (0.975, 4, 2.77645), (0.975, 9, 2.26216),
        (0.995, 2, 9.92484), (0.995, 5, 4.03214), (0.95, 10, 1.81246), (0.9995, 3, 12.9240), (0.975, 120, 1.97993),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(probability: float, degrees: int, published: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(published, rel=2e-5)


@given(st.floats(-40, 40), st.integers(1, 60))
def test_the_distribution_is_symmetric_and_between_zero_and_one(t: float, degrees: int) -> None:
    p = student_cdf(t, degrees)
    assert -1e-12 <= p <= 1 + 1e-12
    assert p + student_cdf(-t, degrees) == pytest.approx(1.0)


def test_an_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.30265 * 1.0 / math.sqrt(3), rel=1e-4)
    assert not interval([1.0]).known
    assert not interval([1.0]).excludes_zero


def test_several_comparisons_widen_the_interval() -> None:
    assert interval([1.0, 1.1, 0.9], comparisons=3).low < interval([1.0, 1.1, 0.9]).low


def test_pairing_finds_a_small_difference_below_a_large_spread_of_seeds() -> None:
    first = {1: 1.0, 2: 2.0, 3: 3.0}
    second = {1: 1.11, 2: 2.09, 3: 3.10}
    found = paired(first, second)
    assert found is not None
    assert found.excludes_zero
    assert found.mean == pytest.approx(-0.1)
    assert interval(list(first.values())).high > interval(list(second.values())).low, "apart they overlap"
    assert paired({1: 1.0}, {2: 1.0}) is None
