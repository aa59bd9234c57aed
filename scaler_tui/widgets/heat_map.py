"""The needle heat map as a widget: figures and glyphs from `heat_layout`, colour on top.

Owns the styles of its cells. Must not know what was measured; without colour nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual.content import Content

from engine.jobs.heat_grid import HeatGrid
from scaler_tui.heat_layout import ASCII_SHADES, UNICODE_SHADES, Line, Piece, heat_lines, legend
from scaler_tui.widgets.status_line import TONES, FixedText

LEVEL_STYLES = ("$error 45%", "$error 20%", "$warning 20%", "$success 15%", "$success 35%")
"""Background by how much was read; names of the theme, so every palette has its own."""
GLYPHS = frozenset((*UNICODE_SHADES, *ASCII_SHADES))


def styled(piece: Piece) -> Content:
    """A piece in its tone; cells of a map on the colour of their level, only their glyph in the tone."""
    if piece.level is None:
        return Content.styled(piece.text, TONES[piece.tone]) if piece.tone else Content(piece.text)
    content = Content.styled(piece.text, f"$foreground on {LEVEL_STYLES[piece.level]}")
    for at, character in enumerate(piece.text):
        if character in GLYPHS and piece.tone:
            content = content.stylize(f"{TONES[piece.tone]} on {LEVEL_STYLES[piece.level]}", at, at + 1)
    return content


def lines_content(lines: Iterable[Line]) -> Content:
    """Lines of pieces as one text."""
    return Content("\n").join(Content.assemble(*(styled(piece) for piece in line)) for line in lines)


def pair_lines(left: Sequence[Line], right: Sequence[Line], cells: int) -> list[Line]:
    """Two blocks side by side, the left one `cells` wide."""
    out: list[Line] = []
    for index in range(max(len(left), len(right))):
        first = left[index] if index < len(left) else ()
        second = right[index] if index < len(right) else ()
        gap = cells - sum(len(piece.text) for piece in first)
        out.append((*first, Piece(" " * max(gap, 0)), *second))
    return out


class HeatMap(FixedText):
    """One grid, in as many rows as it is given."""

    def show_grid(self, grid: HeatGrid | None, *, unicode: bool, rows: int = 99, with_legend: bool = True) -> None:
        """Draw for the present width; nothing is sent when it stays the same."""
        width = self.content_size.width or 78
        if grid is None:
            self.show(Content(""))
            return
        lines = heat_lines(grid, width, unicode=unicode, most_rows=max(rows - with_legend, 3))
        if with_legend:
            lines.append(legend(unicode=unicode))
        self.show(lines_content(lines))
