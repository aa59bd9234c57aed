"""One worker's try at a run: what it is given, the phases every kind of job has, and how it ended in words.

Owns these values and the first phase (the model). Must not know what is trained.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.jobs import control
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from engine.models.resolve import download_weights, resolve_model
from engine.models.source import ModelRef
from engine.train import checkpointing
from engine.train.environment import Device
from engine.train.signals import PauseRequested, PauseSignals
from engine.train.tally import Tally

if TYPE_CHECKING:
    from engine.distributed.company import Company


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the worker hands over."""

    run_dir: Path
    spec: JobSpec
    spec_hash: str
    created: float
    journal: JournalWriter
    signals: PauseSignals
    device: Device
    threads: int
    versions: dict[str, str]
    resume: checkpointing.Resume | None
    worked_before_seconds: float
    began: float = field(default_factory=time.time)
    company: Company | None = None
    """The other processes; None for a worker alone."""

    @property
    def follows(self) -> bool:
        """Whether another process leads: this one computes its share, and writes, measures and decides nothing."""
        return self.company is not None and not self.company.leads

    def leader_first(self) -> contextlib.AbstractContextManager[None]:
        """Around what makes files that all processes use."""
        return contextlib.nullcontext() if self.company is None else self.company.leader_first()

    def phase(self, name: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        """Say what is going on."""
        if self.company is not None:
            self.company.life.doing(f"{name}: {detail}" if detail else name, slow=True)
        self.journal.write(ev.Phase(t=time.time(), name=name, detail=detail, done=done, total=total))

    def warn(self, message: str, next_step: str = "") -> None:
        """Say what is not as it should be."""
        self.journal.write(ev.Warn(t=time.time(), message=message, next_step=next_step))

    def say(self, message: str) -> None:
        """Say what was found out, where nothing is wrong."""
        self.journal.write(ev.Log(t=time.time(), message=message))

    def worked_seconds(self) -> float:
        """Wall time with a worker alive, over all attempts."""
        return self.worked_before_seconds + time.time() - self.began

    def progress(
        self, tally: Tally, data_sha256: str, *, stage: int = 0, first_step: int = 0
    ) -> checkpointing.Progress:
        """What goes into a checkpoint beside the Trainer's state."""
        return checkpointing.Progress(
            step=tally.step,
            spec_hash=self.spec_hash,
            data_sha256=data_sha256,
            threads=self.threads,
            versions=self.versions,
            device=self.device.torch_device.partition(":")[0],
            complete=tally.complete,
            early_stopped=tally.early_stopped,
            best_eval_loss=tally.best_eval_loss,
            evaluations_without_gain=tally.evaluations_without_gain,
            training_seconds=tally.training_seconds,
            tokens=tally.tokens,
            trained_tokens=tally.trained_tokens,
            stage=stage,
            stage_first_step=first_step,
            pieces=tally.pieces,
            writing_pieces=tally.writing_pieces,
            position=tally.position,
            stage_position=tally.stage_position,
            stage_worked_from=tally.stage_worked_from,
            recent_losses=tuple(tally.recent_losses),
            eval_losses=tuple(tally.eval_losses),
            ended=tally.ended,
        )

    def obey_before_training(self) -> None:
        """Pause and stop are honoured between the phases before the first step as well."""
        command = None if self.follows else control.take(self.run_dir)
        if command in ("pause", "stop"):
            self.journal.write(ev.Control(t=time.time(), command=command))
            raise PauseRequested("", command)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The texts of an End event for everything but failure."""

    outcome: str
    step: int
    what: str = ""
    next_step: str = ""


def find_model(attempt: Attempt) -> ModelRef:
    """The model of the spec, downloaded where it is not here yet."""
    attempt.phase("loading model")
    source = attempt.spec.model
    ref = resolve_model(source.source, revision=source.revision)
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1 or done >= total:
            last = time.monotonic()
            attempt.phase("loading model", f"downloading {ref.repo_id}", done, total)

    return download_weights(ref, progress)
