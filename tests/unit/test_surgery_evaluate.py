"""Recipes carried out, against a slow reading of their definition, element by element."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.expansion.maps import AxisMap, Fill, Run, identity, length
from engine.expansion.recipe import Recipe, Source
from engine.models.headers import read_file_header
from engine.surgery import numbers
from engine.surgery.evaluate import Evaluator, evaluate_whole, store_whole
from engine.surgery.numbers import Array
from engine.surgery.planes import HOLE_BYTES
from engine.surgery.reader import TensorReader
from tests.support.surgery_models import random_tensor, write_safetensors

DOUBLE = np.dtype(np.float64)
TYPES = ("BF16", "F16", "F32", "F64")
UNIT = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}


def reader_of(folder: Path, **tensors: tuple[str, Array]) -> TensorReader:
    path = write_safetensors(folder / "source.safetensors", tensors)
    return TensorReader(read_file_header(path))


def floats(stored: Array, dtype: str) -> Array:
    return numbers.to_float(stored, dtype, DOUBLE)


def flattened(axis: AxisMap) -> list[tuple[Run, int]]:
    """(run, old entry) of every new entry."""
    return [(run, run.start + offset) for run in axis for offset in range(run.count)]


def slowly(recipe: Recipe, sources: list[Array]) -> tuple[Array, Array]:
    """The recipe's definition, without noise: values, and where they are free."""
    out = np.zeros(recipe.shape)
    free = np.zeros(recipe.shape, dtype=bool)
    for place in product(*(range(extent) for extent in recipe.shape)):
        entries = [flattened(axis)[index] for axis, index in zip(recipe.maps, place, strict=True)]
        fills = {run.fill for run, _ in entries}
        if Fill.ZERO in fills:
            continue
        if Fill.FREE in fills:
            free[place] = True
            continue
        selects = any(run.source for axis in recipe.maps for run in axis)
        chosen = [max(run.source for run, _ in entries)] if selects else range(len(sources))
        total = 0.0
        for index in chosen:
            taken = sources[index]
            for axis, (run, old) in reversed(list(enumerate(entries))):
                taken = taken.mean(axis=axis) if run.fill is Fill.MEAN else taken.take(old, axis=axis)
            total += float(taken) * (1.0 if selects else recipe.sources[index].weight)
        out[place] = recipe.scale * prod(run.scale for run, _ in entries) * total + recipe.shift
    return out, free


@st.composite
def axis_maps(draw: st.DrawFn, old: int, sources: int) -> AxisMap:
    runs = []
    for _ in range(draw(st.integers(1, 4))):
        fill = draw(st.sampled_from([Fill.COPY, Fill.COPY, Fill.COPY, Fill.ZERO, Fill.FREE, Fill.MEAN]))
        start = draw(st.integers(0, old - 1))
        count = draw(st.integers(1, old - start)) if fill is Fill.COPY else draw(st.integers(1, 3))
        scale = draw(st.sampled_from([1.0, 1.0, 0.5, -1.25, 0.3])) if fill in (Fill.COPY, Fill.MEAN) else 1.0
        source = draw(st.integers(0, sources - 1)) if fill is Fill.COPY else 0
        runs.append(Run(fill, count, start if fill is Fill.COPY else 0, scale, source))
    return tuple(runs)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recipe, tuple[int, ...], int]:
    old = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    count = draw(st.integers(1, 2))
    selects = count > 1 and draw(st.booleans())
    maps = tuple(draw(axis_maps(extent, count if selects else 1)) for extent in old)
    weights = (1.0,) if count == 1 else (0.25, 0.75)
    recipe = Recipe(
        name="out",
        shape=tuple(map(length, maps)),
        dtype=draw(st.sampled_from(TYPES)),
        sources=tuple(Source(f"s{index}", weight=weights[index]) for index in range(count)),
        maps=maps,
        scale=draw(st.sampled_from([1.0, 1.0, 0.7])),
        shift=draw(st.sampled_from([0.0, 0.0, -0.3])),
        fresh_std=0.02,
    )
    return recipe, old, draw(st.integers(0, 1 << 20))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), stored=st.sampled_from(TYPES))
