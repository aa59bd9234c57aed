"""A step's micro-batches divided among ranks: equally many for each, whatever there is.

Owns the division. Must not know processes or models. It follows from the step alone, so that all ranks come to the same
without asking.

    3 micro-batches of 4 rows, 2 ranks ─► in 2 pieces each ─► rank 0: a1 b1 c1    rank 1: a2 b2 c2
    1 micro-batch of 1 row, 2 ranks    ─────────────────────► rank 0: a           rank 1: nothing to train
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.train.pieces import rows_of, split

EMPTY_TOKENS = 8
"""Of a micro-batch that only keeps a rank in step with the others."""


def share_of(batches: Sequence[dict[str, Any]], rank: int, world: int, pieces: int = 1) -> list[dict[str, Any]]:
    """What `rank` computes of a step, in order; as many micro-batches on every rank, and at least one.

    Micro-batches are split into more than `pieces` where that divides the work evenly, or gives every rank some."""
    number = _pieces(batches, world, pieces)
    parts = [part for batch in batches for part in split(batch, number)]
    own = parts[rank::world]
    rounds = -(-len(parts) // world)
    return own + [_empty(batches[0])] * (rounds - len(own))


def _pieces(batches: Sequence[dict[str, Any]], world: int, least: int) -> int:
    rows = [rows_of(batch) for batch in batches]
    most = max(max(rows), least)

    def parts(number: int) -> int:
        return sum(min(number, count) for count in rows)

    candidates = range(least, min(most, least * world) + 1)
    even = next((number for number in candidates if parts(number) % world == 0), 0)
    enough = next((number for number in range(least, most + 1) if parts(number) >= world), most)
    return even or enough


def _empty(batch: dict[str, Any]) -> dict[str, Any]:
    """A few tokens of one row, none of them trained."""
    grids = ("input_ids", "position_ids", "attention_mask")
    kept: dict[str, Any] = {name: batch[name][:1, :EMPTY_TOKENS] for name in grids if name in batch}
    none = torch.zeros(0, dtype=torch.long)
    return {**batch, **kept, "positions": none, "targets": none}
