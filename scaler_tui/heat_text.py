"""A heat map of needles for a command's standard output: the screens' layout, with ANSI colours where they are wanted.

Owns those codes. Must not know how the map is laid out (`scaler_tui.heat_layout`): colour only repeats what it says.
"""

from __future__ import annotations

from engine.jobs.heat_grid import HeatGrid
from scaler_tui.heat_layout import Line, heat_lines, plain

_CODES = {"good": "32", "warn": "33", "bad": "31", "quiet": "2", "strong": "1"}


def heat_text(grid: HeatGrid, width: int, *, color: bool = False, unicode: bool = True) -> list[str]:
    """The grid as lines of at most `width` cells."""
    lines = heat_lines(grid, width, unicode=unicode)
    return [painted(line) for line in lines] if color else plain(lines)


def painted(line: Line) -> str:
    """The line with an ANSI code around each piece that has a tone."""
    return "".join(
        f"\x1b[{_CODES[piece.tone]}m{piece.text}\x1b[0m" if piece.tone in _CODES else piece.text for piece in line
    )
