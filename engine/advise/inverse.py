"""Questions the other way round: the largest sequence, batch, rank or model that fits, the cheapest card in time.

Owns the searches over the formulas' upper bound. Must not change a plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.advise.appraisal import Appraisal
from engine.advise.catalogue import known_architecture
from engine.advise.fit import Plan, estimate_memory_on, memory_bounds_on
from engine.advise.rented import Offer, offers
from engine.errors import EngineError
from engine.estimate.estimate import Estimate
from engine.estimate.workload import MAX_TOKENS_PER_MICRO_BATCH, Method, Workload
from engine.models.model_profiles import load_model_profiles
from engine.units import format_bytes, format_count

LENGTH_GRAIN = 64
MOST_TOKENS = 1 << 24
MOST_ROWS = 4096
MOST_RANK = 1024
"""What a spec allows."""
LONGEST_HOURS = 10 * 365 * 24.0


class Question(StrEnum):
    """What can be asked for the largest of."""

    SEQUENCE = "sequence"
    BATCH = "batch"
    RANK = "rank"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Largest:
    """The answer: the largest that fits with everything else as it is."""

    question: Question
    value: int
    """Tokens, rows, rank, or parameters; 0 when not even the smallest fits."""
    name: str
    """The value as people say it: "6,144 tokens", "meta-llama/Llama-3.2-3B (3.21B)"."""
    memory: Estimate | None
    """With that value; None when nothing fits."""
    free_bytes: int
    note: str = ""
    """What to know beside it: beyond the model's window, at the limit of a spec."""

    @property
    def detail(self) -> str:
        """ "at most 23.1 GiB of 23.5 GiB free; the model itself reads 4,096"."""
        if self.memory is None:
            return self.note
        need = f"at most {format_bytes(self.memory.high)} of {format_bytes(self.free_bytes)} free"
        return f"{need}; {self.note}" if self.note else need

    @property
    def sentence(self) -> str:
        """ "largest sequence that fits: 6,144 tokens (at most 23.1 GiB of 23.5 GiB free)"."""
        if self.memory is None:
            return f"no {self.question} fits: {self.note}"
        return f"largest {self.question} that fits: {self.name} ({self.detail})"


def largest(plan: Plan, question: Question) -> Largest:
    """The largest of `question` whose upper bound is free. Raises EngineError where the approach has no such thing."""
    if question is Question.MODEL:
        return _largest_model(plan)
    if question is Question.RANK and plan.work.method is not Method.ADAPTER:
        raise EngineError(
            "inverse.rank",
            f"{plan.approach.title} has no adapter, so there is no rank to choose.",
            next_step="Ask for sequence, batch or model, or choose qlora or lora.",
        )
    grain, most, change = _searched(plan, question)
    fits = _fits(plan)
    steps = _largest_step(lambda step: fits(change(step * grain)), most // grain)
    if steps == 0:
        smallest = memory_bounds_on(change(grain), plan.calibration)
        note = (
            f"even {grain:,} needs up to {format_bytes(smallest[2])}, {format_bytes(plan.devices.free_bytes)} is free"
        )
        return Largest(question, 0, "none", None, plan.devices.free_bytes, note)
    value = steps * grain
    memory = estimate_memory_on(change(value), plan.calibration)
    rows = " row" if value == 1 else " rows"
    unit = {Question.SEQUENCE: " tokens", Question.BATCH: rows, Question.RANK: ""}[question]
    note = _note(plan, question, value, most)
    return Largest(question, value, f"{value:,}{unit}", memory, plan.devices.free_bytes, note)


def room_of(plan: Plan) -> tuple[Largest, ...]:
    """Every question that this plan has, answered."""
    asked = [Question.SEQUENCE, Question.BATCH]
    if plan.work.method is Method.ADAPTER:
        asked.append(Question.RANK)
    return tuple(largest(plan, question) for question in asked)


def cheapest_card(found: Appraisal, limit_hours: float) -> Offer | None:
    """The machine of the catalogue that likely finishes the job within `limit_hours` for the least money."""
    return next((offer for offer in offers(found) if offer.hours.likely <= limit_hours), None)


def fastest_card(found: Appraisal) -> Offer | None:
    """The machine of the catalogue that finishes first, whatever it costs; None when the job fits none."""
    return min(offers(found), key=lambda offer: offer.hours.likely, default=None)


def parse_deadline(text: str) -> float:
    """ "12h", "90 min", "3d", "2 weeks" -> hours. Raises EngineError `inverse.deadline`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    factors = {"m": 1 / 60, "min": 1 / 60, "": 1.0, "h": 1.0, "hour": 1.0, "hours": 1.0}
    factors |= {"d": 24.0, "day": 24.0, "days": 24.0, "w": 168.0, "week": 168.0, "weeks": 168.0}
    hours = float(match[1]) * factors[match[2]] if match and match[2] in factors else math.nan
    if not 0 < hours <= LONGEST_HOURS:
        raise EngineError(
            "inverse.deadline",
            f"'{text}' is no time to finish in.",
            next_step="Write a number with h, d or w, up to ten years: 12h, 3d, 2w.",
        )
    return hours


def _fits(plan: Plan) -> Callable[[Workload], bool]:
    free = plan.devices.free_bytes
    return lambda work: memory_bounds_on(work, plan.calibration)[2] <= free


def _searched(plan: Plan, question: Question) -> tuple[int, int, Callable[[int], Workload]]:
    """(grain, most, how to set it)."""
    work = plan.work
    if question is Question.SEQUENCE:
        most = min(MOST_TOKENS, MAX_TOKENS_PER_MICRO_BATCH // work.batch)
        return LENGTH_GRAIN, most, lambda value: replace(work, sequence=value)
    if question is Question.BATCH:
        most = min(MOST_ROWS, MAX_TOKENS_PER_MICRO_BATCH // work.sequence)
        effective = work.batch * work.accumulation
        return 1, most, lambda value: replace(work, batch=value, accumulation=max(effective // value, 1))
    return 1, MOST_RANK, lambda value: replace(work, rank=value)


def _largest_step(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1..most that fits, 0 when none does; whatever fits, everything below it fits too."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _note(plan: Plan, question: Question, value: int, most: int) -> str:
    window = plan.work.architecture.context_length
    if question is Question.SEQUENCE and window and value > window:
        return f"the model itself reads {window:,}"
    if value + (LENGTH_GRAIN if question is Question.SEQUENCE else 1) > most:
        return "the most this program plans for"
    return ""


def _largest_model(plan: Plan) -> Largest:
    """The largest known model with which the same job fits; rows are cut to its window."""
    if plan.approach.model not in ("same", "larger"):
        raise EngineError(
            "inverse.model",
            f"{plan.approach.title} grows one given model; other models are other jobs.",
            next_step="Ask for sequence or batch, or choose qlora or lora.",
        )
    fits = _fits(plan)
    for profile in sorted(load_model_profiles(), key=lambda profile: -profile.parameters):
        architecture = known_architecture(profile.id)
        length = min(plan.work.sequence, architecture.context_length or plan.work.sequence)
        work = replace(plan.work, architecture=architecture, sequence=length)
        if fits(work):
            memory = estimate_memory_on(work, plan.calibration)
            name = f"{profile.hub_id} ({format_count(profile.parameters)})"
            return Largest(Question.MODEL, profile.parameters, name, memory, plan.devices.free_bytes)
    note = f"no model of the catalogue fits into {format_bytes(plan.devices.free_bytes)}"
    return Largest(Question.MODEL, 0, "none", None, plan.devices.free_bytes, note)
