"""Stored tensors as arrays of floats.

Owns reading one tensor whole. Must not know what it is for.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.models.headers import TensorHeader
from engine.surgery.checks import equal_data
from engine.surgery.numbers import FLOATS, Array, find_not_finite, storage, to_float

_ROWS_BYTES = 16 << 20
FLOAT32: np.dtype[Any] = np.dtype(np.float32)


def read_float(tensor: TensorHeader, work: np.dtype[Any] = FLOAT32) -> Array:
    """A new array of `tensor.shape`. Raises EngineError `adapter.dtype`, `adapter.not_finite`, `safetensors.*`."""
    if tensor.dtype not in FLOATS:
        raise EngineError(
            "adapter.dtype",
            f"Tensor '{tensor.name}' in {tensor.file} is of type {tensor.dtype}.",
            cause="Only float16, bfloat16, float32 and float64 are computed with; packed weights are not unpacked.",
            next_step="Use the model in its original precision.",
        )
    kind = storage(tensor.dtype)
    try:
        stored = np.fromfile(tensor.file, dtype=kind, count=tensor.elements, offset=tensor.offset_bytes)
    except OSError as error:
        raise EngineError(
            "safetensors.unreadable", f"Cannot read {tensor.file}.", cause=error.strerror or str(error)
        ) from error
    if stored.size != tensor.elements:
        raise EngineError(
            "safetensors.damaged",
            f"{tensor.file} ends within tensor '{tensor.name}'.",
            cause="The file was cut after its header was read.",
            next_step="Download it again.",
        )
    broken = find_not_finite(stored, tensor.dtype)
    if broken:
        raise EngineError(
            "adapter.not_finite",
            f"Tensor '{tensor.name}' in {tensor.file} holds a number that is {broken}.",
            cause="A training that diverged leaves such numbers.",
            next_step="Use an earlier checkpoint, or train again with a lower learning rate.",
        )
    return to_float(stored, tensor.dtype, work).reshape(tensor.shape)


def read_rows(tensor: TensorHeader, begin: int, end: int) -> Array:
    """Rows of a matrix, or entries of a vector, float32; the same errors as `read_float`, and IndexError for rows that
    the tensor does not have: what lies behind it in the file are other numbers."""
    count = tensor.shape[0] if tensor.shape else 1
    if not 0 <= begin <= end <= count:
        raise IndexError(f"rows {begin} to {end} of '{tensor.name}', which has {count}")
    columns = prod(tensor.shape[1:])
    part_bytes = columns * tensor.data_bytes // max(1, tensor.elements)
    part = replace(
        tensor,
        shape=(end - begin, *tensor.shape[1:]),
        data_bytes=(end - begin) * part_bytes,
        offset_bytes=tensor.offset_bytes + begin * part_bytes,
    )
    return read_float(part)


def same_values(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two stored tensors hold the same numbers, of whatever float types."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return equal_data(one, other)
    step = max(1, _ROWS_BYTES // (4 * max(1, prod(one.shape[1:]))))
    spans = ((begin, min(begin + step, one.shape[0])) for begin in range(0, one.shape[0] if one.shape else 0, step))
    return all(np.array_equal(read_rows(one, *span), read_rows(other, *span)) for span in spans)
