"""A job's schedule for screens: lines over its tokens, and cells and sentences of its stages with what each takes.

Owns scales and wording. Must not lay anything out nor estimate (`engine.schedule`, `engine.advise.spec_stages`), nor
know Textual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.units import format_bytes, format_count, format_hours, format_range, format_usd
from scaler_tui.spec_growth_text import LEARNS

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate, StageEstimate
    from engine.schedule.layout import JobSchedule, StageLayout

POINTS = 400
"""Of a curve: more than a terminal has columns of dots."""
PLACES = 4000
"""Of the axis, whatever the job's length: stages begin where they do."""
CURVES = ("rate", "length", "mix", "size")
TITLES = {"rate": "Learning rate", "length": "Length", "mix": "Mix", "size": "Parameters"}
HEAD = ("#", "stage", "tokens", "steps", "length", "batch", "rate", "model", "memory", "time", "cost", "fits?")


@dataclass(frozen=True, slots=True)
class Curve:
    """One line over the tokens."""

    letter: str
    name: str
    values: tuple[tuple[float, float], ...]
    """(tokens, value)."""


def curves(schedule: JobSchedule, which: str) -> tuple[Curve, ...]:
    """The lines of one of CURVES."""
    points = schedule.points(POINTS)
    if which == "rate":
        found = [Curve("a", "learning rate", tuple((p.tokens, p.rate) for p in points))]
        if any(stage.has_new for stage in schedule.trained):
            found.append(Curve("n", "of what grew", tuple((p.tokens, p.new_rate) for p in points)))
        return tuple(found)
    if which == "length":
        return (Curve("a", "tokens in a sequence", tuple((p.tokens, float(p.length)) for p in points)),)
    if which == "size":
        return (Curve("a", "millions of parameters", tuple((p.tokens, p.parameters / 1e6) for p in points)),)
    names = list(dict.fromkeys(name for point in points for name in point.shares))
    return tuple(
        Curve(chr(ord("a") + index), name, tuple((p.tokens, 100 * p.shares.get(name, 0.0)) for p in points))
        for index, name in enumerate(names[:26])
    )


def placed(tokens: float, total: float) -> int:
    """A number of tokens as a place on an axis of PLACES."""
    return round(PLACES * tokens / total) if total else 0


def words_of_place(place: int, total: float) -> str:
    """The tokens at a place."""
    return format_count(total * place / PLACES)


def legend(found: Sequence[Curve], which: str) -> str:
    """Which letter is which."""
    unit = "% of the tokens: " if which == "mix" else ""
    return unit + ", ".join(f"{curve.letter} {curve.name}" for curve in found)


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────
def table(job: JobEstimate) -> list[tuple[str, ...]]:
    """A row per stage, as HEAD names its cells; with several, the sums under them."""
    rows = [_row(stage) for stage in job.stages]
    if len(rows) > 1:
        whole, schedule = job.whole, job.schedule
        sums = (format_bytes(whole.memory.likely), format_hours(whole.hours.likely), format_usd(whole.cost_usd.likely))
        cells = ("", "all", format_count(schedule.tokens), f"{schedule.steps:,}", "", "", "", "")
        rows.append((*cells, *sums, whole.verdict.value))
    return rows


def _row(stage: StageEstimate) -> tuple[str, ...]:
    layout = stage.layout
    size, costs = (
        format_count(layout.model.parameters),
        (format_hours(stage.hours.likely), format_usd(stage.cost_usd.likely)),
    )
    name = layout.name or "-"
    if not layout.steps:
        return f"{layout.number}", name, "-", "grows", "-", "-", "-", size, "-", *costs, "-"
    ramp = layout.ramp
    batch = f"{ramp.sequences_of(0)}-{ramp.full}" if ramp.over else f"{ramp.full}"
    memory = format_bytes(stage.found.memory.likely) if stage.found is not None else "-"
    verdict = stage.found.verdict.value if stage.found is not None else "-"
    return (
        f"{layout.number}", name, format_count(layout.tokens), f"{layout.steps:,}", f"{layout.length:,}", batch,
        f"{layout.peak:g}", size, memory, *costs, verdict,
    )  # fmt: skip


def stage_words(stage: StageEstimate) -> list[str]:
    """Everything else about a stage, in sentences."""
    layout = stage.layout
    words = []
    if layout.model.operators:
        size = format_count(layout.model.parameters)
        words.append(f"Grown by {', '.join(layout.model.operators)} to {size} parameters.")
    if not layout.steps:
        return [*words, "Nothing is trained in it."]
    words.append(f"Learns {LEARNS.get(layout.task, 'an adapter beside the model')}.")
    if layout.trainable:
        words.append(f"Of the parameters, only {', '.join(layout.trainable)}.")
    if mix := mix_words(layout):
        words.append(f"Mix: {mix}.")
    curve = layout.rate
    new = f"; what grew {layout.new_peak:g}" if layout.has_new else ""
    words.append(f"Rate: {layout.peak:g}, {curve.schedule.value}, {curve.warmup_steps:,} steps of warm-up{new}.")
    if layout.stops:
        words.append(f"Ends earlier at: {', '.join(layout.stops)}.")
    if stage.found is not None:
        found = stage.found
        memory = format_range(format_bytes(found.memory.low), format_bytes(found.memory.high))
        hours = format_range(format_hours(stage.hours.low), format_hours(stage.hours.high))
        money = format_range(format_usd(stage.cost_usd.low), format_usd(stage.cost_usd.high))
        words.append(
            f"Takes {memory}, {hours}, {money} [{found.memory.origin.value}]: {found.verdict.value}, "
            f"{found.judgement.reason}."
        )
    return words


def mix_words(layout: StageLayout) -> str:
    """ "web 70 % (22M tokens, read 0.4 times), code 30 % (9.8M tokens)"."""
    return ", ".join(
        f"{one.name} {one.share * 100:.0f} % ({format_count(one.tokens)} tokens"
        + (f", read {one.passes:.1f} times)" if one.known and one.passes >= 0.1 else ")")
        for one in layout.mix
    )
