"""What a run looks like now: the result of folding its events.

Owns the shape screens and `runs --json` read; `engine.jobs.fold` fills it. Must not know files or processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.jobs.events import Checkpoint, GpuMeter, Growth, ProofReady, Sample
from engine.jobs.fold_evaluation import Findings


class RunPhase(StrEnum):
    """State of a run. `lost` is decided by whoever can look at processes (`engine.jobs.liveness`)."""

    QUEUED = "queued"
    STARTING = "starting"
    GROWING = "growing"
    RUNNING = "running"
    EVALUATING = "evaluating"
    SAVING = "saving"
    PAUSED = "paused"
    STALLED = "stalled"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_live(self) -> bool:
        """A process should be working on it."""
        return self in (
            RunPhase.QUEUED,
            RunPhase.STARTING,
            RunPhase.GROWING,
            RunPhase.RUNNING,
            RunPhase.EVALUATING,
            RunPhase.SAVING,
            RunPhase.STALLED,
        )

    @property
    def is_resumable(self) -> bool:
        """Resume makes sense."""
        return self in (RunPhase.PAUSED, RunPhase.STOPPED, RunPhase.FAILED, RunPhase.LOST)


OUTCOMES = {
    "finished": RunPhase.FINISHED,
    "stopped": RunPhase.STOPPED,
    "paused": RunPhase.PAUSED,
    "failed": RunPhase.FAILED,
}
"""How a run ended -> its state."""
PHASES = {
    "training": RunPhase.RUNNING,
    "evaluating": RunPhase.EVALUATING,
    "growing": RunPhase.GROWING,
    "proving": RunPhase.GROWING,
    "choosing method": RunPhase.EVALUATING,
    "searching factors": RunPhase.EVALUATING,
    "measuring lengths": RunPhase.EVALUATING,
    "measuring before": RunPhase.EVALUATING,
    "measuring after": RunPhase.EVALUATING,
    "saving": RunPhase.SAVING,
    "merging": RunPhase.SAVING,
    "mixing": RunPhase.SAVING,
    "exporting": RunPhase.SAVING,
    "writing card": RunPhase.SAVING,
}
"""What the worker says it is doing -> the state of the run; anything else is starting."""


@dataclass(slots=True)
class RunState:
    """Mutable on purpose: the fold updates it in place, one event at a time, and memory stays bounded."""

    state: RunPhase = RunPhase.QUEUED
    phase: str = ""
    phase_detail: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    attempt: int = 0
    resumed_step: int = 0
    device: str = ""
    rows: int = 0
    parameters: int = 0
    trainable_parameters: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_total: int = 0
    tokens_per_second: float | None = None
    """Over the last steps of this attempt."""
    eta_seconds: float | None = None
    started: float | None = None
    """Wall time of the first event."""
    updated: float | None = None
    ended: float | None = None
    working_seconds: float = 0.0
    """Wall time with a worker alive, over all attempts; what a rented machine bills."""
    cpu_percent: float | None = None
    ram_bytes: int | None = None
    ram_total_bytes: int | None = None
    temperature_celsius: float | None = None
    gpus: tuple[GpuMeter, ...] = ()
    peak_bytes: int | None = None
    peak_kind: str = ""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    """The latest answer per prompt and, first, the answers before training."""
    log: list[tuple[float, str, str]] = field(default_factory=list)
    """(wall time, level, message); bounded to the newest 2,000."""
    pending_control: str = ""
    card_path: str = ""
    what: str = ""
    cause: str = ""
    next_step: str = ""
    warning: str = ""
    """Something to know while the run goes on, such as a runner that is gone."""
    trained_tokens_total: int = 0
    worker_updated: float | None = None
    """Wall time of the worker's own last event; the runner's heartbeats do not count."""
    heartbeat: float | None = None
    """Wall time of the runner's last event."""
    runner_pid: int = 0
    runner_process_start: float = 0.0
    worker_pid: int = 0
    worker_process_start: float = 0.0
    boot_id: str = ""
    stage_index: int = 0
    """From 1; 0 in a job without stages."""
    stage_count: int = 0
    stage_name: str = ""
    stage_task: str = ""
    growth: Growth | None = None
    """The newest word of the surgery; stays after it is done."""
    growth_began: float = 0.0
    """Wall time at which the surgery's present phase began: what is left can be told from its speed."""
    proof: ProofReady | None = None
    """The newest proof; a new growth clears it."""
    wait_share: float = 0.0
    """Of the last steps' time: how much of it the device waited for data."""
    findings: Findings = field(default_factory=Findings)
    """What suites, benchmarks and retention said, and which trouble was survived."""
