"""Conversions, the search for NaN, and random values that belong to places."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import EngineError
from engine.surgery import fresh, numbers

DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)


def every_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16)


def test_every_finite_bfloat16_survives_the_way_to_floats_and_back() -> None:
    bits = every_bfloat16()
    finite = bits[(bits & 0x7F80) != 0x7F80]
    for work in (SINGLE, DOUBLE):
        assert np.array_equal(numbers.to_stored(numbers.to_float(finite, "BF16", work), "BF16"), finite)


def test_rounding_to_bfloat16_takes_the_nearest_and_the_even_one_of_two() -> None:
    drawn = np.random.default_rng(3).integers(0, 1 << 32, size=200_000, dtype=np.uint32)
    ties = (drawn & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = np.concatenate([drawn, ties]).view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    below = (values.view(np.uint32) >> 16).astype(np.uint16)
    above = (below + 1).astype(np.uint16)
    exact = values.astype(np.float64)
    to_below = np.abs(exact - numbers.to_float(below, "BF16", DOUBLE))
    to_above = np.abs(numbers.to_float(above, "BF16", DOUBLE) - exact)
    wanted = np.where((to_above < to_below) | ((to_above == to_below) & (above % 2 == 0)), above, below)
    assert np.array_equal(numbers.to_stored(values, "BF16"), wanted)


def test_nan_stays_nan_and_what_is_too_large_becomes_infinite() -> None:
    values = np.array([np.nan, -np.nan, 3.4e38, -3.4e38, np.inf], dtype=np.float32)
    values[0] = np.array([0x7F800001], dtype=np.uint32).view(np.float32)[0]  # a NaN whose upper half looks infinite
    back = numbers.to_float(numbers.to_stored(values, "BF16"), "BF16", SINGLE)
    assert np.isnan(back[:2]).all()
    assert np.isinf(back[2:]).all()
    assert back[3] < 0


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("place", [0, 1, 70_001, 199_999])
def test_one_bad_number_is_found_wherever_it_is(dtype: str, place: int) -> None:
    values = np.full(200_000, -1.5)
    assert numbers.find_not_finite(numbers.to_stored(values, dtype), dtype) == ""
    for bad, word in ((np.nan, "NaN"), (-np.inf, "infinite")):
        values[place] = bad
        assert numbers.find_not_finite(numbers.to_stored(values, dtype), dtype) == word


def test_the_largest_finite_numbers_are_no_alarm() -> None:
    for dtype, largest in (("BF16", 0x7F7F), ("F16", 0x7BFF)):
        stored = np.full(10, largest, dtype=np.uint16).view(numbers.storage(dtype))
        assert numbers.find_not_finite(stored, dtype) == ""


def test_types_nobody_can_compute_with_are_refused_by_name() -> None:
    with pytest.raises(EngineError) as refused:
        numbers.storage("F8_E4M3")
    assert "F8_E4M3" in refused.value.what


def test_a_random_field_can_begin_anywhere() -> None:
    key = fresh.field_key(17, "model.layers.0.mlp.up_proj.weight", 1)
    whole = fresh.normal(key, 0, 1000, SINGLE)
    for start, count in ((0, 1), (15, 2), (16, 16), (17, 300), (999, 1), (400, 0)):
        assert np.array_equal(fresh.normal(key, start, count, SINGLE), whole[start : start + count])


def test_fields_of_other_seeds_names_and_places_are_unrelated() -> None:
    keys = [fresh.field_key(1, "a"), fresh.field_key(2, "a"), fresh.field_key(1, "b"), fresh.field_key(1, "a", 1)]
    fields = [fresh.normal(key, 0, 4096, DOUBLE) for key in keys]
    correlations = np.corrcoef(fields)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.07


def test_random_values_are_normal() -> None:
    drawn = fresh.normal(fresh.field_key(5, "x"), 0, 1 << 20, DOUBLE)
    assert abs(drawn.mean()) < 0.005
    assert abs(drawn.std() - 1) < 0.005
    assert abs((drawn**4).mean() - 3) < 0.05
    assert 0.0455 - 0.002 < (np.abs(drawn) > 2).mean() < 0.0455 + 0.002