def test_any_recipe_does_what_its_definition_says(
    tmp_path: Path, case: tuple[Recipe, tuple[int, ...], int], stored: str
) -> None:
    recipe, old, seed = case
    held = {f"s{index}": (stored, random_tensor(seed + index, old, stored)) for index in range(len(recipe.sources))}
    wanted, free = slowly(recipe, [floats(values, stored) for _, values in held.values()])
    with reader_of(tmp_path, **held) as reader:
        values = evaluate_whole(recipe, reader, seed)
        written = store_whole(recipe, reader, seed)
        small_steps = store_whole(recipe, reader, seed, chunk_bytes=1)
    tolerance = 1e-5 if values.dtype == np.float32 else 1e-13
    assert values.shape == recipe.shape
    np.testing.assert_allclose(values[~free], wanted[~free], rtol=tolerance, atol=tolerance)
    close = 2 * UNIT[recipe.dtype] + tolerance
    np.testing.assert_allclose(floats(written, recipe.dtype)[~free], wanted[~free], rtol=close, atol=6e-8)
    assert np.abs(values[free]).max(initial=0.0) < 0.02 * 4.5
    assert np.array_equal(written.view(np.uint8), small_steps.view(np.uint8))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("stored", ["BF16", "F64"])
def test_columns_in_many_short_runs_are_what_few_long_ones_would_be(tmp_path: Path, scaled: bool, stored: str) -> None:
    order = np.random.default_rng(2).permutation(40)
    columns = tuple(
        Run(Fill.COPY, 1, int(old), 0.25 + old % 3 if scaled else 1.0) if old % 5 else Run(Fill.ZERO, 1)
        for old in order
    )
    rows = (Run(Fill.COPY, 3, 1), Run(Fill.MEAN, 1), Run(Fill.FREE, 1), Run(Fill.COPY, 4, scale=0.5))
    held = random_tensor(3, (5, 40), stored)
    recipe = Recipe("o", (9, 40), stored, (Source("s"),), (rows, columns), shift=0.25 if scaled else 0.0)
    wanted, free = slowly(recipe, [floats(held, stored)])
    with reader_of(tmp_path, s=(stored, held)) as reader:
        assert Evaluator(recipe, reader, 0).gather is not None
        values, written = evaluate_whole(recipe, reader, 0), store_whole(recipe, reader, 0)
    np.testing.assert_allclose(values[~free], wanted[~free], rtol=1e-5, atol=1e-7)
    close = 2 * UNIT[stored] + 1e-5
    np.testing.assert_allclose(floats(written, stored)[~free], wanted[~free], rtol=close, atol=1e-7)
    if not scaled:
        kept = np.array([old % 5 != 0 for old in order])
        assert np.array_equal(written[:3, kept], held[1:4, order[kept]])


def test_what_is_only_moved_keeps_its_bits(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 0x7F80, size=(6, 10), dtype=np.uint16)  # denormals too
    recipe = Recipe("out", (9, 13), "BF16", (Source("s"),), (
        (Run(Fill.COPY, 4), Run(Fill.ZERO, 2), Run(Fill.COPY, 3, start=3)),
        (Run(Fill.ZERO, 1), Run(Fill.COPY, 10), Run(Fill.ZERO, 2)),
    ))  # fmt: skip
    with reader_of(tmp_path, s=("BF16", stored)) as reader:
        out = store_whole(recipe, reader, 0)
    assert np.array_equal(out[:4, 1:11], stored[:4])
    assert np.array_equal(out[6:, 1:11], stored[3:])
    assert not out[4:6].any()
    assert not out[:, 0].any()


def test_a_rescaled_half_precision_value_is_the_nearest_one(tmp_path: Path) -> None:
    stored = random_tensor(4, (64, 64), "BF16")
    scale = 0.8660254037844386
    recipe = Recipe("out", (64, 64), "BF16", (Source("s"),), (identity(64), identity(64)), scale=scale)
    with reader_of(tmp_path, s=("BF16", stored)) as reader:
        out = store_whole(recipe, reader, 0)
    exact = floats(stored, "BF16") * scale
    assert (np.abs(floats(out, "BF16") - exact) <= np.abs(exact) * UNIT["BF16"] * 1.0001).all()


