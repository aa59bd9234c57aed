"""Methods of mixing against the papers' formulas, written here a second time, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.adapters import factors, methods
from engine.adapters.factors import balanced, leading, product_norm, truncated
from engine.adapters.methods import InMemory, combine, largest_magnitude
from engine.adapters.recipe import Recipe, Share, weights_of
from engine.errors import EngineError
from engine.jobs.spec_mix import MixMethod, Signs

NUMBERS = st.floats(-8, 8, width=32).map(lambda value: round(value, 3))
MATRICES = hnp.arrays(np.float32, (3, 5), elements=NUMBERS)
SEVERAL = st.lists(st.tuples(MATRICES, st.sampled_from([1.0, 0.5, -1.0, 2.0])), min_size=1, max_size=4)
DENSITIES = st.sampled_from([0.1, 0.34, 0.5, 0.8, 1.0])


def kept(update: Any, density: float) -> list[float]:
    """Trim: all but the `density` largest magnitudes become 0; equal ones stay together."""
    flat = [float(value) for value in update.flat]
    count = max(1, int(density * len(flat)))
    least = sorted((abs(value) for value in flat), reverse=True)[count - 1]
    return [value if abs(value) >= least else 0.0 for value in flat]


def textbook_ties(updates: Sequence[Any], weights: Sequence[float], density: float, signs: Signs) -> list[float]:
    """TIES (arXiv 2306.01708, algorithm 1): trim, elect, merge those that agree; one entry after the other."""
    trimmed = [kept(update, density) for update in updates]
    merged: list[float] = []
    for values in zip(*trimmed, strict=True):
        weighed = [float(np.float32(w) * np.float32(v)) for w, v in zip(weights, values, strict=True)]
        total = float(np.sum(np.array(weighed, np.float32)))
        votes = sum((v > 0) - (v < 0) for v in weighed)
        by = votes if signs is Signs.FREQUENCY and votes else total
        agreeing = [v for v in weighed if v * by > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(SEVERAL, DENSITIES, st.sampled_from(list(Signs)))
@settings(max_examples=60, deadline=None)
def test_ties_is_the_papers(several: list[tuple[Any, float]], density: float, signs: Signs) -> None:
    updates, weights = [one for one, _ in several], [weight for _, weight in several]
    # The sign of a sum that rounding decides is nobody's: such entries are left out.
    sums = np.abs(sum(w * np.float64(np.reshape(kept(u, density), (3, 5))) for u, w in several))
    decided = ((sums == 0) | (sums > 1e-4)).reshape(-1)
    recipe = Recipe(MixMethod.TIES, density=density, signs=signs)
    found = combine([InMemory(update) for update in updates], weights, recipe, "w").reshape(-1)
    wanted = np.array(textbook_ties(updates, weights, density, signs))
    np.testing.assert_allclose(found[decided], wanted[decided], rtol=1e-5, atol=1e-5)


@given(SEVERAL, DENSITIES)
@settings(max_examples=30, deadline=None)
def test_magnitude_keeps_the_largest_and_adds(several: list[tuple[Any, float]], density: float) -> None:
    recipe = Recipe(MixMethod.MAGNITUDE, density=density)
    found = combine([InMemory(one) for one, _ in several], [weight for _, weight in several], recipe, "w")
    wanted = sum(weight * np.array(kept(one, density)) for one, weight in several)
    np.testing.assert_allclose(found.reshape(-1), wanted, rtol=1e-5, atol=1e-5)


def test_dare_drops_at_random_and_rescales(monkeypatch: pytest.MonkeyPatch) -> None:
    update = np.random.default_rng(0).standard_normal((400, 100)).astype(np.float32)
    recipe = Recipe(MixMethod.DARE, density=0.3, seed=5)
    found = combine([InMemory(update)], [2.0], recipe, "w")
    survived = found != 0
    assert abs(survived.mean() - 0.3) < 0.01
    np.testing.assert_allclose(found[survived], 2 * update[survived] / 0.3, rtol=1e-6)
    assert abs((found / 2 - update).mean()) < 0.02, "what is expected of it is the update"

    monkeypatch.setattr(methods, "CHUNK_BYTES", 7 * 400)
    np.testing.assert_array_equal(combine([InMemory(update)], [2.0], recipe, "w"), found)
    other = combine([InMemory(update)], [2.0], Recipe(MixMethod.DARE, density=0.3, seed=6), "w")
    assert ((other != 0) != survived).any()
    assert ((combine([InMemory(update)], [2.0], recipe, "v") != 0) != survived).any(), "every tensor draws its own"


def test_dare_ties_drops_by_chance_and_then_elects() -> None:
    draws = np.random.default_rng(1)
    one, other = (draws.standard_normal((50, 40)).astype(np.float32) for _ in range(2))
    recipe = Recipe(MixMethod.DARE_TIES, density=0.6, seed=3)
    dropped = Recipe(MixMethod.DARE, density=0.6, seed=3)
    nothing = InMemory(np.zeros_like(one))
    first = combine([InMemory(one), nothing], [1.0, 1.0], dropped, "w")
    second = combine([nothing, InMemory(other)], [1.0, 1.0], dropped, "w")
    wanted = np.array(textbook_ties([first, second], [1.0, 1.0], 1.0, Signs.TOTAL)).reshape(one.shape)
    found = combine([InMemory(one), InMemory(other)], [1.0, 1.0], recipe, "w")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_negative_weight_votes_against_what_its_adapter_learnt() -> None:
    one, other = np.full((1, 1), 3.0, np.float32), np.full((1, 1), 2.0, np.float32)
    recipe = Recipe(MixMethod.TIES, density=1.0)
    assert combine([InMemory(one), InMemory(other)], [1.0, -1.0], recipe, "w").item() == 3.0
    assert combine([InMemory(one), InMemory(other)], [1.0, -2.0], recipe, "w").item() == -4.0


@given(MATRICES, st.sampled_from([m for m in MixMethod if m is not MixMethod.SVD]))
@settings(max_examples=40, deadline=None)
def test_one_adapter_that_keeps_everything_is_itself(update: Any, method: MixMethod) -> None:
    found = combine([InMemory(update)], [1.0], Recipe(method, density=1.0), "w")
    np.testing.assert_array_equal(found, update)


@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-(2.0**90), 2.0**90, width=32)), st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_the_threshold_is_exactly_the_nth_largest(update: Any, count: int) -> None:
    wanted = np.sort(np.abs(update).reshape(-1))[::-1][count - 1]
    assert largest_magnitude(InMemory(update), count) == float(wanted)


def test_rows_that_mislead_about_the_threshold_do_no_harm() -> None:
    update = np.random.default_rng(2).standard_normal((500, 40)).astype(np.float32)
    update[1::2] *= 1000  # the rows that are looked at first are none of these
    update[np.unique(np.linspace(0, 499, 64).astype(int))] = 1e-3
    ordered = np.sort(np.abs(update).reshape(-1))[::-1]
    for count in (1, 40, 9000, 15_000, 20_000):
        assert largest_magnitude(InMemory(update), count) == float(ordered[count - 1])


@pytest.mark.parametrize("share", [0.001, 1.0])
def test_many_equal_magnitudes_are_never_held(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(methods, "_LEAST_HELD", 1 << 10)
    update = np.zeros((512, 256), np.float32)
    where = np.random.default_rng(0).random(update.shape) < share
    update[where] = np.random.default_rng(1).choice(np.float32([0.5, -0.5, 2.0]), int(where.sum()))
    joined, held = np.concatenate, []

    def counted(parts: list[Any]) -> Any:
        held.append(sum(part.size for part in parts))
        return joined(parts)

    monkeypatch.setattr(np, "concatenate", counted)
    for count in (1, 50, 60_000, update.size):
        wanted = np.sort(np.abs(update).reshape(-1))[::-1][count - 1]
        assert largest_magnitude(InMemory(update), count) == float(wanted)
    assert max(held) <= update.size // 8, "the sample of rows, and a tenth at most"


def test_what_is_dropped_goes_by_the_mark_and_not_by_the_place() -> None:
    one, other = np.ones((64, 64), np.float32), np.full((64, 64), 3, np.float32)
    recipe = Recipe(MixMethod.DARE, density=0.5)
    sources, turned = (InMemory(one), InMemory(other)), (InMemory(other), InMemory(one))
    first = combine(sources, [1.0, 1.0], recipe, "w", [1 << 60, 7])
    np.testing.assert_array_equal(combine(turned, [1.0, 1.0], recipe, "w", [7, 1 << 60]), first)
    assert (combine(sources, [1.0, 1.0], recipe, "w", [8, 7]) != first).any()


def test_linear_divides_by_the_sum_of_weights() -> None:
    shares = [Share(None, 3.0), Share(None, 1.0)]  # type: ignore[arg-type]
    assert weights_of(shares, Recipe(MixMethod.LINEAR)) == (0.75, 0.25)
    opposite = [Share(None, 1.0), Share(None, -1.0)]  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="their sum"):
        weights_of(opposite, Recipe(MixMethod.LINEAR))
    with pytest.raises(EngineError, match="none is given"):
        weights_of(shares, Recipe(MixMethod.SVD))


# ── linear algebra ───────────────────────────────────────────────────────────────────────────────────────────────
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_product_is_cut_as_its_singular_values_say(rank: int, rows: int, columns: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    left, right = draws.standard_normal((rows, rank)), draws.standard_normal((rank, columns))
    cut = min(rank, rows, columns, 2)
    found_left, found_right = truncated(left.astype(np.float32), right.astype(np.float32), cut)
    u, values, vt = np.linalg.svd(left @ right)
    wanted = (u[:, :cut] * values[:cut]) @ vt[:cut]
    np.testing.assert_allclose(found_left @ found_right, wanted, atol=2e-4)
    assert product_norm(left, right) == pytest.approx(float(np.linalg.norm(left @ right)), rel=1e-9)


@pytest.mark.parametrize("shape", [(400, 500), (500, 400)])
def test_large_matrices_give_the_same_directions_without_being_decomposed(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "EXACT_UP_TO", 100)
    draws = np.random.default_rng(3)
    u = np.linalg.qr(draws.standard_normal((shape[0], 60)))[0]
    v = np.linalg.qr(draws.standard_normal((shape[1], 60)))[0]
    values = 10 * 0.9 ** np.arange(60)
    noise = 1e-3 * draws.standard_normal(shape)
    matrix = ((u * values) @ v.T + noise).astype(np.float32)
    whole_u, whole_values, whole_vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    wanted = (whole_u[:, :8] * whole_values[:8]) @ whole_vt[:8]
    with monkeypatch.context() as patched:  # only the projections on the basis may be decomposed
        decompose = np.linalg.svd
        patched.setattr(
            np.linalg, "svd", lambda a, **k: decompose(a, **k) if min(a.shape) < 400 else pytest.fail("whole")
        )
        left, right = balanced(*leading(matrix, 8))
    assert np.linalg.norm(left @ right - wanted) / np.linalg.norm(wanted) < 1e-5
    rough_left, rough_right = balanced(*leading(matrix, 8, precise=False))
    best = np.linalg.norm(matrix - wanted)
    assert np.linalg.norm(matrix - rough_left @ rough_right) < 1.02 * best


def test_a_flat_spectrum_is_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "EXACT_UP_TO", 100)
    matrix = np.linalg.qr(np.random.default_rng(4).standard_normal((300, 300)))[0].astype(np.float32)
    u, values, vt = leading(matrix, 4)
    assert np.linalg.norm((u * values) @ vt) == pytest.approx(2.0, rel=1e-4)
