"""What an adapter does to one matrix, in full precision.

    D = diag(g) W + L R          g zero except for DoRA

Owns the formulas. Must not know files beyond reading the factors, nor several adapters. Matrices are (outputs, inputs)
inside; O outputs, I inputs, R rank. Weights come and go as the base stores them: an embedding is (V, D), GPT-2's layers
are (I, O).

PiSSA and OLoRA: peft takes s B0 A0 out of W at every load, computed from W itself, therefore D = s B A - s B0 A0.
DoRA (arXiv 2402.09353): W' = diag(m / |W + s B A|) (W + s B A), norms of rows, therefore g = m / |...| - 1 and
L = diag(1 + g) s B. peft's own functions for mixing leave the last two out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.adapters.factors import leading
from engine.adapters.folder import Adapted
from engine.adapters.kinds import Start
from engine.adapters.tensors import read_float
from engine.errors import EngineError
from engine.surgery.numbers import Array

_ROWS_AT_ONCE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Update:
    """diag(gain) W + left right, for W of (outputs, inputs)."""

    left: Array  # (O, R)
    right: Array  # (R, I)
    gain: Array | None = None  # (O,)

    def dense(self, weight: Array | None) -> Array:
        """The update whole, float32 (O, I); `weight` (O, I) is read where there is a gain."""
        change: Array = self.left @ self.right
        if self.gain is not None:
            assert weight is not None
            change += self.gain[:, None] * weight
        return change


def low_rank(adapted: Adapted, weight: Array | None = None) -> tuple[Array, Array] | None:
    """(left (O, R), right (R, I)) whose product is the update, scale included; float32. None where it is none of low
    rank (DoRA), and where PiSSA or OLoRA need the base's `weight` (as stored, float32), which is not given; with it
    they have twice the adapter's rank."""
    if adapted.magnitude is not None or (adapted.start is not Start.NONE and weight is None):
        return None
    found = update_of(adapted, weight)
    return found.left, found.right


def merged_weight(adapted: Adapted, weight: Array) -> Array:
    """`weight` (as the base stores it, float32) with the update folded in; a new float32 array of the same shape.
    Raises EngineError `adapter.other_base` where the shapes do not belong together."""
    if weight.shape != adapted.stored_shape:
        raise EngineError(
            "adapter.other_base",
            f"The adapter does not belong to this base: '{adapted.module}' differs.",
            cause=f"The adapter was made for a weight of shape {adapted.stored_shape}, the base's is {weight.shape}.",
            next_step="Give the base that it was trained on.",
        )
    inner = weight.T if adapted.transposed else weight
    update = update_of(adapted, weight)
    merged: Array = update.left @ update.right
    merged += inner
    if update.gain is not None:
        merged += update.gain[:, None] * inner
    return np.ascontiguousarray(merged.T) if adapted.transposed else merged


def update_of(adapted: Adapted, weight: Array | None = None) -> Update:
    """The update in its smallest exact form. `weight`: as stored, float32; needed for DoRA, PiSSA and OLoRA."""
    left = read_float(adapted.b)
    left *= np.float32(adapted.scale)
    right = read_float(adapted.a)
    if weight is None:
        assert adapted.magnitude is None, "needs the base's weight"
        assert adapted.start is Start.NONE, "needs the base's weight"
        return Update(left, right)
    inner = weight.T if adapted.transposed else weight
    if adapted.start is not Start.NONE:
        taken_left, taken_right = taken_out(adapted, inner)
        left = np.concatenate((left, -taken_left), axis=1)
        right = np.concatenate((right, taken_right), axis=0)
    if adapted.magnitude is None:
        return Update(left, right)
    magnitude = read_float(adapted.magnitude, np.dtype(np.float64)).reshape(-1)
    norms = row_norms(inner, left, right)
    factor = np.divide(magnitude, norms, out=np.ones_like(norms), where=norms > 0)
    return Update(left * factor[:, None].astype(np.float32), right, (factor - 1).astype(np.float32))


def taken_out(adapted: Adapted, weight: Array) -> tuple[Array, Array]:
    """What peft takes out of `weight` (O, I) when it loads the adapter: (left (O, R), right (R, I))."""
    if adapted.start is Start.PISSA:
        u, values, vt = leading(weight, adapted.rank)
        return u * values, vt
    q, r = np.linalg.qr(weight)
    return q[:, : adapted.rank] * np.float32(adapted.scale), r[: adapted.rank]


def bias_of(adapted: Adapted) -> Array | None:
    """What the adapter adds to the module's bias, float32 (O,); None for nothing."""
    if adapted.bias is None:
        return None
    return read_float(adapted.bias).reshape(-1) * np.float32(adapted.scale)


def row_norms(weight: Array, left: Array, right: Array, scale: Array | None = None) -> Array:
    """Euclidean norms of the rows of diag(scale) weight + left right, float64 (O,); some rows at a time. With a `scale`
    all of it is float64: its norms are stored, and decide the last bits of a DoRA adapter's update."""
    norms = np.empty(weight.shape[0], dtype=np.float64)
    step = max(1, _ROWS_AT_ONCE_BYTES // (4 * max(1, weight.shape[1])))
    wide = right.astype(np.float64) if scale is not None else right
    for begin in range(0, len(norms), step):
        part = slice(begin, begin + step)
        rows = weight[part] if scale is None else weight[part] * scale[part, None]
        rows = rows + left[part].astype(wide.dtype) @ wide
        norms[part] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms
