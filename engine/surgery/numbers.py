"""Stored numbers as numpy sees them: bfloat16 and its relatives to floats and back, and the search for NaN.

Owns conversions and their rounding (to nearest, ties to even). Must not know files or recipes. numpy has no bfloat16:
it is stored as uint16, the upper half of a float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError

Array = NDArray[Any]

STORAGE: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "BOOL": np.dtype("u1"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
}  # fmt: skip
"""The format's name -> how its bytes are held. What is missing here (8-bit floats, ...) is refused."""

FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}

_FINITE: dict[str, tuple[str, int, int]] = {
    # unsigned view, all bits but the sign, the pattern of infinity
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}
_BLOCK_BYTES = 1 << 18
"""A scan stays in the core's own cache."""


def storage(dtype: str) -> np.dtype[Any]:
    """How numpy holds numbers of `dtype`. Raises EngineError `surgery.dtype` for types nobody here can compute with."""
    try:
        return STORAGE[dtype]
    except KeyError:
        raise EngineError(
            "surgery.dtype",
            f"Weights of type {dtype} cannot be expanded.",
            cause="Only float16, bfloat16, float32 and float64 are computed with; the rest is copied where it stays.",
            next_step="Convert the model to bfloat16 first.",
        ) from None


def work_type(dtype: str) -> np.dtype[Any]:
    """What values of `dtype` are computed in: half precision in float32, the rest in float64."""
    return np.dtype(np.float32 if dtype in ("BF16", "F16") else np.float64)


def to_float(stored: Array, dtype: str, work: np.dtype[Any]) -> Array:
    """Stored numbers as floats of type `work`; a new array."""
    if dtype == "BF16":
        widened = stored.astype(np.uint32)
        widened <<= 16
        values: Array = widened.view(np.float32)
        return values if work == np.float32 else values.astype(work)
    if dtype in FLOATS:
        return stored.astype(work)
    raise EngineError("surgery.dtype", f"Weights of type {dtype} cannot be computed with.")


def to_stored(values: Array, dtype: str) -> Array:
    """Floats rounded to `dtype`, as `STORAGE` holds it. Too large numbers become infinite, NaN stays NaN."""
    if dtype == "BF16":
        return _to_bfloat16(values)
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return values.astype(STORAGE[dtype])
    raise EngineError("surgery.dtype", f"Weights of type {dtype} cannot be computed.")


def _to_bfloat16(values: Array) -> Array:
    """Adds half a unit less one, plus the bit that is kept last, and drops the lower half."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        result[nan] = 0x7FC0
    return result


def find_not_finite(stored: Array, dtype: str) -> str:
    """ "NaN" or "infinite" when such a number is among the stored ones, else "". `stored` is contiguous."""
    if dtype not in _FINITE:
        return ""
    view_name, mask, infinity = _FINITE[dtype]
    bits = stored.reshape(-1).view(view_name)
    step = _BLOCK_BYTES // bits.itemsize
    scratch = np.empty(min(step, bits.size), dtype=bits.dtype)
    found = ""
    for begin in range(0, bits.size, step):
        part = bits[begin : begin + step]
        cleared = np.bitwise_and(part, part.dtype.type(mask), out=scratch[: part.size])
        largest = int(cleared.max()) if part.size else 0
        if largest > infinity:
            return "NaN"
        if largest == infinity:
            found = "infinite"
    return found
