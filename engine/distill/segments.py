"""The rows that a packed batch is made of, found again from its positions.

Owns the borders. Must not know what a row means.

    position_ids  0 1 2 3 0 1 2 0 1      a row begins wherever they restart, and at the left edge
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from engine.evaluation.head import Wanted


@dataclass(frozen=True, slots=True)
class Segment:
    """One row with at least one wanted position."""

    ids: tuple[int, ...]
    """All of its tokens; of a row at the end of the batch without the padding, which is a row of its own."""
    wanted: tuple[int, ...]
    """Inside the segment, rising: those whose next token is learnt."""
    first: int
    """Of its wanted positions among all N of the batch."""


def segments_of(wanted: Wanted) -> Iterator[Segment]:
    """Rows in the order of their wanted positions; those without any, padding among them, are left out. One copy from
    the device."""
    width = int(wanted.input_ids.shape[1])
    starts = _starts(wanted.position_ids)
    ids: list[int] = wanted.input_ids.reshape(-1).tolist()
    positions: list[int] = wanted.positions.tolist()
    borders = [*starts, len(ids)]
    number = first = 0
    while first < len(positions):
        while borders[number + 1] <= positions[first]:
            number += 1
        begin, end = borders[number], borders[number + 1]
        last = first
        while last < len(positions) and positions[last] < end:
            last += 1
        assert begin // width == (end - 1) // width
        yield Segment(tuple(ids[begin:end]), tuple(one - begin for one in positions[first:last]), first)
        first = last


def _starts(position_ids: Tensor) -> list[int]:
    """Flat indices at which a row begins, (B, T) -> rising."""
    begins = position_ids == 0
    begins[:, 0] = True
    found: list[int] = begins.reshape(-1).nonzero()[:, 0].tolist()
    return found
