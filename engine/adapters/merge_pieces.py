"""Changed tensors computed, a few rows at a time where the update is a low-rank one, a whole matrix where it is not.

Owns the arithmetic of a merge: float32 (float64 for what is stored so), rounded once to the stored type. Must not know
plans or files of the result.

    r rank    O, I rows and columns of a matrix as it is stored
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from engine.adapters.changes import Change
from engine.adapters.folder import Adapted
from engine.adapters.merge_plan import Part, Target
from engine.adapters.mix_compute import mix_whole
from engine.adapters.mix_plan import Blend, Form
from engine.adapters.recipe import EXACT, Recipe
from engine.adapters.update import low_rank, merged_weight
from engine.errors import EngineError, ExitCode
from engine.models.headers import TensorHeader
from engine.surgery import numbers
from engine.surgery.numbers import Array
from engine.surgery.pipeline import BUFFER_BYTES
from engine.surgery.reader import TensorReader


@dataclass(frozen=True, slots=True)
class Pieces:
    """Computes targets; `reader` has the base's files and the adapters'."""

    reader: TensorReader
    mixing: Recipe = EXACT
    """How several updates become one."""

    def of(self, target: Target) -> Iterator[Array]:
        """The target's rows in order, stored as its type, about `BUFFER_BYTES` at a time. Raises EngineError
        `merge.overflow`, `weights.nan`."""
        if not self.mixing.is_sum:
            yield from self._mixed(target)
            return
        work = np.dtype(np.float64 if target.base.dtype == "F64" else np.float32)
        ways = [_way(part) for part in target.parts]
        if len(target.shape) < 2 or any(way is None for way in ways):
            yield from self._at_once(target, work)
            return
        factors = [way for way in ways if way is not None]
        columns = prod(target.shape[1:])
        step = max(1, BUFFER_BYTES // (columns * numbers.storage(target.dtype).itemsize))
        known = min(target.shape[0], target.base.shape[0])
        for begin in range(0, known, step):
            yield _stored(self._rows(target, factors, begin, min(begin + step, known), work), target)
        added = replace(target, parts=tuple(replace(part, weight=1.0) for part in target.parts))
        for begin in range(known, target.shape[0], step):  # there is nothing of the base to weigh them against
            yield _stored(self._rows(added, factors, begin, min(begin + step, target.shape[0]), work), target)

    def _mixed(self, target: Target) -> Iterator[Array]:
        """Rows to which something else than the weighted sum is added."""
        changes = tuple(enumerate(Change(part.adapted, part.whole, part.rows, part.bias) for part in target.parts))
        blend = Blend(target.name, Form.WHOLE, changes, target.base, shape=target.shape)
        for values, _, _ in mix_whole(blend, [part.weight for part in target.parts], self.mixing):
            yield _stored(values.reshape(-1, *target.shape[1:]), target)

    def _rows(self, target: Target, factors: list[_Factors], begin: int, end: int, work: np.dtype[Any]) -> Array:
        """Rows of a matrix whose updates are all of low rank, (end - begin, I)."""
        base = None if _is_whole(target) else self._read(target.base, begin, end, work)
        total = base.copy() if base is not None and len(target.parts) > 1 else base
        for part, own in zip(target.parts, factors, strict=True):
            values = base if part.whole is None else self._read(part.whole, begin, end, work)
            assert values is not None
            if part.rows is not None:
                values = self._with_rows(part, values.copy(), begin, end)
            if len(target.parts) == 1 and part.weight == 1.0:
                return own.added(values, begin, end)
            if part.whole is not None or part.rows is not None:
                assert total is not None
                assert base is not None
                total += work.type(part.weight) * (values - base)
            total = own.added(total, begin, end, part.weight) if total is not None else None
        assert total is not None
        return total

    def _at_once(self, target: Target, work: np.dtype[Any]) -> Iterator[Array]:
        """Vectors, and matrices whose rows depend on each other (DoRA's columns)."""
        shape = target.shape
        known = min(shape[0], target.base.shape[0])
        base = None if _is_whole(target) else self._read(target.base, 0, known, work)
        total: Array | None = None
        for part in target.parts:
            changed = self._changed(part, base, shape, work)
            if len(target.parts) == 1 and part.weight == 1.0:
                total = changed
                break
            assert base is not None
            if total is None:
                total = np.concatenate((base, changed[known:])) if known < shape[0] else base.copy()
            changed[:known] -= base
            changed[:known] *= work.type(part.weight)
            total[:known] += changed[:known]
        assert total is not None
        columns = prod(shape[1:])
        step = max(1, BUFFER_BYTES // (max(columns, 1) * numbers.storage(target.dtype).itemsize))
        for begin in range(0, shape[0], step):
            yield _stored(total[begin : begin + step], target)

    def _changed(self, part: Part, base: Array | None, shape: tuple[int, ...], work: np.dtype[Any]) -> Array:
        """F(W), whole; a new array."""
        values = base.copy() if part.whole is None and base is not None else None
        if part.whole is not None:
            values = self._read(part.whole, 0, shape[0], work)
        assert values is not None
        if part.rows is not None:
            values = self._with_rows(part, values, 0, shape[0])
        if part.bias is not None and part.bias.bias is not None:
            values += work.type(part.bias.scale) * self._read(part.bias.bias, 0, shape[0], work)
        if part.adapted is not None:
            values = merged_weight(part.adapted, values.astype(np.float32, copy=False)).astype(work, copy=False)
        return values

    def _with_rows(self, part: Part, values: Array, begin: int, end: int) -> Array:
        """Single rows replaced."""
        assert part.rows is not None
        held = self._read(part.rows.tensor, 0, part.rows.tensor.shape[0], values.dtype)
        for number, row in enumerate(part.rows.indices):
            if begin <= row < end:
                values[row - begin] = held[number]
        return values

    def _read(self, tensor: TensorHeader, begin: int, end: int, work: np.dtype[Any]) -> Array:
        columns = prod(tensor.shape[1:])
        raw = np.empty((end - begin, columns), dtype=numbers.storage(tensor.dtype))
        self.reader.read(tensor, begin * columns, raw)
        return numbers.to_float(raw, tensor.dtype, work).reshape(end - begin, *tensor.shape[1:])


@dataclass(frozen=True, slots=True)
class _Factors:
    """An update as left (O, r) times right (r, I), as the matrix is stored; empty where there is none."""

    left: Array | None = None
    right: Array | None = None

    def added(self, values: Array, begin: int, end: int, weight: float = 1.0) -> Array:
        """`values` with `weight` times the rows of the update."""
        if self.left is None or self.right is None:
            return values
        left = self.left[begin:end]
        update = (left if weight == 1.0 else left * left.dtype.type(weight)) @ self.right
        update += values
        return update.astype(values.dtype, copy=False)


def _way(part: Part) -> _Factors | None:
    """The update's factors; None where the whole matrix is needed."""
    if part.bias is not None:
        return None
    if part.adapted is None:
        return _Factors()
    return _factors(part.adapted)


def _factors(adapted: Adapted) -> _Factors | None:
    found = low_rank(adapted)
    if found is None:
        return None
    left, right = found
    if adapted.transposed:
        return _Factors(np.ascontiguousarray(right.T), np.ascontiguousarray(left.T))
    return _Factors(left, right)


def _is_whole(target: Target) -> bool:
    """Whether nothing of the base is left in it."""
    return len(target.parts) == 1 and target.parts[0].weight == 1.0 and target.parts[0].whole is not None


def _stored(values: Array, target: Target) -> Array:
    stored = np.ascontiguousarray(numbers.to_stored(values, target.dtype))
    found = numbers.find_not_finite(stored, target.dtype)
    if found:
        raise EngineError(
            "merge.overflow",
            f"Merged, '{target.name}' would hold a number that is {found} as {target.dtype}.",
            cause="The update is very large, or the type has a narrower range than the base's.",
            next_step="Choose --dtype bfloat16 or float32.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return stored
