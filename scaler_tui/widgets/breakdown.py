"""A cell of the matrix taken apart: a stacked bar, the limiting term in words, every part's formula and source.

Owns the drawing. Must not compute: parts and words are the engine's.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from textual.content import Content

from engine.advise.explain import Line
from engine.estimate.estimate import Estimate
from scaler_tui.widgets.fit_bar import bar_content, segments

QUIET = "$foreground 75%"
LABEL_CELLS = 20
VALUE_CELLS = 12
MINIMUM_ABOUT_CELLS = 24
"""With less room beside the figure, the formula stands below it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One explained cell."""

    heading: str
    hint: str
    """Which keys lead to other cells."""
    lines: tuple[Line, ...]
    """What the engine says of it."""
    estimate: Estimate | None
    """The figure with its parts; None for a cell of words."""
    free_bytes: float = math.inf
    """Where the bar's mark stands; infinite where nothing limits."""


def breakdown_content(cell: Cell, width: int, *, unicode: bool) -> Content:
    """The whole pane, at most `width` cells wide."""
    room = width - len(cell.heading) - len(cell.hint)
    hint = f"{' ' * room}{cell.hint}" if room > 2 else ""
    parts: list[Content | str | tuple[str, str]] = [(cell.heading, "bold"), (f"{hint}\n", QUIET)]
    marks: dict[str, tuple[str, str]] = {}
    if cell.estimate is not None and cell.estimate.breakdown and cell.estimate.likely > 0:
        parts += [bar_content(cell.estimate, cell.free_bytes, width, unicode=unicode), "\n"]
        for segment in segments(cell.estimate, cell.free_bytes, width, unicode=unicode):
            marks |= {name: (segment.shade, segment.tone) for name in segment.name.split(", ")}
    for line in cell.lines:
        parts += _line(line, width, marks.get(line.label))
    return Content.assemble(*parts)


def _line(line: Line, width: int, mark: tuple[str, str] | None) -> Iterator[str | tuple[str, str]]:
    """Mark, label, figure, and beside or below it where the figure is from."""
    about = f"{line.formula}{f'  [{line.source}]' if line.source else ''}".strip()
    value = line.value
    if len(value) > VALUE_CELLS + 3:  # a sentence, not a figure
        yield f"  {line.label}: ", "bold"
        words = f"{value}; {about}" if about else value
        first, *rest = textwrap.wrap(f"{' ' * (len(line.label) + 4)}{words}", width, subsequent_indent="    ")
        yield f"{first.strip()}\n"
        for text in rest:
            yield f"{text}\n"
        return
    yield mark or " "
    start = f" {line.label:<{LABEL_CELLS}} {value:>{VALUE_CELLS}}  "
    if len(start.rstrip()) >= width:
        start = f" {line.label}  {value}"
    indent = len(start) + 1
    if width - indent >= MINIMUM_ABOUT_CELLS:
        wrapped = textwrap.wrap(about, width - indent, break_on_hyphens=False) or [""]
        yield start
        yield f"{wrapped[0]}\n", QUIET
        rest = wrapped[1:]
    else:
        indent = 4
        yield f"{start.rstrip()}\n"
        rest = textwrap.wrap(about, width - indent, break_on_hyphens=False)
    for text in rest:
        yield f"{' ' * indent}{text}\n", QUIET
