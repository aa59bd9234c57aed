"""One tensor of a mix computed, and how far it is from the true weighted sum.

Owns the ways: concatenated factors where that is exact, singular values of factors or of the whole update where it is
cut to a rank, sums of differences for copies and rows. Must not know files of the result. O outputs, I inputs, R rank.

An exact sum with DoRA adapters in it is again a DoRA adapter. With updates diag(g) W + L R per adapter, h = 1 + sum of
w g, and L, R their concatenated factors, the sum is W' = diag(h) W + L R. peft computes diag(m / |W + B A|) (W + B A),
norms of rows; B = diag(1 / h) L, A = R, m = sign(h) |W'| give the same (own derivation).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.adapters.changes import Change, Factors, load_change, load_factors
from engine.adapters.factors import balanced, leading, product_norm, truncated
from engine.adapters.methods import InMemory, chunks, combine, combined_rows
from engine.adapters.mix_plan import Blend
from engine.adapters.recipe import Recipe
from engine.adapters.tensors import read_float, read_rows
from engine.adapters.update import Update, bias_of, row_norms, update_of
from engine.errors import EngineError
from engine.jobs.mix_report import LayerError
from engine.surgery.numbers import Array

_LEAST_ROW_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Mixed:
    """Factors of the result, for scale 1, and DoRA's magnitudes where it is a DoRA adapter."""

    left: Array  # (O, R)
    right: Array  # (R, I)
    magnitude: Array | None = None  # (O,)


@dataclass(slots=True)
class Squares:
    """What relative errors are made of, added up."""

    difference: float = 0.0
    true: float = 0.0
    lost: float = 0.0
    """What a rank cuts off the matrices that a method gives."""
    given: float = 0.0
    """These matrices."""

    def add(self, difference: Array, true: Array) -> None:
        """Some numbers of both."""
        self.difference += _squared(difference)
        self.true += _squared(true)

    def add_cut(self, lost: Array, given: Array) -> None:
        """Some numbers of both."""
        self.lost += _squared(lost)
        self.given += _squared(given)

    def join(self, other: Squares) -> None:
        """Those of another tensor."""
        self.difference += other.difference
        self.true += other.true
        self.lost += other.lost
        self.given += other.given

    @property
    def relative(self) -> float:
        """Frobenius norm of the difference over that of the true sum; 0 where that is 0."""
        return math.sqrt(self.difference / self.true) if self.true > 0 else 0.0

    @property
    def cut(self) -> float | None:
        """Frobenius norm of what is lost over that of what was given; None where no matrix was cut."""
        return math.sqrt(self.lost / self.given) if self.given > 0 else None

    def error(self, module: str, rank: int) -> LayerError:
        """As a report has it."""
        return LayerError(module=module, rank=rank, relative_error=self.relative, update_norm=math.sqrt(self.true))


def _squared(values: Array) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))


def mix_factors(blend: Blend, weights: Sequence[float], recipe: Recipe, *, dora: bool) -> tuple[Mixed, Squares]:
    """The result's factors of one matrix. Raises EngineError `adapter.mix_form` where DoRA would have to turn a row of
    the base into nothing."""
    changes = [change for _, change in blend.changes]
    needs_base = dora or any(change.needs_base for change in changes)
    weight = read_float(blend.base) if needs_base and blend.base is not None else None
    if recipe.is_sum:
        updates = [update_of(change.adapted, weight) for change in changes if change.adapted is not None]
        inner = weight.T if weight is not None and blend.transposed else weight
        total = _weighted(updates, weights)
        if recipe.rank == 0:
            return _exact(blend, total, inner, dora=dora)
        if total.gain is None:
            left, right = truncated(total.left, total.right, blend.rank)
            return Mixed(left, right), _factor_squares(total, left, right)
    return _by_values(blend, [load_factors(change, weight) for change in changes], weights, recipe)


