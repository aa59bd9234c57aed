"""How much there is to learn from, how long that takes and what it costs, for one planned approach.

Owns token counts and the joining of settings, speed and price. Must not know verdicts or words of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.advise.answers import TEXT, Answers
from engine.advise.context import answers_at_length, measuring_tokens
from engine.estimate.calibration import Calibration
from engine.estimate.cards import DeviceSpeed, cpu_speed, gpu_speed
from engine.estimate.cost import Tariff, estimate_cost
from engine.estimate.data_shape import NO_PADDING, PACKED_FILL
from engine.estimate.estimate import Estimate, Range
from engine.estimate.speed import NO_ROWS, Measuring, Rows, RunPlan, estimate_hours
from engine.estimate.storage import DiskPlan, estimate_disk, written_bytes
from engine.estimate.workload import Method, Workload
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.resources import demo_rows_file

if TYPE_CHECKING:
    from engine.advise.fit import Plan

BYTES_PER_TOKEN = 3.6
"""Of a JSONL file. The demo set has 3.5; English prose in large vocabularies has about 4.4 of text alone."""
NEEDLE_PROMPTS = 4
"""Per length and depth, unless a spec says otherwise."""
_FILE_GUESS = (0.6, 1.0, 1.5)
_TYPED_GUESS = (0.8, 1.0, 1.25)


def data_tokens(answers: Answers) -> tuple[float, float, float]:
    """Tokens of one pass, low, likely, high: counted, else guessed from the file's size, else as answered."""
    if answers.measured_tokens is not None:
        return (float(answers.measured_tokens),) * 3
    size = _file_bytes(answers.text("data"))
    if size:
        return tokens_of_file(size)
    asked = answers.number("data_tokens")
    return asked * _TYPED_GUESS[0], asked, asked * _TYPED_GUESS[2]


def tokens_of_file(size_bytes: float) -> tuple[float, float, float]:
    """Tokens of a data file of that size, low, likely, high: a guess."""
    low, likely, high = (size_bytes / BYTES_PER_TOKEN * factor for factor in _FILE_GUESS)
    return low, likely, high


def run_tokens(plan: Plan, answers: Answers, *, own_data: bool = False) -> tuple[float, float, float]:
    """All tokens of the run: data x epochs, or what the approach needs where that is more than the data.

    `own_data`: only the data counts, which is what a run from here is trained on.
    """
    answers = answers_at_length(answers) if plan.context is not None else answers
    low, likely, high = (tokens * plan.recipe.number("epochs") for tokens in data_tokens(answers))
    if plan.approach.tokens and not own_data:
        need = plan.approach.tokens
        low, likely, high = max(low, need[0]), max(likely, need[1]), max(high, need[2])
    return low, likely, high


def device_of(plan: Plan, machine: Machine) -> DeviceSpeed:
    """The device the plan trains on."""
    return cpu_speed(machine) if plan.devices.on_cpu else gpu_speed(plan.devices.gpus[0])


def is_on_disk(architecture: Architecture) -> bool:
    """Whether nothing needs to be downloaded: the demo, or a local folder."""
    source = architecture.source
    return source == "demo" or (source.startswith(("/", ".", "~")) and Path(source).expanduser().is_dir())


@dataclass(frozen=True, slots=True)
class Load:
    """What a job has to get through and what its hours cost, whichever settings it then runs with."""

    tokens: tuple[float, float, float]
    """All tokens of the run: low, likely, high."""
    disk: DiskPlan
    tariff: Tariff
    steps: int = 0
    """Above 0, so many optimizer steps are the run, however many tokens they hold."""
    download_bytes: float = 0.0
    epochs: float = 1.0
    fill: Range = NO_PADDING
    width: int = 0
    """As in `DataShape`; 0 where rows were not counted."""
    measuring: Measuring | None = None
    checkpoint_every: int = 0
    rows: Rows = NO_ROWS
    length_tokens: float = 0.0
    """Of texts that are measured at every length, before and after training."""


def load_of(plan: Plan, answers: Answers, machine: Machine, *, own_data: bool = False) -> Load:
    """The load of a planned approach under the answers; `own_data` as in `run_tokens`."""
    base = plan.final if plan.approach.model == "larger" else plan.base
    read = {base} if plan.work.teacher is None else {base, plan.work.teacher}
    rented = answers.rented or machine.price_usd_per_hour is not None
    cards = max(plan.work.cards, len(machine.gpus) if rented else 1)
    tokens, epochs = run_tokens(plan, answers, own_data=own_data), plan.recipe.number("epochs")
    choice = plan.context
    if choice is not None and not choice.train:
        tokens = (0.0, 0.0, 0.0)
    return Load(
        tokens=tokens,
        epochs=epochs,
        fill=PACKED_FILL if _joined(plan) else NO_PADDING,
        length_tokens=measuring_tokens(choice, plan.base.context_length, NEEDLE_PROMPTS) if choice else 0.0,
        disk=DiskPlan(
            base,
            is_on_disk(base),
            writes_grown_model=plan.approach.model in ("deeper", "wider"),
            merged=answers.text("output") == "merged" or (choice is not None and choice.train),
            gguf=bool(answers.destinations),
            gguf_type="Q8_0",
            teacher_on_disk=plan.work.teacher is None or is_on_disk(plan.work.teacher),
            epoch_tokens=tokens[1] / epochs,
        ),
        tariff=Tariff(rented, machine.price_usd_per_hour, answers.number("usd_per_kwh") or None, cards),
        download_bytes=sum(float(one.weight_bytes or 2 * one.parameters) for one in read if not is_on_disk(one)),
    )


def _joined(plan: Plan) -> bool:
    """Whether rows share sequences."""
    if plan.context is not None:
        return plan.work.masked
    return plan.recipe.flag("packing") and plan.work.method is Method.ADAPTER


def hours_with(load: Load, work: Workload, device: DeviceSpeed, calibration: Calibration | None = None) -> Estimate:
    """Hours of the run with these settings, everything around the training included."""
    low, likely, high = load.tokens
    if load.steps:
        width = min(load.width, work.sequence) or work.sequence
        low = likely = high = work.batch * width * load.fill.likely * work.accumulation * load.steps
    run = RunPlan(
        tokens=likely,
        tokens_low=low,
        tokens_high=high,
        download_bytes=load.download_bytes,
        cards=work.cards,
        fill=load.fill,
        width=load.width,
        epochs=load.epochs,
        measuring=load.measuring,
        checkpoint_every=load.checkpoint_every,
        rows=load.rows,
        length_tokens=load.length_tokens,
        write_bytes=written_bytes(work, load.disk),
    )
    return estimate_hours(work, device, run, calibration=calibration)


def cost_with(load: Load, hours: Estimate, device: DeviceSpeed) -> Estimate:
    """Money of those hours: the machine's price, else rent of the card, else electricity."""
    return estimate_cost(hours, device, load.tariff)


def disk_with(load: Load, work: Workload) -> Estimate:
    """Disk for download, checkpoints and results."""
    return estimate_disk(work, load.disk)


def _file_bytes(source: str) -> int:
    if source in ("", TEXT):
        return 0
    path = demo_rows_file(source, "train") or Path(source).expanduser()
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0
