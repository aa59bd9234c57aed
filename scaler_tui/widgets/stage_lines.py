"""The stages of a schedule as a table, and the words of the pointed one.

Owns alignment; wording is in `scaler_tui.schedule_curves`. Must not lay anything out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from engine.errors import EngineError
from scaler_tui import schedule_curves
from scaler_tui.glyphs import Glyphs
from scaler_tui.widgets.evaluation_words import wrapped
from scaler_tui.widgets.status_line import clip, toned

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate

QUIET = "$foreground 75%"
MOST_STAGES = 8
"""Rows of the table; the pointer scrolls through more."""
_RIGHT = frozenset(range(2, 11))
_FIRST_TO_GO = (5, 6, 3, 4)
"""Columns that leave where there is no room."""


def curve_tabs(current: str) -> Content:
    """Which curve is shown, and the digits of the others."""
    parts: list[Content] = []
    for number, name in enumerate(schedule_curves.CURVES, 1):
        text = f" {number} {schedule_curves.TITLES[name]} "
        parts.append(Content.styled(text, "reverse bold") if name == current else Content(text))
    return Content(" ").join(parts)


def stage_table(job: JobEstimate, pointer: int, width: int, signs: Glyphs) -> Content:
    """A row per stage; columns that do not fit leave whole."""
    rows = [schedule_curves.HEAD, *schedule_curves.table(job)]
    shown = list(range(len(schedule_curves.HEAD)))
    for column in _FIRST_TO_GO:
        if _width(rows, shown) + 2 <= width:
            break
        shown.remove(column)
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    spare = max(width - 2 - _width(rows, shown), 0)
    widths[1] = max(widths[1] - max(_width(rows, shown) + 2 - width, 0), 4) if not spare else widths[1]
    first = min(max(pointer - MOST_STAGES // 2, 0), max(len(rows) - 1 - MOST_STAGES, 0))
    lines = [Content.styled(f"  {_line(rows[0], widths)}", QUIET)]
    for place in range(first, min(first + MOST_STAGES, len(rows) - 1)):
        mark = signs.pointer if place == pointer else " "
        lines.append(Content.styled(f"{mark} {_line(rows[place + 1], widths)}", "bold" if place == pointer else ""))
    return Content("\n").join(lines)


def _width(rows: list[tuple[str, ...]], columns: list[int]) -> int:
    return sum(max(len(row[column]) for row in rows) + 2 for column in columns) - 2


def _line(row: tuple[str, ...], widths: dict[int, int]) -> str:
    cells = []
    for column, width in widths.items():
        cell = clip(row[column], width) if column == 1 else row[column]
        cells.append(cell.rjust(width) if column in _RIGHT else cell.ljust(width))
    return "  ".join(cells).rstrip()


def stage_words(job: JobEstimate, pointer: int, width: int, signs: Glyphs) -> list[Content]:
    """The pointed stage in sentences, then what is seldom meant."""
    stage = job.stages[min(pointer, len(job.stages) - 1)]
    lines = [Content(text) for words in schedule_curves.stage_words(stage) for text in wrapped(words, width)]
    for warning in job.warnings:
        lines += [toned(text, "warn") for text in wrapped(f"{signs.warn} {warning}", width)]
    return lines


def refusal(error: EngineError, signs: Glyphs, width: int) -> Content:
    """What, cause, next step."""
    lines = [toned(text, "bad") for text in wrapped(f"{signs.no} {error.what}", width)]
    lines += [Content(text) for part in (error.cause, error.next_step) if part for text in wrapped(part, width)]
    return Content("\n").join(lines)
