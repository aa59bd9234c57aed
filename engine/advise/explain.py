"""The explain pane: one cell of the matrix as lines of label, value, formula and source.

Owns those lines. Computes no estimate: every figure is already in the row, but for how far its settings could go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.advise.inverse import room_of
from engine.advise.matrix import ApproachRow
from engine.advise.verdict import RULE
from engine.estimate.estimate import Estimate
from engine.units import format_bytes, format_count, format_hours, format_range, format_usd


class Column(StrEnum):
    """Cells that can be explained."""

    PARAMETERS = "parameters"
    CAPACITY = "capacity"
    VERDICT = "verdict"
    VRAM = "vram"
    RAM = "ram"
    DISK = "disk"
    HOURS = "hours"
    COST = "cost"
    PERFORMANCE = "performance"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an explanation."""

    label: str
    value: str
    formula: str = ""
    source: str = ""


def explain(row: ApproachRow, column: str) -> tuple[Line, ...]:
    """How the cell came to be. Raises ValueError on an unknown column."""
    chosen = Column(column)
    figures: dict[Column, tuple[Estimate, Callable[[float], str]]] = {
        Column.VRAM: (row.vram, format_bytes),
        Column.RAM: (row.ram, format_bytes),
        Column.DISK: (row.disk, format_bytes),
        Column.HOURS: (row.hours, format_hours),
        Column.COST: (row.cost_usd, format_usd),
    }
    if chosen in figures:
        return _figure(row, chosen, *figures[chosen])
    if chosen is Column.PARAMETERS:
        return _parameters(row)
    if chosen is Column.VERDICT:
        return _verdict(row)
    if chosen is Column.CAPACITY:
        return (Line("Effective capacity", row.effective_capacity),)
    return (Line("Expected performance", row.performance), Line("When", row.reason))


def _figure(row: ApproachRow, column: Column, estimate: Estimate, form: Callable[[float], str]) -> tuple[Line, ...]:
    if column is Column.VRAM and not estimate.likely:
        return (Line("VRAM", "none", "this machine has no GPU; the need is in RAM"),)
    total = Line(
        "Total",
        form(estimate.likely),
        f"from {format_range(form(estimate.low), form(estimate.high))}",
        estimate.origin.value,
    )
    parts = tuple(Line(part.name, form(part.amount), part.formula, part.source) for part in estimate.breakdown)
    lines = (*parts, total)
    if _is_device_memory(row, column):
        lines = (Line("Limited by", row.limiting), *lines, *_room(row))
    return (*lines, Line("Assumes", row.settings))


def _is_device_memory(row: ApproachRow, column: Column) -> bool:
    """Whether the cell is the memory that trains: VRAM, or RAM on a machine without a GPU."""
    return column is (Column.VRAM if row.vram.likely else Column.RAM)


def _room(row: ApproachRow) -> tuple[Line, ...]:
    """How far sequence, batch and rank could go with everything else as it is."""
    if row.appraisal is None:
        return ()
    return tuple(
        Line(f"Largest {answer.question}", answer.name, answer.detail) for answer in room_of(row.appraisal.plan)
    )


def _parameters(row: ApproachRow) -> tuple[Line, ...]:
    return (
        Line("Base", format_count(row.base_parameters), f"{row.base_parameters:,}"),
        Line("Final", format_count(row.final_parameters), f"{row.final_parameters:,}"),
    )


def _verdict(row: ApproachRow) -> tuple[Line, ...]:
    return (
        Line("Verdict", row.verdict.value, row.verdict_reason),
        Line("Rule", RULE),
        Line("Runs from here", "yes" if row.runnable else "no", row.not_runnable_reason),
    )
