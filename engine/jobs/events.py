"""The words of the journal: one frozen struct per kind of event, encoded as one JSON line each.

Owns the event schema (additive: readers ignore unknown kinds and unknown fields). Must not know who writes or reads.
`t` is wall-clock seconds since 1970. The worker writes `journal.jsonl`, the runner `runner.jsonl`; a reader merges
them by `t`.
"""

from __future__ import annotations

import msgspec

from engine.jobs.event_parts import DriftReport as DriftReport
from engine.jobs.event_parts import GpuMeter as GpuMeter
from engine.jobs.event_parts import LivenessReport as LivenessReport
from engine.jobs.event_parts import ProofReport as ProofReport
from engine.jobs.event_parts import RetentionReport as RetentionReport
from engine.jobs.export_report import ExportReport as ExportReport


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Fields every line has."""

    t: float
    v: int = 1


# ── written by the worker (journal.jsonl) ─────────────────────────────────────────────────────────────────────────
class Start(Event, tag="start", frozen=True, kw_only=True):
    """A worker begins. Steps after `resumed_step` that an earlier attempt wrote are void from here on."""

    attempt: int
    pid: int
    resumed_step: int = 0
    checkpoint: str = ""
    device: str = ""
    versions: dict[str, str] = {}


class Plan(Event, tag="plan", frozen=True, kw_only=True):
    """Known once data and model are loaded."""

    total_steps: int
    rows: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    parameters: int
    trainable_parameters: int


class Phase(Event, tag="phase", frozen=True, kw_only=True):
    """What the worker is doing; `done` of `total` when it can be counted."""

    name: str
    """ "loading model", "preparing data", "measuring before", "training", "evaluating", "saving", "measuring after",
    "merging", "mixing", "caching logits", "exporting",
    "growing", "proving", "extending", "choosing method", "searching factors", "measuring lengths",
    "writing card"."""
    detail: str = ""
    done: int = 0
    total: int = 0


class Step(Event, tag="step", frozen=True, kw_only=True):
    """One optimizer step is complete."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens processed in this step."""
    trained_tokens: int
    step_seconds: float
    epoch: float = 0.0
    wait_seconds: float = 0.0
    """Of `step_seconds`: how long the device waited for data."""
    domains: dict[str, int] = {}
    """Tokens of this step by source, in jobs that stream."""
    losses: dict[str, float] = {}
    """Parts of the loss, in jobs with a teacher, before their weights, nats per trained token: "labels", "teacher",
    "hidden"."""


class Eval(Event, tag="eval", frozen=True, kw_only=True):
    step: int
    loss: float
    seconds: float = 0.0


class Teacher(Event, tag="teacher", frozen=True, kw_only=True):
    """A teacher is ready, or its logits are."""

    name: str
    held: str
    """ "resident", "nf4", "offloaded", "cached", "self"."""
    parameters: int = 0
    cached_tokens: int = 0
    cached_bytes: int = 0
    seconds: float = 0.0
    """Of making the cache."""


class Rollout(Event, tag="rollout", frozen=True, kw_only=True):
    """The student wrote the answers that a step learns on."""

    step: int
    answers: int
    tokens: int
    """New ones."""
    seconds: float
    prompt: str = ""
    text: str = ""
    """One of them, as it was written."""


class Exported(Event, tag="exported", frozen=True, kw_only=True):
    """The result in the form of another program."""

    report: ExportReport


class SuiteScore(Event, tag="suite", frozen=True, kw_only=True):
    """The model on one text at `step` (0 is before training)."""

    step: int
    suite: str
    nats_per_token: float
    bits_per_byte: float
    """Of UTF-8: comparable between tokenizers."""
    tokens: int
    text_bytes: int
    seconds: float = 0.0


class BenchmarkScore(Event, tag="benchmark", frozen=True, kw_only=True):
    """One metric of one lm-eval task at `step` (0 is before training)."""

    step: int
    task: str
    metric: str
    """As lm-eval names it: "acc", "acc_norm", "exact_match"."""
    value: float
    standard_error: float | None = None
    questions: int = 0
    part: bool = False
    """On a part of the questions, as while training."""
    seconds: float = 0.0
    higher_is_better: bool | None = None
    """As lm-eval says of the metric; None where it does not."""
    main: bool = False
    """It speaks for its task: retention compares it, question by question."""


class Retention(Event, tag="retention", frozen=True, kw_only=True):
    """Every ability at `step` against the parent model."""

    step: int
    reports: tuple[RetentionReport, ...]
    gate: str = ""
    """Empty while every limit is kept; else which was broken and what follows, in words."""


class Recovery(Event, tag="recovery", frozen=True, kw_only=True):
    """The run met trouble and went on by itself."""

    step: int
    """Where it happened."""
    trouble: str
    """ "out of memory", "loss spike", "process lost", "process hung"."""
    what: str
    back_to_step: int
    remedy: str
    """What is different from here on."""


class Ranks(Event, tag="ranks", frozen=True, kw_only=True):
    """The processes of a job on several cards, once they have met."""

    world: int
    strategy: str
    """ "ddp" or "fsdp2"."""
    backend: str
    hosts: tuple[str, ...]
    """Of each rank."""
    devices: tuple[str, ...] = ()


