"""What one pass over a user's data asks of the device: real tokens, padding, what is measured beside it.

Owns that description, for data that was counted and for data that was only guessed. Must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.estimate.estimate import Range

NO_PADDING = Range(1.0, 1.0, 1.0)
PACKED_FILL = Range(0.80, 0.93, 0.99)
"""How full packed sequences are, best-fit on short rows, until somebody counted."""


@dataclass(frozen=True, slots=True)
class DataShape:
    """One epoch. Token counts leave padding out."""

    tokens: tuple[float, float, float]
    """Low, likely, high; all equal when counted."""
    trained_share: float = 1.0
    """Share of the tokens that carry loss."""
    fill: Range = NO_PADDING
    """Share of the computed tokens that are not padding."""
    width: int = 0
    """Mean width of a micro-batch in tokens, padding included; 0 means full sequences."""
    row_tokens: float = 0.0
    """Of the mean row; 0 where rows were not counted."""
    heldout_tokens: float = 0.0
    base_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class LengthCount:
    """So many rows of about that many tokens."""

    tokens: float
    rows: int


def packed_shape(tokens: float, sequences: int, max_length: int) -> tuple[Range, int]:
    """(fill, width) of packed sequences: tokens / (sequences x length)."""
    computed = max(sequences, 1) * max_length
    fill = min(tokens / computed, 1.0) if tokens else 1.0
    width = max_length if sequences > 1 else min(round(tokens) or max_length, max_length)
    return (Range(fill, fill, fill), width) if sequences > 1 else (NO_PADDING, width)


def padded_shape(lengths: Sequence[LengthCount], batch: int) -> tuple[Range, int]:
    """(fill, width) of rows that are padded to the longest of their micro-batch, drawn at random.

    width = E[longest of b rows] = Σ length·(F(length)^b − F(shorter)^b); fill = mean length / width.
    """
    rows = sum(count.rows for count in lengths)
    if not rows:
        return NO_PADDING, 0
    below, longest, mean = 0.0, 0.0, 0.0
    for count in sorted(lengths, key=lambda count: count.tokens):
        share = below + count.rows / rows
        longest += count.tokens * (share**batch - below**batch)
        mean += count.tokens * count.rows / rows
        below = share
    fill = min(mean / longest, 1.0) if longest else 1.0
    return Range(fill, fill, fill), max(round(longest), 1)
