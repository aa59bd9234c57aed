"""Rows cut once more, to the length that a part of a job trains at; what that changes is counted, never silent.

Owns the second cut and its count; the first, to `data.max_length`, is `engine.data.encoding`'s. Must not know torch.
Text becomes consecutive pieces that share one token, so that every token but the first is predicted exactly once. A
conversation cannot go on in another sequence: it is cut at the end, or left out where nothing trained remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.data.rows import EncodedRow, Note, RowKind


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows of at most `length` tokens."""

    length: int
    rows: tuple[EncodedRow, ...]
    split: int = 0
    """Text rows that became several."""
    pieces: int = 0
    """What they became."""
    truncated: int = 0
    """Conversations that lost their end."""
    dropped: int = 0
    """Conversations that lost every trained token, and are left out."""

    def words(self) -> str:
        """One sentence; empty when nothing was cut."""
        parts = []
        if self.split:
            parts.append(f"{self.split:,} continued in further sequences ({self.pieces:,} in all, nothing lost)")
        if self.truncated:
            parts.append(f"{self.truncated:,} cut at the end")
        if self.dropped:
            parts.append(f"{self.dropped:,} left out, every trained token lying beyond it")
        return f"Rows longer than {self.length:,} tokens: {'; '.join(parts)}." if parts else ""


def cut_rows(rows: Sequence[EncodedRow], length: int) -> Cut:
    """`rows` for sequences of `length` tokens, in their order."""
    kept: list[EncodedRow] = []
    split = pieces = truncated = dropped = 0
    for row in rows:
        if len(row.input_ids) <= length:
            kept.append(row)
        elif row.kind is RowKind.TEXT:
            parts = list(_pieces(row, length))
            kept += parts
            split, pieces = split + 1, pieces + len(parts)
        elif any(row.trained[:length]):
            kept.append(replace(row, input_ids=row.input_ids[:length], trained=row.trained[:length]))
            truncated += 1
        else:
            dropped += 1
    return Cut(length, tuple(kept), split, pieces, truncated, dropped)


def _pieces(row: EncodedRow, length: int) -> Iterator[EncodedRow]:
    for part, start in enumerate(range(0, len(row.input_ids) - 1, length - 1)):
        ids = row.input_ids[start : start + length]
        trained = (False, *row.trained[start + 1 : start + length])
        if any(trained):
            notes = (*row.notes, *(() if Note.TEXT_SPLIT in row.notes else (Note.TEXT_SPLIT,)))
            yield replace(row, input_ids=ids, trained=trained, full_length=len(ids), part=part, notes=notes)
