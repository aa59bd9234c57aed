"""Joins short rows into full sequences in which no row sees or predicts another.

Owns the placement (best-fit decreasing, deterministic) and the three lists a model needs. Must not know torch.

What keeps rows apart, checked against transformers 5.23 (SDPA and eager attention, any batch size):

- `position_ids` restart at 0 in every segment. transformers recognises the restarts and builds a block-diagonal causal
  mask, *only if* the model is called **without `attention_mask` and with `use_cache=False`**. With either an attention
  mask (even all ones) or a cache - and `config.use_cache` is True by default - the restarts are ignored without a word
  and rows attend to each other. `MODEL_ARGUMENTS` holds what must be passed along.
- The label of the first token of a segment is -100, so the last token of the row before is never asked to predict it.
- Padding is a segment of its own (positions restart, labels -100), so a padded batch needs no attention mask either.

    ids     a a a a b b b c c P P
    pos     0 1 2 3 0 1 2 0 1 0 1        a, b, c: rows    P: padding
    labels  - a a a - b b - c - -
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.data.rows import EncodedRow
from engine.errors import EngineError

IGNORED_LABEL = -100

MODEL_ARGUMENTS: dict[str, bool] = {"use_cache": False}
"""Keyword arguments of every forward pass over packed or padded sequences; and never an attention_mask."""


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """One sequence of one or more rows; the three tuples have equal length."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    position_ids: tuple[int, ...]
    segment_lengths: tuple[int, ...]
    lines: tuple[int, ...]
    """Where in the file each segment came from."""

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED_LABEL for label in self.labels)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Lists of equal length, ready to become tensors; call the model with these and `MODEL_ARGUMENTS` only."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    position_ids: list[list[int]]

    @property
    def as_dict(self) -> dict[str, list[list[int]]]:
        return {"input_ids": self.input_ids, "labels": self.labels, "position_ids": self.position_ids}


def plan_packing(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the rows of each sequence: longest row first, each into the fullest sequence that still has room.

    Equal input gives equal output. O(n log n): room left is at most `max_length`, so open sequences are kept by room.
    """
    sequences: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 0 < length <= max_length:
            raise EngineError(
                "data.row_length",
                f"A row of {length} tokens cannot be placed in sequences of {max_length}.",
                next_step="Cut rows to max_length before packing them.",
            )
        slot = bisect_left(rooms, length)
        if slot == len(rooms):
            sequences.append([index])
            _open(by_room, rooms, max_length - length, len(sequences) - 1)
            continue
        room = rooms[slot]
        target = by_room[room].pop()
        if not by_room[room]:
            del by_room[room], rooms[slot]
        sequences[target].append(index)
        _open(by_room, rooms, room - length, target)
    return sequences


def _open(by_room: dict[int, list[int]], rooms: list[int], room: int, sequence: int) -> None:
    if room == 0:
        return
    if room not in by_room:
        by_room[room] = []
        insort(rooms, room)
    by_room[room].append(sequence)


def pack(rows: Sequence[EncodedRow], max_length: int) -> list[PackedSequence]:
    """Rows joined into sequences of at most `max_length` tokens; shuffling is the trainer's."""
    plan = plan_packing([len(row.input_ids) for row in rows], max_length)
    return [_join([rows[index] for index in members]) for members in plan]


def unpacked(rows: Iterable[EncodedRow]) -> list[PackedSequence]:
    """One sequence per row, in order: the same types without packing."""
    return [_join([row]) for row in rows]


def _join(rows: Sequence[EncodedRow]) -> PackedSequence:
    input_ids: list[int] = []
    labels: list[int] = []
    position_ids: list[int] = []
    for row in rows:
        input_ids.extend(row.input_ids)
        labels.append(IGNORED_LABEL)
        pairs = zip(row.input_ids[1:], row.trained[1:], strict=True)
        labels.extend(token if trained else IGNORED_LABEL for token, trained in pairs)
        position_ids.extend(range(len(row.input_ids)))
    return PackedSequence(
        input_ids=tuple(input_ids),
        labels=tuple(labels),
        position_ids=tuple(position_ids),
        segment_lengths=tuple(len(row.input_ids) for row in rows),
        lines=tuple(row.line for row in rows),
    )


def pad(sequences: Sequence[PackedSequence], pad_id: int, *, length: int = 0) -> PaddedBatch:
    """Sequences filled up on the right to the longest of them, or to `length` when that is larger."""
    width = max([length, *(len(sequence.input_ids) for sequence in sequences)])
    batch = PaddedBatch([], [], [])
    for sequence in sequences:
        missing = width - len(sequence.input_ids)
        batch.input_ids.append([*sequence.input_ids, *[pad_id] * missing])
        batch.labels.append([*sequence.labels, *[IGNORED_LABEL] * missing])
        batch.position_ids.append([*sequence.position_ids, *range(missing)])
    return batch


def fill_ratio(lengths: Iterable[int], sequences: int, max_length: int) -> float:
    """Share of the sequences' tokens that are rows, 0 to 1."""
    return sum(lengths) / (sequences * max_length) if sequences else 0.0
