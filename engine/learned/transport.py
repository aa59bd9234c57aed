"""Which of B's neurons is which of A's: optimal transport between two sets of vectors, rounded to a permutation.

Owns the transport. Must not know what the vectors mean.

    cost_ij = |a_i - b_j|^2 / mean,    plan = the doubly stochastic matrix nearest to exp(-cost / 0.06)   (Sinkhorn)

Alternating normalisation of rows and columns in the logarithmic domain. The plan is rounded by letting every a take
its heaviest free b, the heaviest claim first, until all are matched. Source: Cuturi, "Sinkhorn Distances", NeurIPS
2013; the regularisation is OpT-DeUS's (arXiv 2508.08011), which averages with the plan itself instead of rounding it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

REGULARISATION = 0.06
ROUNDS = 100
TOLERANCE = 1e-3
"""Stop when no row's mass is off by more than this share."""
ROWS_AT_ONCE = 1024
HALF_ABOVE = 8192
"""Sets larger than this keep the matrix of costs in half precision: 14,336 neurons take 0.4 GB."""


def matching(pairs: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """For every one of `count` things of A the one of B that takes its place: a permutation (n,).

    `pairs` are their vectors, piece by piece: (n, f) of A and (n, f) of B, in any float type.
    """
    if count == 1:
        return torch.zeros(1, dtype=torch.long)
    costs = torch.zeros(count, count, dtype=torch.float16 if count > HALF_ABOVE else torch.float32)
    for first, second in pairs:
        _add_costs(costs, first, second)
    mean = float(costs.mean(dtype=torch.float32))
    if mean > 0:
        costs /= -mean * REGULARISATION  # now the logarithm of the plan before normalisation
    return _rounded(costs, _sinkhorn(costs))


def _add_costs(costs: Tensor, first: Tensor, second: Tensor) -> None:
    """Adds |a_i - b_j|^2, in blocks: only a block is ever in float32."""
    for a in range(0, len(first), ROWS_AT_ONCE):
        rows = first[a : a + ROWS_AT_ONCE].float()
        for b in range(0, len(second), ROWS_AT_ONCE):
            columns = second[b : b + ROWS_AT_ONCE].float()
            squares = rows.square().sum(1)[:, None] + columns.square().sum(1)[None, :]
            squares.addmm_(rows, columns.T, alpha=-2).clamp_min_(0)
            costs[a : a + ROWS_AT_ONCE, b : b + ROWS_AT_ONCE] += squares.to(costs.dtype)


def _sinkhorn(scores: Tensor) -> Tensor:
    """Logarithmic column factors of the plan exp(scores + row + column), (n,)."""
    count = len(scores)
    rows, columns = torch.zeros(count), torch.zeros(count)
    for _ in range(ROUNDS):
        before = rows
        column_sums = torch.full((count,), -torch.inf)
        rows = torch.empty(count)
        for begin in range(0, count, ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            block = scores[part].float()
            rows[part] = -torch.logsumexp(block + columns, dim=1)
            column_sums = torch.logaddexp(column_sums, torch.logsumexp(block + rows[part, None], dim=0))
        columns = -column_sums
        if float((rows - before).abs().max()) < TOLERANCE:
            break
    return columns


def _rounded(scores: Tensor, columns: Tensor) -> Tensor:
    """Every row's column. In each turn at least the heaviest claim wins, so it ends."""
    count = len(scores)
    result = torch.full((count,), -1, dtype=torch.long)
    taken = torch.zeros(count, dtype=torch.bool)
    waiting = torch.arange(count)
    while len(waiting):
        claims, weights = _claims(scores, columns, waiting, taken)
        winners = _heaviest_of_each(claims, weights)
        result[waiting[winners]] = claims[winners]
        taken[claims[winners]] = True
        waiting = waiting[result[waiting] < 0]
    return result


def _heaviest_of_each(claims: Tensor, weights: Tensor) -> Tensor:
    """For every claimed column the place of its heaviest claim."""
    by_weight = torch.argsort(weights, descending=True, stable=True)
    by_claim = torch.argsort(claims[by_weight], stable=True)
    ordered = claims[by_weight][by_claim]
    first = torch.ones(len(ordered), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return by_weight[by_claim[first]]


def _claims(scores: Tensor, columns: Tensor, waiting: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The heaviest free column of each waiting row, and its share of the row's mass (logarithmic)."""
    claims = torch.empty(len(waiting), dtype=torch.long)
    weights = torch.empty(len(waiting))
    blocked = torch.where(taken, -torch.inf, 0.0)
    for begin in range(0, len(waiting), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        block = scores[waiting[part]].float() + columns
        best = (block + blocked).max(dim=1)
        claims[part], weights[part] = best.indices, best.values - torch.logsumexp(block, dim=1)
    return claims, weights
