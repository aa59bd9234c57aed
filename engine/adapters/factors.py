"""Singular values of matrices and of products that are never multiplied out.

Owns the linear algebra. Must not know adapters. O outputs, I inputs, R rank.
"""

from __future__ import annotations

import numpy as np

from engine.surgery.numbers import Array

_EXACT_UP_TO = 2048
"""Matrices whose smaller side is below this are decomposed whole."""


def leading(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """The `rank` largest singular directions of a matrix (O, I): (O, R), (R,), (R, I), float32."""
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], values[:rank], vt[:rank]
