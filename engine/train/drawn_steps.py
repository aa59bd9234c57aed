"""Drawn sequences as planned steps: what the Trainer alone would draw, step by step, for ranks that divide steps.

Owns the order. Must not know ranks. It repeats accelerate's `SeedableRandomSampler`, which the Trainer draws with (a
permutation per epoch, seeded with seed + epoch), so that a job on several cards computes the steps of one on a single
card; `tests/train/test_ranks_steps.py` compares the two.
"""

from __future__ import annotations

import torch

from engine.train.batches import SequenceDataset
from engine.train.step_batches import Lessons
from engine.train.step_plan import MicroBatch, Pool, Step


def drawn_lessons(sequences: SequenceDataset, *, steps: int, batch_size: int, accumulation: int, seed: int) -> Lessons:
    """So many steps of `accumulation` micro-batches; the last step of an epoch is as large as what is left."""
    pool = Pool("drawn", tuple(len(one.input_ids) for one in sequences.sequences), batch_size)
    made: list[Step] = []
    epoch = 0
    while len(made) < steps:
        drawn = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        batches = [
            MicroBatch(0, tuple(drawn[first : first + batch_size]), epoch) for first in range(0, len(drawn), batch_size)
        ]
        made += [tuple(batches[first : first + accumulation]) for first in range(0, len(batches), accumulation)]
        epoch += 1
    return Lessons((pool,), (sequences,), tuple(made[:steps]))
