"""What a recipe needs to know of a whole source tensor: means over rows and its root mean square.

Owns the streamed passes and keeps their results for one recipe. Must not know recipes. Sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

import numpy as np

from engine.models.headers import TensorHeader
from engine.surgery import numbers
from engine.surgery.numbers import Array
from engine.surgery.reader import TensorReader

_PASS_BYTES = 4 << 20
_DOUBLE = np.dtype(np.float64)


class Statistics:
    """Of the sources of one recipe."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._means: dict[tuple[str, int], Array] = {}
        self._roots: dict[str, float] = {}

    def mean_row(self, tensor: TensorHeader, plane: int, rows: int, columns: int) -> Array:
        """The mean over all `rows` of a plane; (columns,), float64."""
        key = (tensor.name, plane)
        if key not in self._means:
            total = np.zeros(columns)
            for part in self._parts(tensor, plane * rows * columns, rows, columns):
                total += part.sum(axis=0)
            self._means[key] = total / rows
        return self._means[key]

    def root_mean_square(self, tensor: TensorHeader) -> float:
        """Over all elements."""
        if tensor.name not in self._roots:
            count = prod(tensor.shape)
            squares = sum(float(np.dot(part, part)) for part in map(np.ravel, self._parts(tensor, 0, count, 1)))
            self._roots[tensor.name] = sqrt(squares / max(1, count))
        return self._roots[tensor.name]

    def _parts(self, tensor: TensorHeader, start: int, rows: int, columns: int) -> Iterator[Array]:
        kind = numbers.storage(tensor.dtype)
        step = max(1, _PASS_BYTES // max(1, columns * kind.itemsize))
        for begin in range(0, rows, step):
            raw = np.empty((min(step, rows - begin), columns), dtype=kind)
            self._reader.read(tensor, start + begin * columns, raw)
            yield numbers.to_float(raw, tensor.dtype, _DOUBLE)