def _weighted(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """The weighted sum, factors beside each other."""
    left = np.concatenate([np.float32(w) * one.left for w, one in zip(weights, updates, strict=True)], axis=1)
    right = np.concatenate([one.right for one in updates], axis=0)
    gains = [np.float32(w) * one.gain for w, one in zip(weights, updates, strict=True) if one.gain is not None]
    gain: Array | None = sum(gains[1:], start=gains[0]) if gains else None
    return Update(left, right, gain)


def _exact(blend: Blend, total: Update, weight: Array | None, *, dora: bool) -> tuple[Mixed, Squares]:
    if not dora:
        left, right = _fitted(total.left, total.right)
        return Mixed(left, right), _factor_squares(total, left, right)
    assert weight is not None
    kept = np.ones(weight.shape[0]) if total.gain is None else 1 + total.gain.astype(np.float64)
    gone = np.abs(kept) < _LEAST_ROW_SCALE
    if total.left[gone].any():
        raise EngineError(
            "adapter.mix_form",
            f"With these weights rows of '{blend.module}' would become nearly nothing, which no adapter can say.",
            cause="Weights far from 1 take more away from rows than DoRA's magnitudes left of them.",
            next_step="Use smaller weights, make a model of it with --merged, or cut it to a rank with --rank.",
        )
    magnitude = row_norms(weight, total.left, total.right, kept) * np.sign(kept)
    magnitude[gone] = 0
    divided = (total.left / np.where(gone, 1.0, kept)[:, None]).astype(np.float32)
    left, right = _fitted(divided, total.right)
    mixed = Mixed(left, right, magnitude.astype(np.float32))
    return mixed, _dora_squares(total, mixed, weight)


def _fitted(left: Array, right: Array) -> tuple[Array, Array]:
    """The same product with a rank that is at most the smaller side."""
    rows, columns = left.shape[0], right.shape[1]
    if left.shape[1] <= min(rows, columns):
        return left, right
    product = left @ right
    unit = np.eye(min(rows, columns), dtype=np.float32)
    return (unit, product) if rows <= columns else (product, unit)


def _factor_squares(total: Update, left: Array, right: Array) -> Squares:
    true = product_norm(total.left, total.right) ** 2
    if left is total.left and right is total.right:
        return Squares(0.0, true)
    difference = product_norm(np.concatenate((total.left, -left), axis=1), np.concatenate((total.right, right), axis=0))
    return Squares(difference**2, true)


def _dora_squares(total: Update, mixed: Mixed, weight: Array) -> Squares:
    """What peft computes from the result, against the sum."""
    assert mixed.magnitude is not None
    norms = row_norms(weight, mixed.left, mixed.right)
    factor = np.divide(mixed.magnitude, norms, out=np.ones_like(norms), where=norms > 0)
    gain = factor - 1 - (total.gain if total.gain is not None else 0)
    left = mixed.left * factor[:, None].astype(np.float32)
    squares = Squares()
    for begin, end in chunks(weight.shape):
        true = total.left[begin:end] @ total.right
        difference = left[begin:end] @ mixed.right - true
        difference += gain[begin:end, None].astype(np.float32) * weight[begin:end]
        if total.gain is not None:
            true += total.gain[begin:end, None] * weight[begin:end]
        squares.add(difference, true)
    return squares


def _by_values(
    blend: Blend, sources: Sequence[Factors], weights: Sequence[float], recipe: Recipe
) -> tuple[Mixed, Squares]:
    """Through the update as a whole matrix, cut to a rank."""
    update = combine(sources, weights, recipe, _key(blend), _marks(blend, recipe))
    left, right = balanced(*leading(update, blend.rank, precise=False))
    squares = Squares()
    for begin, end in chunks(blend.shape):
        true, found, given = _true_rows(sources, weights, begin, end), left[begin:end] @ right, update[begin:end]
        squares.add(found - true, true)
        squares.add_cut(found - given, given)
    del update, given
    if not blend.transposed:
        return Mixed(left, right), squares
    return Mixed(np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)), squares


