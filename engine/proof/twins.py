"""Coordinates that will never part: equal values and equal gradients.

Owns finding them without comparing all pairs. Must not know models. Every coordinate of an axis is projected onto two
random directions; equal ones have equal projections, so that sorting brings them side by side, and only neighbours are
compared in full.

n coordinates of the axis, m entries of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAME = 1e-4
"""Relative: gradients of copies are sums in another order. Copies that differ by less stay together all the same."""
ROUGHLY_SAME = 2e-4
NEIGHBOURS = 3
FEWEST_ENTRIES = 8
"""Scalars are equal by chance; whether a gain has a twin is decided by the matrices beside it."""

Pair = tuple[int, int]


def twin_pairs(values: Tensor, gradients: Tensor, axis: int, new: Tensor) -> list[Pair]:
    """Neighbouring pairs along `axis`, at least one of them new; `new` (n,) is True for new coordinates."""
    extent = values.shape[axis]
    if extent < 2 or values.numel() // extent < FEWEST_ENTRIES:
        return []
    value = values.movedim(axis, 0).reshape(extent, -1)  # (n, m)
    gradient = gradients.movedim(axis, 0).reshape(extent, -1)  # (n, m)
    moves = gradient.norm(dim=1)  # (n,)
    seen = _projections(gradient)  # (n, 2)
    order = torch.argsort(seen[:, 0])
    pairs: list[Pair] = []
    for distance in range(1, min(NEIGHBOURS, extent - 1) + 1):
        left, right = order[:-distance], order[distance:]
        close = (seen[left] - seen[right]).abs().amax(dim=1) <= ROUGHLY_SAME * moves[left]
        candidates = close & (moves[left] > 0) & (new[left] | new[right])
        for position in candidates.nonzero().flatten().tolist():
            pair = int(left[position]), int(right[position])
            if _same(gradient, pair) and _same(value, pair):
                pairs.append((min(pair), max(pair)))
    return sorted(set(pairs))


def _same(rows: Tensor, pair: Pair) -> bool:
    first, second = rows[pair[0]], rows[pair[1]]
    return float((first - second).norm()) <= SAME * float(first.norm())


def _projections(rows: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(rows.shape[1])
    directions = torch.randn(rows.shape[1], 2, generator=generator, dtype=torch.float32).to(rows.dtype)
    return rows @ directions


def signature(values: Tensor, gradients: Tensor) -> tuple[float, ...]:
    """Six numbers that are the same for two whole matrices only if their values and gradients are."""
    numbers: list[float] = []
    for tensor in (values, gradients):
        rows = tensor.reshape(tensor.shape[0], -1)  # (n, m)
        numbers += [float(rows.norm()), *_projections(_projections(rows).T)[:, 0].tolist()]
    return tuple(numbers)


def same_signatures(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two signatures stand for equal tensors that have a gradient."""
    if not first[3] > 0:
        return False
    scales = (first[0], first[0], first[0], first[3], first[3], first[3])
    return all(abs(a - b) <= SAME * s for a, b, s in zip(first, second, scales, strict=True))