class Sample(Event, tag="sample", frozen=True, kw_only=True):
    """The model's answer to a fixed prompt at `step` (0 is before training)."""

    step: int
    prompt: str
    text: str
    expected: str = ""


class Meter(Event, tag="meter", frozen=True, kw_only=True):
    """At most one a second."""

    cpu_percent: float
    """Of the worker, 100 per core."""
    ram_bytes: int
    """Resident memory of the worker."""
    ram_total_bytes: int
    gpus: tuple[GpuMeter, ...] = ()
    temperature_celsius: float | None = None


class Memory(Event, tag="memory", frozen=True, kw_only=True):
    """Peak so far on the training device, to hold against the prediction."""

    peak_bytes: int
    where: str
    """ "vram" (reserved by the allocator plus context) or "ram" (resident)."""
    allocated_bytes: int = 0
    """Peak of what torch's allocator had given out; 0 on a CPU, as the next two."""
    reserved_bytes: int = 0
    context_bytes: int = 0
    """What the driver holds for the process beyond that; 0 when it cannot be told."""


class Checkpoint(Event, tag="checkpoint", frozen=True, kw_only=True):
    step: int
    path: str
    """Relative to the run directory."""
    size_bytes: int
    seconds: float = 0.0


class Warn(Event, tag="warn", frozen=True, kw_only=True):
    message: str
    next_step: str = ""


class Log(Event, tag="log", frozen=True, kw_only=True):
    message: str
    level: str = "info"


class Control(Event, tag="control", frozen=True, kw_only=True):
    """A request was seen and will be honoured at the next step boundary."""

    command: str


class CardReady(Event, tag="card", frozen=True, kw_only=True):
    """The before/after card is complete; `path` is relative to the run directory."""

    path: str = "card.json"


class Stage(Event, tag="stage", frozen=True, kw_only=True):
    """A stage of a staged job begins or has ended. Steps are counted over all stages."""

    index: int
    """From 1."""
    count: int
    name: str = ""
    task: str = ""
    state: str = "begin"
    """ "begin" or "end"."""
    first_step: int = 0
    """Steps done before this stage."""
    model: str = ""
    """ "end": the folder of the stage's grown model, relative to the run directory, while it is kept."""


class Growth(Event, tag="growth", frozen=True, kw_only=True):
    """How far the surgery is; at most a few times a second."""

    phase: str
    """ "planning", "making layers", "writing", "proving", "renaming", "done"."""
    done_bytes: int = 0
    total_bytes: int = 0
    words: str = ""
    """What is worked on: a file, a layer."""
    parameters_before: int = 0
    parameters_after: int = 0


class ProofReady(Event, tag="proof", frozen=True, kw_only=True):
    """The proof of a grown model is complete; one that failed is followed by a failed End."""

    proof: ProofReport
    model: str = ""
    """The grown model's folder: relative to the run directory, or absolute where the spec names one outside."""
    operators: dict[str, str] = {}
    """Axis -> operator."""
    parameters_before: int = 0
    parameters_after: int = 0
    exact: bool = True
    bytes_written: int = 0
    peak_rss_bytes: int = 0
    seconds: float = 0.0


class End(Event, tag="end", frozen=True, kw_only=True):
    """The worker's last word. `outcome`: finished, stopped, paused, failed."""

    outcome: str
    step: int = 0
    what: str = ""
    cause: str = ""
    next_step: str = ""


# ── written by the runner (runner.jsonl) ──────────────────────────────────────────────────────────────────────────
class RunnerStart(Event, tag="runner_start", frozen=True, kw_only=True):
    pid: int
    process_start: float
    """Start time of the process as `engine.jobs.liveness` reads it; compared, never shown."""
    boot_id: str
    """Which boot of which machine (and which container) the process ids belong to."""
    host: str = ""


class WorkerStart(Event, tag="worker_start", frozen=True, kw_only=True):
    pid: int
    process_start: float
    attempt: int


class Heartbeat(Event, tag="heartbeat", frozen=True, kw_only=True):
    """Every 5 s while the worker lives."""

    worker_cpu_seconds: float = 0.0


class WorkerExit(Event, tag="worker_exit", frozen=True, kw_only=True):
    """The worker is gone. `signal` is 0 for a normal exit."""

    exit_code: int
    signal: int = 0
    what: str = ""
    cause: str = ""
    next_step: str = ""


class RunnerEnd(Event, tag="runner_end", frozen=True, kw_only=True):
    """The runner leaves in good order; `outcome` as in End, or "killed"."""

    outcome: str


AnyEvent = (
    Start
    | Plan
    | Phase
    | Step
    | Eval
    | Teacher
    | Rollout
    | Exported
    | SuiteScore
    | BenchmarkScore
    | Retention
    | Recovery
    | Ranks
    | Sample
    | Meter
    | Memory
    | Checkpoint
    | Warn
    | Log
    | Control
    | CardReady
    | Stage
    | Growth
    | ProofReady
    | End
    | RunnerStart
    | WorkerStart
    | Heartbeat
    | WorkerExit
    | RunnerEnd
)

RUNNER_EVENTS = (RunnerStart, WorkerStart, Heartbeat, WorkerExit, RunnerEnd)
"""Kinds that say nothing about the worker's own progress."""
