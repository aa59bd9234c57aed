"""How much there is to learn from, how long that takes and what it costs, for one planned approach.

Owns token counts and the joining of plan, speed and price. Must not know verdicts or words of the matrix.
"""

from __future__ import annotations

from pathlib import Path

from engine.advise.answers import Answers
from engine.advise.fit import Plan
from engine.estimate.cards import DeviceSpeed, cpu_speed, gpu_speed
from engine.estimate.cost import Tariff, estimate_cost
from engine.estimate.estimate import Estimate
from engine.estimate.speed import RunPlan, estimate_hours
from engine.estimate.storage import DiskPlan, estimate_disk
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.resources import demo_dir

BYTES_PER_TOKEN = 3.6
"""Of a JSONL file. The demo set has 3.5; English prose in large vocabularies has about 4.4 of text alone."""
_FILE_GUESS = (0.6, 1.0, 1.5)
_TYPED_GUESS = (0.8, 1.0, 1.25)


def data_tokens(answers: Answers) -> tuple[float, float, float]:
    """Tokens of one pass, low, likely, high: counted, else guessed from the file's size, else as answered."""
    if answers.measured_tokens is not None:
        return (float(answers.measured_tokens),) * 3
    size = _file_bytes(answers.text("data"))
    if size:
        low, likely, high = (size / BYTES_PER_TOKEN * factor for factor in _FILE_GUESS)
        return low, likely, high
    asked = answers.number("data_tokens")
    return asked * _TYPED_GUESS[0], asked, asked * _TYPED_GUESS[2]


def run_tokens(plan: Plan, answers: Answers) -> tuple[float, float, float]:
    """All tokens of the run: data x epochs, or what the approach needs where that is more than the data."""
    low, likely, high = (tokens * plan.recipe.number("epochs") for tokens in data_tokens(answers))
    if plan.approach.tokens:
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


def hours_of(plan: Plan, answers: Answers, device: DeviceSpeed) -> Estimate:
    """Hours of the run, download included."""
    low, likely, high = run_tokens(plan, answers)
    source = plan.work.teacher or (plan.base if plan.approach.model != "larger" else plan.final)
    download = 0.0 if is_on_disk(source) else float(source.weight_bytes or 2 * source.parameters)
    run = RunPlan(likely, low, high, download, plan.work.shards)
    return estimate_hours(plan.work, device, run)


def cost_of(hours: Estimate, plan: Plan, machine: Machine, answers: Answers, device: DeviceSpeed) -> Estimate:
    """Money of those hours: the machine's price, else rent of the card, else electricity."""
    rented = answers.rented or machine.price_usd_per_hour is not None
    cards = max(plan.work.shards, len(machine.gpus) if rented else 1)
    return estimate_cost(hours, device, Tariff(rented, machine.price_usd_per_hour, None, cards))


def disk_of(plan: Plan, answers: Answers) -> Estimate:
    """Disk for download, checkpoints and results."""
    base = plan.final if plan.approach.model == "larger" else plan.base
    grows = plan.approach.model in ("deeper", "wider")
    merged = answers.text("output") == "merged"
    return estimate_disk(plan.work, DiskPlan(base, is_on_disk(base), grows, merged))


def _file_bytes(source: str) -> int:
    if not source:
        return 0
    path = demo_dir() / "finetune" / "train.jsonl" if source == "demo" else Path(source).expanduser()
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0
