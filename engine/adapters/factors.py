"""Singular values of matrices, and norms and singular values of products that are never multiplied out.

Owns the linear algebra. Must not know adapters. O outputs, I inputs, R rank.
"""

from __future__ import annotations

import numpy as np

from engine.surgery.numbers import Array

EXACT_UP_TO = 768
"""Matrices whose smaller side is at most this are decomposed whole."""
PRECISE, ROUGH = 1e-6, 1e-3
_EXTRA = 16
_MOST_BLOCKS = 40
_SEED = 20261126


def leading(matrix: Array, rank: int, *, tolerance: float = PRECISE) -> tuple[Array, Array, Array]:
    """The `rank` largest singular directions of a matrix (O, I): (O, R), (R,), (R, I), float32.

    Large matrices: block Krylov iteration from a fixed random start (Musco and Musco, arXiv 1504.05477), until the
    residual over the gap to the next singular value is below `tolerance` times the largest one; where the spectrum is
    too flat for that the matrix is decomposed whole.
    """
    smaller = min(matrix.shape)
    if smaller > EXACT_UP_TO and (rank + _EXTRA) * 6 <= smaller:
        found = _krylov(matrix, rank, tolerance)
        if found is not None:
            return found
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], values[:rank], vt[:rank]


def _krylov(matrix: Array, rank: int, tolerance: float) -> tuple[Array, Array, Array] | None:
    """None where it does not converge in a basis of a third of the smaller side."""
    size = rank + _EXTRA
    draws = np.random.default_rng(_SEED)
    block = matrix @ draws.standard_normal((matrix.shape[1], size), dtype=np.float32)
    basis = np.linalg.qr(block)[0]
    projected = basis.T @ matrix  # (K, I)
    most = min(_MOST_BLOCKS, min(matrix.shape) // (3 * size))
    for _ in range(max(1, most - 1)):
        block = matrix @ projected[-size:].T
        for _again in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            block -= basis @ (basis.T @ block)
        block = np.linalg.qr(block)[0]
        basis = np.concatenate((basis, block), axis=1)
        projected = np.concatenate((projected, block.T @ matrix), axis=0)
        found = _triplets(matrix, basis, projected, rank, tolerance)
        if found is not None:
            return found
    return None


def _triplets(
    matrix: Array, basis: Array, projected: Array, rank: int, tolerance: float
) -> tuple[Array, Array, Array] | None:
    """Singular triplets in the basis; None while they are not converged."""
    small, values, vt = np.linalg.svd(projected, full_matrices=False)
    u, vt = basis @ small[:, :rank], vt[: rank + 1]
    residual = float(np.linalg.norm(matrix @ vt[:rank].T - u * values[:rank]))
    gap = float(values[rank - 1] - values[rank])
    largest = max(float(values[0]), float(np.finfo(np.float32).tiny))
    wanted = tolerance * largest
    precise = tolerance <= PRECISE
    if residual > wanted and residual > 3e-7 * float(np.linalg.norm(values[:rank])):
        return None
    if precise and residual * float(values[rank - 1]) > 30 * wanted * gap:
        return None
    return u, values[:rank], vt[:rank]


def truncated(left: Array, right: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation of left (O, R) times right (R, I) of a smaller rank r, as (O, r), (r, I) of equal norms;
    by the singular values of the product of two triangular matrices. float32."""
    q_left, r_left = np.linalg.qr(left.astype(np.float64))
    q_right, r_right = np.linalg.qr(right.T.astype(np.float64))
    u, values, vt = np.linalg.svd(r_left @ r_right.T)
    root = np.sqrt(values[:rank])
    return (
        ((q_left @ u[:, :rank]) * root).astype(np.float32),
        (root[:, None] * (vt[:rank] @ q_right.T)).astype(np.float32),
    )


def balanced(u: Array, values: Array, vt: Array) -> tuple[Array, Array]:
    """Two factors of equal norms, (O, R) and (R, I)."""
    root = np.sqrt(np.maximum(values, 0))
    return u * root, root[:, None] * vt


def product_norm(left: Array, right: Array) -> float:
    """Frobenius norm of left (O, R) times right (R, I): the root of trace((L'L)(RR')), float64. Differences of products
    come out right down to about 1e-8 of their parts."""
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    squared = float(np.sum((wide_left.T @ wide_left) * (wide_right @ wide_right.T)))
    return float(np.sqrt(max(squared, 0.0)))
