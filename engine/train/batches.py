"""Packed or padded sequences as tensors: the data set and the collator of the loop.

Owns the batch layout. Must not know models or runs.

    input_ids     (B, T)   rows one behind the other, padding at the right end
    position_ids  (B, T)   restart at 0 with every row, and once more for the padding: what keeps rows apart
    positions     (N,)     flat indices in B x T whose next token is trained
    targets       (N,)     those next tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine.data.packing import IGNORED_LABEL, PackedSequence, pack, unpacked
from engine.data.rows import EncodedRow


@dataclass(frozen=True, slots=True)
class TensorSequence:
    """One sequence, converted once: a batch is then a few copies."""

    input_ids: Tensor  # (t,)
    position_ids: Tensor  # (t,)
    positions: Tensor  # (n,) inside this sequence
    targets: Tensor  # (n,)


class SequenceDataset(Dataset[TensorSequence]):
    """Sequences in the order they were packed; shuffling is the sampler's."""

    def __init__(self, sequences: Sequence[PackedSequence]) -> None:
        self.sequences = [_tensors(sequence) for sequence in sequences]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> TensorSequence:
        return self.sequences[index]

    @property
    def tokens(self) -> int:
        """Of all sequences, padding not counted."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    @property
    def trained_tokens(self) -> int:
        return sum(len(sequence.targets) for sequence in self.sequences)


def _tensors(sequence: PackedSequence) -> TensorSequence:
    labels = torch.tensor(sequence.labels, dtype=torch.int32)
    trained = (labels[1:] != IGNORED_LABEL).nonzero()[:, 0]  # position p predicts label p + 1
    return TensorSequence(
        input_ids=torch.tensor(sequence.input_ids, dtype=torch.int32),
        position_ids=torch.tensor(sequence.position_ids, dtype=torch.int32),
        positions=trained.to(torch.int32),
        targets=labels[1:][trained],
    )


def make_dataset(rows: Sequence[EncodedRow], max_length: int, *, packing: bool) -> SequenceDataset:
    """Rows packed into sequences of `max_length`, or one sequence per row."""
    return SequenceDataset(pack(rows, max_length) if packing else unpacked(rows))


@dataclass(frozen=True, slots=True)
class Collator:
    """Sequences to one batch. `tokens` and `trained_tokens` are plain numbers: counting costs the device nothing."""

    pad_id: int

    def __call__(self, sequences: Sequence[TensorSequence]) -> dict[str, Any]:
        width = max(len(sequence.input_ids) for sequence in sequences)
        input_ids = torch.full((len(sequences), width), self.pad_id, dtype=torch.long)
        position_ids = torch.empty((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            length = len(sequence.input_ids)
            input_ids[row, :length] = sequence.input_ids
            position_ids[row, :length] = sequence.position_ids
            position_ids[row, length:] = torch.arange(width - length)
        starts = enumerate(sequences)
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "positions": torch.cat([row * width + sequence.positions.long() for row, sequence in starts]),
            "targets": torch.cat([sequence.targets for sequence in sequences]).long(),
            "tokens": sum(len(sequence.input_ids) for sequence in sequences),
            "trained_tokens": sum(len(sequence.targets) for sequence in sequences),
        }