def _true_rows(sources: Sequence[InMemory | Factors], weights: Sequence[float], begin: int, end: int) -> Array:
    total = np.float32(weights[0]) * sources[0].rows(begin, end)
    for weight, source in zip(weights[1:], sources[1:], strict=True):
        total += np.float32(weight) * source.rows(begin, end)
    return total


def _key(blend: Blend) -> str:
    """The base's own name of the tensor, so that a merged model drops the same numbers at random."""
    return blend.base.name if blend.base is not None else blend.name


def _marks(blend: Blend, recipe: Recipe) -> tuple[int, ...]:
    """What tells the adapters apart where numbers are dropped at random."""
    return tuple(change.mark for _, change in blend.changes) if recipe.draws else ()


def mix_whole(blend: Blend, weights: Sequence[float], recipe: Recipe) -> Iterator[tuple[Array, Array, Array]]:
    """Some rows at a time: (the result's, the difference to base plus the true sum, the true sum), float32. Rows that
    only an adapter has come last, as they are."""
    assert blend.base is not None
    if not blend.changes:
        values = _rows_of(blend, 0, blend.rows_and_columns[0])
        yield values, np.zeros_like(values), np.zeros_like(values)
        return
    changes = [change for _, change in blend.changes]
    needs_base = any(change.needs_base and change.adapted is not None for change in changes)
    weight = read_float(blend.base) if needs_base else None
    sources = [load_change(change, blend.base, weight) for change in changes]
    for begin, rows in combined_rows(sources, weights, recipe, _key(blend), _marks(blend, recipe)):
        own = _rows_of(blend, begin, begin + len(rows))
        true = np.float32(weights[0]) * sources[0].rows(begin, begin + len(rows))
        for share, source in zip(weights[1:], sources[1:], strict=True):
            true += np.float32(share) * source.rows(begin, begin + len(rows))
        values = own + rows
        yield values, (values - own) - true, true
    yield from _grown(blend, changes)


def _rows_of(blend: Blend, begin: int, end: int) -> Array:
    assert blend.base is not None
    if len(blend.base.shape) == 2:
        return read_rows(blend.base, begin, end)
    return read_float(blend.base).reshape(1, -1)


def _grown(blend: Blend, changes: Sequence[Change]) -> Iterator[tuple[Array, Array, Array]]:
    assert blend.base is not None
    for change in changes:
        if change.whole is not None and change.whole.shape[0] > blend.base.shape[0] and len(blend.shape) == 2:
            values = read_rows(change.whole, blend.base.shape[0], change.whole.shape[0])
            nothing = np.zeros_like(values)
            yield values, nothing, nothing


def mix_rows(blend: Blend, weights: Sequence[float], recipe: Recipe) -> tuple[Array, Squares]:
    """Values of the rows in `blend.indices`, (n, D) float32."""
    assert blend.base is not None
    places = {row: place for place, row in enumerate(blend.indices)}
    own = np.concatenate([read_rows(blend.base, row, row + 1) for row in places])
    sources = []
    for _, change in blend.changes:
        assert change.rows is not None
        update = np.zeros_like(own)
        held = read_float(change.rows.tensor)
        for number, row in enumerate(change.rows.indices):
            update[places[row]] = held[number] - own[places[row]]
        sources.append(InMemory(update))
    mixed = own + combine(sources, weights, recipe, _key(blend), _marks(blend, recipe))
    true = _true_rows(sources, weights, 0, len(own))
    squares = Squares()
    squares.add((mixed - own) - true, true)
    return mixed, squares


def mix_biases(blend: Blend, weights: Sequence[float], recipe: Recipe) -> tuple[Array, Squares]:
    """The result's own bias of a module's update, (O,) float32."""
    found = [bias_of(change.bias) for _, change in blend.changes if change.bias is not None]
    sources = [InMemory(values.reshape(1, -1)) for values in found if values is not None]
    mixed = combine(sources, weights, recipe, _key(blend), _marks(blend, recipe))
    true = _true_rows(sources, weights, 0, 1)
    squares = Squares()
    squares.add(mixed - true, true)
    return mixed.reshape(-1), squares