def test_paired_noise_cancels_between_twins_and_differs_between_rows(tmp_path: Path) -> None:
    noise = 0.3
    pair = (
        Run(Fill.COPY, 5, scale=0.5, noise=noise, noise_key=1),
        Run(Fill.COPY, 5, scale=0.5, noise=-noise, noise_key=1, new=True),
    )
    rows = (Run(Fill.COPY, 40), Run(Fill.COPY, 40, new=True))
    stored = random_tensor(2, (40, 5), "F64")
    recipe = Recipe("out", (80, 10), "F64", (Source("s"),), (rows, pair))
    with reader_of(tmp_path, s=("F64", stored)) as reader:
        out = evaluate_whole(recipe, reader, 9)
    np.testing.assert_allclose(out[:, :5] + out[:, 5:], np.concatenate([stored, stored]), atol=1e-15)
    drawn = (out[:, :5] - out[:, 5:]) / 2
    root = np.sqrt((stored**2).mean())
    assert 0.8 < drawn.std() / (noise * root) < 1.2
    assert not np.allclose(drawn[:40], drawn[40:])


def test_noise_does_not_depend_on_how_runs_are_cut(tmp_path: Path) -> None:
    whole = (Run(Fill.COPY, 6, noise=0.1, noise_key=3),)
    parts = (Run(Fill.COPY, 2, noise=0.1, noise_key=3), Run(Fill.COPY, 4, start=2, noise=0.1, noise_key=3))
    held = random_tensor(2, (6, 6), "F32")
    with reader_of(tmp_path, s=("F32", held)) as reader:
        for axis in (0, 1):
            made = []
            for runs in (whole, parts):
                maps = (runs, identity(6)) if axis == 0 else (identity(6), runs)
                made.append(store_whole(Recipe("out", (6, 6), "F32", (Source("s"),), maps), reader, 1))
            assert np.array_equal(*made)
            assert not np.array_equal(made[0], held)


def test_twin_experts_in_tensors_of_their_own_get_opposite_noise(tmp_path: Path) -> None:
    held = random_tensor(2, (6, 6), "F64")
    base = Recipe("expert.0", (6, 6), "F64", (Source("s"),), (identity(6), identity(6)), noise=0.2, noise_key=7)
    twin = replace(base, name="expert.1", noise=-0.2)
    with reader_of(tmp_path, s=("F64", held)) as reader:
        one, other = evaluate_whole(base, reader, 1), evaluate_whole(twin, reader, 1)
    np.testing.assert_allclose(one + other, 2 * held, atol=1e-15)
    assert np.abs(one - held).max() > 0.01


def test_free_values_follow_seed_and_name_and_ignore_slices(tmp_path: Path) -> None:
    recipe = Recipe("a", (50, 33), "BF16", (), ((Run(Fill.FREE, 50),), (Run(Fill.FREE, 33),)), fresh_std=0.02)
    with TensorReader(()) as reader:
        first = store_whole(recipe, reader, 1)
        assert np.array_equal(first, store_whole(recipe, reader, 1, chunk_bytes=70))
        assert not np.array_equal(first, store_whole(recipe, reader, 2))
        assert not np.array_equal(first, store_whole(replace(recipe, name="b"), reader, 1))
    assert 0.018 < floats(first, "BF16").std() < 0.022
    assert len(np.unique(first, axis=0)) == 50


def test_free_places_of_gains_hold_the_neutral_value(tmp_path: Path) -> None:
    stored = random_tensor(1, (4,), "BF16")
    recipe = Recipe(
        "gain", (6,), "F32", (Source("s"),), ((Run(Fill.COPY, 4), Run(Fill.FREE, 2)),), scale=0.5, shift=-0.5,
        fresh_value=1.0,
    )  # fmt: skip
    with reader_of(tmp_path, s=("BF16", stored)) as reader:
        out = store_whole(recipe, reader, 0)
    np.testing.assert_allclose(out, [*(floats(stored, "BF16") * 0.5 - 0.5), 1.0, 1.0], rtol=1e-7)


def test_a_mean_over_rows_is_the_mean_of_the_whole_tensor(tmp_path: Path) -> None:
    stored = random_tensor(5, (3000, 4), "BF16")
    recipe = Recipe("write", (3002, 4), "F32", (Source("s"),), ((Run(Fill.COPY, 3000), Run(Fill.MEAN, 2)), identity(4)))
    with reader_of(tmp_path, s=("BF16", stored)) as reader:
        out = store_whole(recipe, reader, 0, chunk_bytes=1000)
    np.testing.assert_allclose(out[3000], floats(stored, "BF16").mean(axis=0), rtol=1e-6)
    assert np.array_equal(out[3000], out[3001])


