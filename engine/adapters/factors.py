"""Singular values of matrices, and norms and singular values of products that are never multiplied out.

Owns the linear algebra. Must not know adapters. O outputs, I inputs, R rank.
"""

from __future__ import annotations

import numpy as np

from engine.surgery.numbers import Array

EXACT_UP_TO = 768
"""Matrices whose smaller side is at most this are decomposed whole."""
PRECISE = 1e-6
"""Wanted error of the product of the leading directions over its norm."""
_FLOOR = 4e-6
"""Residuals over the largest singular value that float32 can be trusted to reach."""
_EXTRA = 16
_MOST_BLOCKS = 40
_REFINEMENTS, _PASSES = 3, 2
_SEED = 20261126
_CHUNK_BYTES = 16 << 20


def leading(matrix: Array, rank: int, *, precise: bool = True) -> tuple[Array, Array, Array]:
    """The `rank` largest singular directions of a matrix (O, I): (O, R), (R,), (R, I), float32.

    Large matrices, from a fixed random start: `precise` by block Krylov iteration (Musco and Musco, arXiv 1504.05477),
    refined in float64 until the error of the product is below `PRECISE` of its norm; where the spectrum is too flat for
    that the matrix is decomposed whole. Else by subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061,
    algorithm 4.4): as good an approximation within a percent or so, whose error the caller measures.
    """
    smaller = min(matrix.shape)
    if smaller > EXACT_UP_TO and (rank + _EXTRA) * 6 <= smaller:
        found = _krylov(matrix, rank) if precise else _subspace(matrix, rank)
        if found is not None:
            return found
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], values[:rank], vt[:rank]


def _subspace(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    draws = np.random.default_rng(_SEED)
    start = draws.standard_normal((matrix.shape[1], rank + _EXTRA), dtype=np.float32)
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(_PASSES):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    small, values, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ small[:, :rank], values[:rank], vt[:rank]


def _krylov(matrix: Array, rank: int) -> tuple[Array, Array, Array] | None:
    """None where it does not converge in a basis of 0.4 of the smaller side."""
    size = rank + _EXTRA
    draws = np.random.default_rng(_SEED)
    block = matrix @ draws.standard_normal((matrix.shape[1], size), dtype=np.float32)
    basis = np.linalg.qr(block)[0]
    projected = basis.T @ matrix  # (K, I)
    for _ in range(min(_MOST_BLOCKS, int(0.4 * min(matrix.shape)) // size) - 1):
        block = matrix @ projected[-size:].T
        for _again in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            block -= basis @ (basis.T @ block)
        block = np.linalg.qr(block)[0]
        basis = np.concatenate((basis, block), axis=1)
        projected = np.concatenate((projected, block.T @ matrix), axis=0)
        small, values, vt = np.linalg.svd(projected, full_matrices=False)
        residual = float(np.linalg.norm(matrix @ vt[:rank].T - (basis @ small[:, :rank]) * values[:rank]))
        if residual > _FLOOR * float(values[0]):
            continue
        found = _refined(matrix, vt[:size], rank)
        if found is not None:
            return found
    return None


def _refined(matrix: Array, directions: Array, rank: int) -> tuple[Array, Array, Array] | None:
    """Subspace iteration in float64 from right directions (K, I); None where it does not reach `PRECISE`: an angle
    between true and found directions is at most the residual over the gap to the next singular value."""
    vt = directions.astype(np.float64)
    for _ in range(_REFINEMENTS):
        images = _times(matrix, vt.T)  # (O, K)
        q = np.linalg.qr(images)[0]
        small, values, vt = np.linalg.svd(_times_transposed(matrix, q).T, full_matrices=False)
        u = q @ small
    residual = float(np.linalg.norm(_times(matrix, vt[:rank].T) - u[:, :rank] * values[:rank]))
    gap = float(values[rank - 1] - values[rank])
    if residual * float(values[rank - 1]) > PRECISE * gap * float(np.linalg.norm(values[:rank])):
        return None
    return u[:, :rank].astype(np.float32), values[:rank].astype(np.float32), vt[:rank].astype(np.float32)


def _times(matrix: Array, others: Array) -> Array:
    """The product in float64, some rows at a time."""
    product = np.empty((matrix.shape[0], others.shape[1]), np.float64)
    for part in _parts(matrix):
        product[part] = matrix[part].astype(np.float64) @ others
    return product


def _times_transposed(matrix: Array, others: Array) -> Array:
    """The product of the transposed matrix, the same way."""
    product = np.zeros((matrix.shape[1], others.shape[1]), np.float64)
    for part in _parts(matrix):
        product += matrix[part].astype(np.float64).T @ others[part]
    return product


def _parts(matrix: Array) -> list[slice]:
    step = max(1, _CHUNK_BYTES // (8 * matrix.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, matrix.shape[0], step)]


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
