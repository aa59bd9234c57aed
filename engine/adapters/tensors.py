"""Stored tensors as arrays of floats.

Owns reading one tensor whole. Must not know what it is for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.models.headers import TensorHeader
from engine.surgery.numbers import FLOATS, Array, find_not_finite, storage, to_float

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
