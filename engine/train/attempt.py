"""One worker's try at a run: what it is given, the phases every kind of job has, and how it ended in words.

Owns these values and the first two phases (model, data). Must not know what is trained.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from datetime import datetime
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

if TYPE_CHECKING:
    from engine.data.load import PreparedData
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
            self.company.life.doing(f"{name}: {detail}" if detail else name)
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


def prepare_data(attempt: Attempt, ref: ModelRef) -> PreparedData:
    """Rows ready to train on; what the report warns of goes into the journal."""
    from engine.data.load import prepare

    attempt.phase("preparing data")
    assert ref.path is not None
    data = prepare(attempt.spec.data, ref.path, now=datetime.fromtimestamp(attempt.created))
    for warning in data.report.warnings:
        attempt.warn(warning)
    attempt.obey_before_training()
    return data
