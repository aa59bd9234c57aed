"""What a probe is asked, what it answers, and the answers kept per machine.

Owns the messages between the caller and `engine.rehearsal.probe`, and the files under `state_home()/probes`. Must not
know how anything is measured, nor what is concluded from it. A damaged file is set aside and named, never fatal.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.estimate.rehearsal import Rehearsal
from engine.hardware.identity import Identity
from engine.jobs import layout
from engine.jobs.spec import JobSpec
from engine.paths import ensure_writable, state_home

FOLDER = "probes"
DAMAGED = ".damaged"


class ProbeTeacher(msgspec.Struct, frozen=True, kw_only=True):
    """Who teaches in the job that is tried."""

    folder: str
    """Of the model, or of the adapter's base."""
    adapter: str = ""
    held: str
    """A form of `spec_distillation.Held` in memory."""


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One job to be tried on the device it will run on."""

    spec: JobSpec
    rehearsal: Rehearsal
    """The same job with the model's config: what is built when it is tried without its weights."""
    folder: str = ""
    """The local model folder; "" when there is none."""
    teacher: ProbeTeacher | None = None
    """With the folder's own weights only."""
    real_weights: bool = False
    """Load the folder's own weights; else random ones, at depths that can be had in seconds."""
    depths: tuple[int, ...] = ()
    """Layers of the models with random weights; what they show is carried on to the whole depth."""
    layers: int = 0
    """Layers of the whole model."""
    budget_seconds: float = 45.0
    memory_cap_bytes: int = 0
    """Memory to stay within while looking for the largest job; 0 means what is free."""
    bytes_per_token: float = 0.0
    """What the formula adds per token of a micro-batch, where the search for the largest begins."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one shape of the job, carried on to the whole depth."""

    batch: int
    sequence: int
    tokens_per_step: float
    """Without padding."""
    trained_share: float
    process_bytes: float
    """Peak of the process on the device: reserved plus context, or resident memory on a CPU."""
    allocated_bytes: float = 0.0
    """Peak allocated by torch; 0 on a CPU, where nobody counts."""
    reserved_bytes: float = 0.0
    tokens_per_second: float = 0.0
    tokens_per_second_low: float = 0.0
    tokens_per_second_high: float = 0.0
    """A quarter of the steps was slower than low, a quarter faster than high."""
    steps: int = 0
    """Steps that were timed, warm-up left out."""
    padding_free: float = 1.0
    """Share of the computed tokens that are not padding."""
    tokens_per_cpu_second: float = 0.0
    """Per second of processor time of this process: says the same on a busy and on an idle machine; 0 on a card."""


class Largest(msgspec.Struct, frozen=True, kw_only=True):
    """The largest micro-batch of the job's length that fits what is free; a length where not even one row does."""

    kind: str
    """ "batch" or "sequence"."""
    value: int
    tried: int
    """The largest that was really tried and did fit; on a CPU a larger one follows from the measured slope."""
    smallest_that_failed: int = 0
    """0 when none failed."""
    bytes_per_token: float = 0.0
    free_bytes: float = 0.0


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured."""

    device: str
    on_cpu: bool
    context_bytes: float
    """GPU: process bytes less reserved. CPU: Python and libraries in training, everything but the model's own."""
    workspace_bytes: float
    """What cuBLAS holds for products; 0 on a CPU."""
    shapes: tuple[Shape, ...]
    """The job's own first, then half its length."""
    evaluation_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0
    evaluation_bytes: float = 0.0
    """Peak of the process while measuring and answering, before training."""
    training_bytes: float = 0.0
    """Peak of the process in the training steps alone."""
    loading_bytes: float = 0.0
    """Peak of the process while the weights were loaded."""
    largest: Largest | None = None
    depths: tuple[int, ...] = ()
    """Layers of the models that were tried; empty for the whole model."""
    real_data: bool = True
    """Rows of the job's own file; else random tokens of full length."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class ProbeFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal in the words of an EngineError."""

    code: str
    what: str
    cause: str = ""
    next_step: str = ""


class ProbeReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the process writes to its standard output: one of the two."""

    answer: ProbeAnswer | None = None
    error: ProbeFailure | None = None


class FormulaFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the formula, uncorrected, says about a measured shape."""

    allocated_bytes: float
    tokens_per_second: float


class ProbeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An answer with what it is true for."""

    machine: Identity
    t: float
    model: str
    job: str
    """Hash of the spec without its prediction."""
    answer: ProbeAnswer
    formula: tuple[FormulaFigures, ...]
    """One per shape."""
    v: int = 1


def probes_dir() -> Path:
    """Where answers are kept."""
    return state_home() / FOLDER


def store_probe(record: ProbeRecord) -> Path:
    """Keep an answer; a newer one of the same job and machine takes its place. Raises EngineError `home.unwritable`."""
    path = ensure_writable(probes_dir()) / f"{record.machine.digest}-{record.job[:12]}.json"
    layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return path


def load_probes() -> tuple[tuple[ProbeRecord, ...], tuple[str, ...]]:
    """Every readable answer, newest first, and a sentence per file that had to be set aside."""
    records: list[ProbeRecord] = []
    notes: list[str] = []
    for path in _files():
        try:
            records.append(msgspec.json.decode(path.read_bytes(), type=ProbeRecord))
        except (OSError, msgspec.MsgspecError) as error:
            _set_aside(path, error, notes)
    records.sort(key=lambda record: record.t, reverse=True)
    return tuple(records), (*notes, *_aside())


def probes_stamp() -> tuple[tuple[str, int, int], ...]:
    """Changes whenever an answer is added, replaced or removed."""
    stamps = []
    for path in _files():
        try:
            found = path.stat()
        except OSError:
            continue
        stamps.append((path.name, found.st_mtime_ns, found.st_size))
    return tuple(stamps)


def _files() -> Iterable[Path]:
    try:
        return sorted(path for path in probes_dir().iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except OSError:
        return ()


def _set_aside(path: Path, error: Exception, notes: list[str]) -> None:
    try:
        path.replace(path.with_name(path.name + DAMAGED))
    except OSError:  # then it stays, and is named each time
        notes.append(f"The probe {path} cannot be read and is not used: {str(error).splitlines()[0][:200]}")


def _aside() -> tuple[str, ...]:
    try:
        paths = sorted(path for path in probes_dir().iterdir() if path.name.endswith(DAMAGED))
    except OSError:
        return ()
    return tuple(f"The probe {path} is damaged: it was set aside and is not used." for path in paths)
