"""What one adapter does to one tensor of the base, ready to be mixed: rows on request, factors where it is of low rank.

Owns the order: a whole copy takes the base's place, then single rows, then the low-rank update is added. Must not know
several adapters. Everything is as the base stores it, (rows, columns); a vector is one row.

Rows that only the adapter's copy has (a grown vocabulary) are no change: there is nothing to compare them with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.adapters.folder import Adapted, Rows
from engine.adapters.kinds import Start
from engine.adapters.tensors import read_float, read_rows
from engine.adapters.update import Update, bias_of, merged_weight, update_of
from engine.models.headers import TensorHeader
from engine.surgery.numbers import Array

_HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """Headers only."""

    adapted: Adapted | None = None
    whole: TensorHeader | None = None
    rows: Rows | None = None
    bias: Adapted | None = None
    """For a bias: what the update of its module adds to it."""

    @property
    def is_low_rank(self) -> bool:
        """Whether it is factors and nothing else."""
        return self.adapted is not None and self.whole is None and self.rows is None

    @property
    def is_rows(self) -> bool:
        """Whether it is single rows and nothing else."""
        return self.rows is not None and self.whole is None and self.adapted is None

    @property
    def needs_base(self) -> bool:
        """Whether the base's numbers are needed to say what it does."""
        if self.whole is not None or self.rows is not None:
            return True
        one = self.adapted
        return one is not None and (one.magnitude is not None or one.start is not Start.NONE)

    @property
    def rank(self) -> int:
        """Of the update: PiSSA and OLoRA take as much out as they add."""
        if self.adapted is None:
            return 0
        return self.adapted.rank * (1 if self.adapted.start is Start.NONE else 2)

    @property
    def mark(self) -> int:
        """Of what it does: the same wherever the adapter stands among others, and under whatever name."""
        hasher = hashlib.sha256()
        for tensor in self._tensors():
            with tensor.file.open("rb") as file:
                file.seek(tensor.offset_bytes)
                left = tensor.data_bytes
                while left > 0 and (content := file.read(min(left, _HASH_BYTES))):
                    hasher.update(content)
                    left -= len(content)
        return int.from_bytes(hasher.digest()[:8])

    def _tensors(self) -> Iterator[TensorHeader]:
        if self.adapted is not None:
            yield from (self.adapted.a, self.adapted.b)
            if self.adapted.magnitude is not None:
                yield self.adapted.magnitude
        if self.whole is not None:
            yield self.whole
        if self.rows is not None:
            yield self.rows.tensor
        if self.bias is not None and self.bias.bias is not None:
            yield self.bias.bias

    def joined(self, other: Change) -> Change:
        """Both together."""
        return Change(
            self.adapted or other.adapted, self.whole or other.whole, self.rows or other.rows, self.bias or other.bias
        )


@dataclass(frozen=True, slots=True)
class Factors:
    """An update of low rank, and what DoRA does beside it: left right + gain x base. As stored."""

    left: Array  # (rows, R)
    right: Array  # (R, columns)
    gain: Array | None = None  # (rows, 1), or (1, columns) where the base stores the matrix transposed
    base: Array | None = None  # (rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.left.shape[0], self.right.shape[1]

    def rows(self, begin: int, end: int) -> Array:
        """Some rows of the update."""
        found: Array = self.left[begin:end] @ self.right
        if self.gain is not None and self.base is not None:
            gain = self.gain[begin:end] if self.gain.shape[0] != 1 else self.gain
            found += gain * self.base[begin:end]
        return found


@dataclass(frozen=True, slots=True)
class Copied:
    """A whole copy of the base's tensor, perhaps with rows replaced and an update on top."""

    change: Change
    base: TensorHeader
    merged: Array | None = None
    """The result, where an update is on top."""
    replaced: Array | None = None
    """The values of `change.rows`, where nothing is on top."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns, without rows that the base or the copy lacks."""
        rows, columns = matrix_shape(self.base.shape)
        return (rows if self.change.whole is None else min(rows, matrix_shape(self.change.whole.shape)[0])), columns

    def rows(self, begin: int, end: int) -> Array:
        """Some rows of the difference."""
        own = _matrix(read_rows(self.base, *_span(self.base, begin, end)))
        if self.merged is not None:
            return self.merged[begin:end] - own
        values = own.copy()
        if self.change.whole is not None:
            values = _matrix(read_rows(self.change.whole, *_span(self.change.whole, begin, end)))
        if self.change.rows is not None and self.replaced is not None:
            values = with_rows(self.change.rows, self.replaced, values, begin, end)
        if self.change.bias is not None:
            added = bias_of(self.change.bias)
            values = values + added if added is not None else values
        return values - own


def load_factors(change: Change, weight: Array | None) -> Factors:
    """`weight`: the base's, as stored, float32; needed where `change.needs_base`."""
    assert change.adapted is not None
    found = update_of(change.adapted, weight)
    return _as_stored(found, change.adapted.transposed, weight)


def load_change(change: Change, base: TensorHeader, weight: Array | None) -> Factors | Copied:
    """Ready to give rows. `weight`: see `load_factors`."""
    if change.is_low_rank:
        return load_factors(change, weight)
    held = read_float(change.rows.tensor) if change.rows is not None else None
    if change.adapted is None:
        return Copied(change, base, replaced=held)
    values = read_float(change.whole) if change.whole is not None else read_float(base)
    if change.rows is not None and held is not None:
        values = with_rows(change.rows, held, values, 0, len(values))
    return Copied(change, base, merged_weight(change.adapted, values))


def with_rows(rows: Rows, held: Array, values: Array, begin: int, end: int) -> Array:
    """`values` (rows from `begin` on) with those that the adapter replaces by the rows of `held`, in place."""
    for number, row in enumerate(rows.indices):
        if begin <= row < end:
            values[row - begin] = held[number]
    return values


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A vector is one row."""
    return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0] if shape else 1)


def _matrix(values: Array) -> Array:
    return values if values.ndim == 2 else values.reshape(1, -1)


def _span(tensor: TensorHeader, begin: int, end: int) -> tuple[int, int]:
    """The entries that rows `begin` to `end` are; a vector's one row is all of it."""
    return (begin, end) if len(tensor.shape) == 2 else (0, tensor.shape[0] if tensor.shape else 1)


def _as_stored(update: Update, transposed: bool, weight: Array | None) -> Factors:
    if not transposed:
        gain = update.gain[:, None] if update.gain is not None else None
        return Factors(update.left, update.right, gain, weight if gain is not None else None)
    gain = update.gain[None, :] if update.gain is not None else None
    return Factors(np.ascontiguousarray(update.right.T), update.left.T, gain, weight if gain is not None else None)