def test_a_constant_needs_no_source() -> None:
    with TensorReader(()) as reader:
        zeros = store_whole(Recipe("o", (3, 4), "BF16", (), (identity(3), identity(4)), constant=0.0), reader, 0)
        minus = store_whole(Recipe("g", (3,), "F32", (), (identity(3),), constant=-1.0), reader, 0)
    assert not zeros.any()
    assert (minus == -1).all()


def test_large_runs_of_zero_rows_are_kept_apart_as_holes(tmp_path: Path) -> None:
    rows = HOLE_BYTES // 8
    maps = ((Run(Fill.COPY, 2), Run(Fill.ZERO, rows), Run(Fill.ZERO, 1), Run(Fill.COPY, 2)), identity(1))
    recipe = Recipe("o", (rows + 5, 1), "F64", (Source("s"),), maps)
    with reader_of(tmp_path, s=("F64", np.ones((2, 1)))) as reader:
        parts = list(Evaluator(recipe, reader, 0).slices(1 << 16))
    zero = sum(part.end - part.begin for part in parts if part.zero)
    assert zero == rows
    assert sum(part.end - part.begin for part in parts) == rows + 5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("columns", [4, 6], ids=["moved", "widened"])
def test_numbers_that_are_not_finite_are_refused_with_the_tensor(tmp_path: Path, bad: float, columns: int) -> None:
    values = np.zeros((3, 4))
    values[2, 1] = bad
    maps = (identity(3), (Run(Fill.COPY, 4), Run(Fill.ZERO, columns - 4)) if columns > 4 else identity(4))
    recipe = Recipe("o", (3, columns), "BF16", (Source("bad_one"),), maps)
    with (
        reader_of(tmp_path, bad_one=("BF16", numbers.to_stored(values, "BF16"))) as reader,
        pytest.raises(EngineError) as refused,
    ):
        store_whole(recipe, reader, 0)
    assert refused.value.code == "weights.nan"
    assert "bad_one" in refused.value.what


def test_a_cast_that_would_overflow_is_refused(tmp_path: Path) -> None:
    recipe = Recipe("o", (2, 1), "F16", (Source("s"),), (identity(2), identity(1)))
    values = np.array([[1.0], [1e6]], dtype=np.float32)
    with reader_of(tmp_path, s=("F32", values)) as reader, pytest.raises(EngineError) as refused:
        store_whole(recipe, reader, 0)
    assert refused.value.code == "surgery.overflow"


def test_integers_are_copied_and_never_computed_with(tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.int64).reshape(3, 4)
    plain = Recipe("ids", (3, 4), "I64", (Source("s"),), (identity(3), identity(4)))
    with reader_of(tmp_path, s=("I64", table)) as reader:
        assert np.array_equal(store_whole(plain, reader, 0), table)
        with pytest.raises(EngineError):
            store_whole(replace(plain, scale=2.0), reader, 0)


def test_maps_that_reach_beyond_the_source_are_refused(tmp_path: Path) -> None:
    recipe = Recipe("o", (5,), "F64", (Source("s"),), ((Run(Fill.COPY, 5, start=2),),))
    with reader_of(tmp_path, s=("F64", np.ones(6))) as reader, pytest.raises(EngineError) as refused:
        store_whole(recipe, reader, 0)
    assert refused.value.code == "surgery.shape"


def test_a_shortened_axis_is_no_plain_copy(tmp_path: Path) -> None:
    held = random_tensor(2, (6, 6), "BF16")
    recipe = Recipe("o", (4, 5), "BF16", (Source("s"),), (identity(4), identity(5)))
    with reader_of(tmp_path, s=("BF16", held)) as reader:
        assert np.array_equal(store_whole(recipe, reader, 0), held[:4, :5])


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2)])
@pytest.mark.parametrize("plain", [True, False])
def test_entries_along_the_first_axis_are_those_of_the_whole(
    tmp_path: Path, shape: tuple[int, ...], plain: bool
) -> None:
    maps = tuple(identity(extent) for extent in shape)
    if not plain:
        maps = ((Run(Fill.COPY, 5, start=2), Run(Fill.FREE, 2)), *maps[1:])
    recipe = Recipe("o", shape, "F32", (Source("s"),), maps, fresh_std=0.02)
    with reader_of(tmp_path, s=("BF16", random_tensor(2, shape, "BF16"))) as reader:
        part = Evaluator(recipe, reader, 3).leading(2, 6)
        assert np.array_equal(part, evaluate_whole(recipe, reader, 3)[2:6])
