"""What a run has done so far, over all its attempts.

Owns the counters. Must not know how they are counted, nor import anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.checkpointing import Progress


@dataclass(slots=True)
class Tally:
    """What is counted over all attempts and travels with the checkpoints. Mutable: every step adds to it."""

    step: int = 0
    training_seconds: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    best_eval_loss: float | None = None
    evaluations_without_gain: int = 0
    complete: bool = False
    early_stopped: bool = False
    pieces: int = 1
    """In which micro-batches are computed since memory ran out."""

    @classmethod
    def of(cls, progress: Progress) -> Tally:
        """As a checkpoint left it."""
        return cls(
            step=progress.step,
            training_seconds=progress.training_seconds,
            tokens=progress.tokens,
            trained_tokens=progress.trained_tokens,
            best_eval_loss=progress.best_eval_loss,
            evaluations_without_gain=progress.evaluations_without_gain,
            complete=progress.complete,
            early_stopped=progress.early_stopped,
            pieces=progress.pieces,
        )
