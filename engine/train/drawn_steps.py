"""Drawn sequences as planned steps: what the Trainer alone would draw, step by step, for ranks that divide steps.

Owns the order. Must not know ranks. It repeats accelerate's `SeedableRandomSampler`, which the Trainer draws with (a
permutation per epoch, seeded with seed + epoch), so that a job on several cards computes the steps of one on a single
card; `tests/train/test_ranks_steps.py` compares the two.
"""

from __future__ import annotations

import torch

from engine.jobs.spec import JobSpec
from engine.train.batches import SequenceDataset
from engine.train.step_batches import Lessons
from engine.train.step_plan import MicroBatch, Pool, Step


def drawn_lessons(spec: JobSpec, sequences: SequenceDataset, steps: int) -> Lessons:
    """So many steps of `gradient_accumulation` micro-batches; the last step of an epoch is as large as what is left."""
    training = spec.training
    size, accumulation = training.batch_size, training.gradient_accumulation
    pool = Pool("drawn", tuple(len(one.input_ids) for one in sequences.sequences), size)
    made: list[Step] = []
    epoch = 0
    while len(made) < steps:
        generator = torch.Generator().manual_seed(training.seed + epoch)
        drawn = torch.randperm(len(sequences), generator=generator).tolist()
        batches = [MicroBatch(0, tuple(drawn[first : first + size]), epoch) for first in range(0, len(drawn), size)]
        made += [tuple(batches[first : first + accumulation]) for first in range(0, len(batches), accumulation)]
        epoch += 1
    return Lessons((pool,), (sequences,), tuple(made[:steps]))
