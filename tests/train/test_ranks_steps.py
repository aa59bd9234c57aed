"""A step divided among ranks is the whole step, whatever its shape, and ranks stay in step with each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.train.pieces import rows_of
from engine.train.shares import EMPTY_TOKENS, share_of

pytestmark = pytest.mark.slow

WIDTH = 10


def batch(rows: int, first: int) -> dict[str, Any]:
    """A micro-batch whose every row trains on its own number; row r at position r + 1."""
    return {
        "input_ids": torch.arange(rows * WIDTH).view(rows, WIDTH),
        "position_ids": torch.arange(WIDTH).repeat(rows, 1),
        "positions": torch.tensor([row * WIDTH + row % WIDTH for row in range(rows)]),
        "targets": torch.arange(first, first + rows),
        "original_positions": False,
    }


def step(*rows: int) -> list[dict[str, Any]]:
    return [batch(count, 100 * number) for number, count in enumerate(rows)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [(1,), (2,), (4,), (2, 2, 2), (4, 4, 4), (3, 1), (8, 8), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("pieces", [1, 2])
def test_ranks_compute_every_target_once_in_equally_many_micro_batches(
    world: int, rows: tuple[int, ...], pieces: int
) -> None:
    shares = [share_of(step(*rows), rank, world, pieces) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    trained = [int(target) for share in shares for part in share for target in part["targets"]]
    assert sorted(trained) == sorted(int(target) for whole in step(*rows) for target in whole["targets"])
    for part in (part for share in shares for part in share):
        assert part["positions"].shape == part["targets"].shape
        assert all(int(place) < part["input_ids"].numel() for place in part["positions"])
        if not len(part["targets"]):
            assert part["input_ids"].shape == (1, min(EMPTY_TOKENS, WIDTH))


@pytest.mark.parametrize(("rows", "world", "each"), [((4, 4, 4), 2, 6), ((2,), 2, 1), ((8,), 4, 2), ((3, 3), 3, 2)])
def test_work_is_divided_evenly_where_rows_allow_it(rows: tuple[int, ...], world: int, each: int) -> None:
    loads = [sum(rows_of(part) for part in share_of(step(*rows), rank, world)) for rank in range(world)]
    assert loads == [each] * world


def test_pieces_are_at_least_as_many_as_memory_asks_for() -> None:
    shares = [share_of(step(8, 8), rank, 2, pieces=4) for rank in range(2)]
    assert max(rows_of(part) for share in shares for part in share) == 2
