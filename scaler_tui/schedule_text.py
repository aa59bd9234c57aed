"""A job's schedule as text: learning rate, batch, length, mix and size of the model over the tokens, then its stages.

Owns the drawing, in any width from 60 on, in blocks or in ASCII. Must not compute a figure: all of them are the
engine's (`engine.schedule`, `engine.advise.spec_stages`). Must not know Textual.

    Learning   3e-04 |   ######################
    rate           0 |##########################____
    Mix              |wwwwwwwwwwwwwwwwwwccccccccc
                     +------------------------------
                      0        1.0M        2.0M
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.units import format_bytes, format_count, format_hours, format_range, format_usd

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate, StageEstimate
    from engine.estimate.estimate import Estimate
    from engine.schedule.amounts import SourceAmount
    from engine.schedule.layout import JobSchedule, SchedulePoint, StageLayout

WIDTH = 80
LEFT_CELLS = 20
"""Of the names and numbers left of the axis."""
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_RATE_ROWS, _MIX_ROWS, _STEP_ROWS = 5, 4, 2


@dataclass(frozen=True, slots=True)
class Look:
    """How it is drawn."""

    width: int = WIDTH
    ascii: bool = False

    @property
    def plot_cells(self) -> int:
        return self.width - LEFT_CELLS - 1


def job_lines(job: JobEstimate, look: Look | None = None) -> Iterator[str]:
    """Everything: curves, stages, text, sums."""
    look = look or Look()
    yield from picture_lines(job.schedule, look)
    yield ""
    yield from stage_lines(job, look)
    if job.amounts:
        yield from ("", "Text")
        yield from source_lines(job.amounts, job.schedule, look)
    yield ""
    yield from total_lines(job, look)


def picture_lines(schedule: JobSchedule, look: Look | None = None) -> Iterator[str]:
    """The curves over tokens, one under the other on one axis; nothing for a job that trains nothing."""
    look = look or Look()
    if not schedule.trained:
        return
    columns = _columns(schedule, look.plot_cells)
    yield from _area("Learning rate", [point.rate for point in columns], _RATE_ROWS, _rate, look)
    grown = [point.new_rate if schedule.stages[point.stage - 1].has_new else 0.0 for point in columns]
    if any(grown):
        yield from _area(" of what grew", grown, _RATE_ROWS - 2, _rate, look)
    if len({point.sequences for point in columns}) > 1:
        yield from _area("Sequences a step", [float(p.sequences) for p in columns], _STEP_ROWS, _count, look)
    if len({point.length for point in columns}) > 1:
        yield from _area("Length", [float(point.length) for point in columns], _STEP_ROWS, _count, look)
    if any(point.shares for point in columns):
        yield from _mix(schedule, columns, look)
    if len({point.parameters for point in columns}) > 1:
        yield from _area("Parameters", [float(point.parameters) for point in columns], _STEP_ROWS, _count, look)
    yield from _axis(schedule, look)


def stage_lines(job: JobEstimate, look: Look | None = None) -> Iterator[str]:
    """A table with what each stage does and takes, and the sums."""
    look = look or Look()
    head = ("#", "stage", "steps", "tokens", "length", "batch", "rate", "params", "memory", "time", "cost")
    row = _ROW if look.width >= WIDTH else _NARROW
    yield row.format(*head).rstrip()
    for stage in job.stages:
        yield row.format(*_cells(stage)).rstrip()
        yield from _wrapped(_details(stage), look, "     ")
        yield from _wrapped(_ranges(stage), look, "     ")
    if len(job.stages) > 1:
        whole = job.whole
        cells = ("", "all", f"{job.schedule.steps:,}", format_count(job.schedule.tokens), "", "", "", "")
        takes = (format_bytes(whole.memory.likely), format_hours(whole.hours.likely))
        sums = (*map(_short, takes), format_usd(whole.cost_usd.likely))
        yield row.format(*cells, *sums).rstrip()


def total_lines(job: JobEstimate, look: Look | None = None) -> Iterator[str]:
    """Memory, time, money and disk of the whole job as ranges with their origin; the verdict; what is worth a word."""
    look, whole = look or Look(), job.whole
    yield from _labelled("Memory", _figure(whole.memory, format_bytes), look)
    yield from _labelled("Time", _figure(whole.hours, format_hours), look)
    yield from _labelled("Cost", _figure(whole.cost_usd, format_usd), look)
    yield from _labelled("Disk", _figure(whole.disk, format_bytes), look)
    yield from _labelled("Fits?", f"{whole.verdict.value}: {whole.judgement.reason}", look)
    for words in job.warnings:
        yield from _labelled("Note", words, look)


def source_lines(amounts: Sequence[SourceAmount], schedule: JobSchedule, look: Look | None = None) -> Iterator[str]:
    """How much text there is, and how often it is read."""
    look = look or Look()
    passes: dict[str, float] = {}
    for stage in schedule.trained:
        for source in stage.mix:
            passes[source.name] = passes.get(source.name, 0.0) + source.passes
    letters = letters_of(schedule)
    for one in amounts:
        letter = letters.get(one.name, " ")
        yield from _wrapped(f"{letter} {amount_words(one, passes.get(one.name, 0.0))}", look, "  ")


def amount_words(one: SourceAmount, passes: float = 0.0) -> str:
    """ "web: 3 files, 1.2 GiB, about 310M tokens (217M to 356M) [sample], read 0.6 times"."""
    files = f"{one.files} file{'s' if one.files != 1 else ''}, {format_bytes(one.size_bytes)}"
    words = [f"{one.name}: {files if one.files else 'on the hub'}"]
    if one.unreadable:
        words.append(f", nothing readable ({one.unreadable})")
    elif not one.likely:
        words.append(", size unknown until it is read")
    elif one.low == one.high:
        words.append(f", {format_count(one.likely)} tokens [{one.origin.value}]")
    else:
        span = format_range(format_count(one.low), format_count(one.high))
        words.append(f", about {format_count(one.likely)} tokens ({span}) [{one.origin.value}]")
    if passes:
        words.append(f", read {passes:.2g} times")
    return "".join(words)


def letters_of(schedule: JobSchedule) -> Mapping[str, str]:
    """A letter for every source of the mix: its first that no other has."""
    found: dict[str, str] = {}
    names = dict.fromkeys(source.name for stage in schedule.trained for source in stage.mix)
    for name in names:
        free = (letter for letter in f"{name}abcdefghijklmnopqrstuvwxyz0123456789" if letter.isalnum())
        found[name] = next((letter for letter in free if letter not in found.values()), "?")
    return found


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _columns(schedule: JobSchedule, cells: int) -> list[SchedulePoint]:
    """The point that each column shows: the newest one at or before its middle."""
    points = schedule.points(cells * 4)
    found, place = [], 0
    for column in range(cells):
        at = schedule.tokens * (column + 0.5) / cells
        while place + 1 < len(points) and points[place + 1].tokens <= at:
            place += 1
        found.append(points[place])
    return found


def _area(name: str, values: Sequence[float], rows: int, words: Callable[[float], str], look: Look) -> Iterator[str]:
    """A filled curve from 0 to its largest value."""
    most = max(values) or 1.0
    for row in range(rows):
        label = words(most) if row == 0 else "0" if row == rows - 1 else ""
        filled = (value / most * rows - (rows - 1 - row) for value in values)
        yield f"{_left(name if row == 0 else '', label)}{_bar(look)}{''.join(_block(f, look) for f in filled)}"


def _block(share: float, look: Look) -> str:
    """A cell filled from below; what is above nothing is seen."""
    if look.ascii:
        return "#" if share >= 0.5 else "_" if share > 0 else " "
    return _EIGHTHS[min(max(round(share * 8), 1 if share > 0 else 0), 8)]


def _mix(schedule: JobSchedule, columns: Sequence[SchedulePoint], look: Look) -> Iterator[str]:
    """Letters stacked in proportion."""
    letters = letters_of(schedule)
    stacks = [_stack(point.shares, letters) for point in columns]
    for row in range(_MIX_ROWS):
        label = "100%" if row == 0 else ""
        yield f"{_left('Mix' if row == 0 else '', label)}{_bar(look)}{''.join(stack[row] for stack in stacks)}"
    legend = ", ".join(f"{letter} {name}" for name, letter in letters.items())
    yield from textwrap.wrap(
        legend, look.width, initial_indent=" " * (LEFT_CELLS + 1), subsequent_indent=" " * (LEFT_CELLS + 1)
    )


def _stack(shares: Mapping[str, float], letters: Mapping[str, str]) -> str:
    """Of one column, from the top: each source as many rows as its share, none of the larger ones left out."""
    text, reached = "", 0.0
    for name, share in shares.items():
        reached += share
        text += letters[name] * (round(reached * _MIX_ROWS) - len(text))
    return text.ljust(_MIX_ROWS, text[-1:] or " ")


def _axis(schedule: JobSchedule, look: Look) -> Iterator[str]:
    """Tokens, and where each stage begins."""
    cells = look.plot_cells
    line, labels = ["-" if look.ascii else "─"] * cells, [" "] * cells
    free, end = 0, format_count(schedule.tokens)
    for quarter in range(5):
        text = format_count(schedule.tokens * quarter / 4) if quarter < 4 else end
        start = min(cells * quarter // 4, cells - len(text))
        if start >= free:
            line[min(cells * quarter // 4, cells - 1)] = "+" if look.ascii else "┴"
            labels[start : start + len(text)] = text
            free = start + len(text) + 1
    corner = "+" if look.ascii else "└"
    yield f"{_left('Tokens', '')}{corner}{''.join(line)}"
    yield f"{' ' * (LEFT_CELLS + 1)}{''.join(labels)}".rstrip()
    if len(schedule.stages) > 1:
        yield f"{_left('Stage', '')} {_stage_marks(schedule, cells)}".rstrip()


def _stage_marks(schedule: JobSchedule, cells: int) -> str:
    marks, free = [" "] * cells, 0
    for stage in schedule.trained:
        start = max(min(int(cells * stage.first_token / schedule.tokens), cells - 1), free)
        until = int(cells * stage.last_token / schedule.tokens)
        text = f"{stage.number} {stage.name}"[: max(until - start - 1, 1)]
        if start + len(text) <= cells:
            marks[start : start + len(text)] = text
            free = start + len(text) + 1
    return "".join(marks)


def _left(name: str, label: str) -> str:
    return f"{name:<{LEFT_CELLS - len(label) - 1}}{label} " if name or label else " " * LEFT_CELLS


def _bar(look: Look) -> str:
    return "|" if look.ascii else "│"


def _rate(value: float) -> str:
    return f"{value:.0e}" if f"{value:.0e}" == f"{value:.1e}".replace(".0e", "e") else f"{value:.1e}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 100_000 else format_count(value)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────
_ROW = "{:>2} {:<8} {:>6} {:>6} {:>6} {:>5} {:>7} {:>6} {:>8} {:>8} {:>6}"
_NARROW = "{:>2} {:<8} {:>6} {:>6}{:.0}{:.0}{:.0}{:.0} {:>8} {:>8} {:>6}"
"""Without length, batch, rate and parameters, which the curves show."""


def _cells(stage: StageEstimate) -> tuple[str, ...]:
    layout = stage.layout
    name = (layout.name or layout.task.value)[:8]
    costs = (_short(format_hours(stage.hours.likely)), format_usd(stage.cost_usd.likely))
    if not layout.steps:
        return str(layout.number), name, "", "", "", "", "", format_count(layout.model.parameters), "", *costs
    lengths = "-".join(f"{length}" for length in dict.fromkeys((layout.lengths[0], layout.lengths[-1])))
    first, full = layout.ramp.sequences_of(0), layout.ramp.full
    memory = stage.found.memory.likely if stage.found is not None else 0.0
    return (
        str(layout.number),
        name,
        f"{layout.steps}",
        format_count(layout.tokens),
        lengths,
        f"{first}-{full}" if first != full else f"{full}",
        _rate(layout.peak),
        format_count(layout.model.parameters),
        _short(format_bytes(memory)),
        *costs,
    )


def _short(text: str) -> str:
    """In a column: "805 MiB" -> "805MiB"."""
    return text.replace(" ", "") if len(text) > 8 else text


def _details(stage: StageEstimate) -> str:
    layout = stage.layout
    words = [layout.task.value]
    if layout.model.operators:
        words.append(f"grows first: {', '.join(layout.model.operators)}")
    if layout.steps:
        words.append(rate_words(layout))
    if layout.mix:
        words.append(", ".join(f"{source.name} {100 * source.share:.0f} %" for source in layout.mix))
    if layout.trainable:
        words.append(f"only {', '.join(layout.trainable)} learn")
    if layout.stops:
        words.append(f"may end at {', '.join(layout.stops)}")
    return "; ".join(words)


def _ranges(stage: StageEstimate) -> str:
    """Low to high of everything that the table has the likely figure of."""
    figures = [("time", stage.hours, format_hours), ("cost", stage.cost_usd, format_usd)]
    if stage.found is not None:
        figures.insert(0, ("memory", stage.found.memory, format_bytes))
    spans = [
        f"{name} {format_range(form(one.low), form(one.high))} [{one.origin.value}]" for name, one, form in figures
    ]
    return f"{', '.join(spans)}, disk {format_bytes(stage.disk.likely)}"


def rate_words(layout: StageLayout) -> str:
    """ "wsd, 15 steps of warm-up; what grew 1e-3 with 100"."""
    curve = layout.rate
    warm = curve.warmup_steps
    words = f"{curve.schedule.value}, {warm} step{'s' if warm != 1 else ''} of warm-up"
    if curve.final_ratio:
        words += f", down to {_rate(layout.peak * curve.final_ratio)}"
    if layout.has_new:
        words += f", what grew {_rate(layout.new_peak)} with {curve.new_warmup_steps}"
    return words


def _figure(estimate: Estimate, words: Callable[[float], str]) -> str:
    span = format_range(words(estimate.low), words(estimate.high))
    return f"likely {words(estimate.likely)} ({span})  [{estimate.origin.value}]"


def _labelled(label: str, words: str, look: Look) -> list[str]:
    return textwrap.wrap(f"{label:<9}{words}", look.width, subsequent_indent=" " * 9, break_on_hyphens=False)


def _wrapped(words: str, look: Look, indent: str) -> list[str]:
    return textwrap.wrap(
        words, look.width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
