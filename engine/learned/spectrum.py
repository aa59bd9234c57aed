"""The common basis of all layers' matrices of one kind, found without holding more than one of them.

Owns the decomposition  [M_1 | M_2 | ... | M_L] = U S [V_1 | ... | V_L]^T.  Must not know what is done with it.

The concatenation of L matrices (d x k) is d x Lk; its left singular vectors and singular values are the eigenvectors
and the roots of the eigenvalues of the d x d Gram matrix, which is a sum over layers:

    G = sum_i M_i M_i^T = U S^2 U^T,      V_i = M_i^T U / S      (k x d)

so memory is one layer's matrix and a few d x d ones, whatever L and k are. M_i is the matrix or its transpose, the one
with fewer rows. Small singular values are inexact (the Gram matrix squares them), which does no harm: any orthonormal
U reconstructs M_i = U S V_i^T exactly when V_i is computed with the same U and S.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.learned.kinds import Kind
from engine.learned.tensors import read_tensor

DOUBLE_UP_TO = 1024
"""Rows up to which the sums are in float64; above, speed and memory matter more than the smallest singular values."""
COLUMNS_AT_ONCE = 2048
NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are treated as zero: nothing lies in those directions."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The basis of one kind of matrix."""

    basis: Tensor  # (d, r)
    values: Tensor  # (r,) singular values, largest first
    columns: int
    """k: columns of each matrix, that is rows of its coefficients."""
    layers: int
    transposed: bool
    """Whether M is the stored matrix transposed."""

    @property
    def rank(self) -> int:
        """r: directions with something in them."""
        return len(self.values)

    @property
    def unit(self) -> float:
        """Root of L k: entries of the V_i times this have a mean square of about 1."""
        return math.sqrt(self.layers * self.columns)

    def coefficients(self, matrix: Tensor, rows: Tensor | slice) -> Tensor:
        """Rows of V_i, times `unit`: (n, r) in float32. `matrix` is M_i as `oriented` gives it."""
        block = matrix[:, rows].to(self.basis.dtype)  # (d, n)
        return ((block.T @ self.basis) * (self.unit / self.values)).float()

    def matrix_rows(self, coefficients: Tensor) -> Tensor:
        """Columns of M from rows of V times `unit`, as rows: (n, r) -> (n, d)."""
        return (coefficients.to(self.basis.dtype) * (self.values / self.unit)) @ self.basis.T

    def oriented(self, stored: Tensor) -> Tensor:
        """M (d, k) of a stored matrix; a view."""
        return stored.T if self.transposed else stored


def decompose(kind: Kind) -> Spectrum:
    """The basis of all layers' matrices of `kind`, which have equal shapes."""
    shape = next(iter(kind.layers.values())).shape
    transposed = shape[0] > shape[1]
    rows, columns = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    precision = torch.float64 if rows <= DOUBLE_UP_TO else torch.float32
    gram = torch.zeros(rows, rows, dtype=precision)
    for matrix in _matrices(kind, transposed=transposed):
        for begin in range(0, columns, COLUMNS_AT_ONCE):
            part = matrix[:, begin : begin + COLUMNS_AT_ONCE].to(precision)
            gram.addmm_(part, part.T)
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.flip(0).clamp_min(0).sqrt()
    kept = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
    return Spectrum(vectors.flip(1)[:, :kept].contiguous(), values[:kept], columns, len(kind.layers), transposed)


def _matrices(kind: Kind, *, transposed: bool) -> Iterator[Tensor]:
    for layer in sorted(kind.layers):
        stored = read_tensor(kind.layers[layer])
        yield stored.T if transposed else stored
