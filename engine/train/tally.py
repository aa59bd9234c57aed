"""What a run has done so far, over all its attempts.

Owns the counters. Must not know how they are counted, nor import anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    writing_pieces: int = 1
    """So many times smaller are the batches of the student's own answers since memory ran out over them."""
    position: dict[str, int] = field(default_factory=dict)
    """Of streams: tokens that were taken of each source, over all stages."""
    stage_position: dict[str, int] = field(default_factory=dict)
    """The same when the stage began."""
    stage_worked_from: float = 0.0
    """Seconds with a worker alive before the stage began."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps of the stage, oldest first: what a leap is told by."""
    eval_losses: list[float] = field(default_factory=list)
    """Held-out losses of the stage, oldest first."""
    ended: str = ""
    """The rule that ended the stage, in words."""

    def begin_stage(self, worked_seconds: float) -> None:
        """What is counted per stage begins anew."""
        self.complete = self.early_stopped = False
        self.best_eval_loss, self.evaluations_without_gain = None, 0
        self.stage_position, self.stage_worked_from = dict(self.position), worked_seconds
        self.recent_losses, self.eval_losses, self.ended = [], [], ""

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
            writing_pieces=progress.writing_pieces,
            position=dict(progress.position),
            stage_position=dict(progress.stage_position),
            stage_worked_from=progress.stage_worked_from,
            recent_losses=list(progress.recent_losses),
            eval_losses=list(progress.eval_losses),
            ended=progress.ended,
        )
