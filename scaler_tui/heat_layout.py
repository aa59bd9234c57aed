"""A heat map of needles fitted into a screen: depths down, lengths across; every cell has a figure, a glyph and a tone.

Owns the layout for a width; widgets style its pieces. Without colour and in ASCII the figures and glyphs still say all
of it. Must not know Textual, nor how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.jobs.heat_grid import GOOD, LEVELS, POOR, HeatCell, HeatGrid, depth_words, level_of, percent, short_length

UNICODE_SHADES = ("·", "░", "▒", "▓", "█")
ASCII_SHADES = (".", "-", "=", "+", "#")
TONES = ("bad", "bad", "warn", "warn", "good")
LABEL_CELLS = 6
"""The depths: "100 %" and a space."""
WIDE_CELL, FIGURE_CELL, GLYPH_CELL = 6, 4, 2
"""Glyph and figure; the figure alone; where there is room for neither, the glyph."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some characters of a line and what they mean."""

    text: str
    tone: str = ""
    level: int | None = None
    """0 to LEVELS - 1 in a cell of the map: how much was read."""


Line = tuple[Piece, ...]


def shade(level: int, *, unicode: bool) -> str:
    """The glyph of a level; the denser, the more was read."""
    return (UNICODE_SHADES if unicode else ASCII_SHADES)[level]


def cell_width(columns: int, width: int) -> int:
    """Cells of a column: as much as is readable in `width`."""
    room = (width - LABEL_CELLS) // max(columns, 1)
    return next((cells for cells in (WIDE_CELL, FIGURE_CELL) if room >= cells), GLYPH_CELL)


def heat_lines(grid: HeatGrid, width: int, *, unicode: bool, most_rows: int = 99) -> list[Line]:
    """Heading, a row per depth, the mean of each length; with `most_rows` the depths that tell most are kept."""
    cells = cell_width(len(grid.lengths), width)
    lines = [_heading(grid, cells)]
    for index in kept_rows(grid, most_rows - 2):
        depth = f"{depth_words(grid.depths[index]):>{LABEL_CELLS - 1}} "
        row = [_cell(cell, cells, unicode=unicode) for cell in grid.rows[index]]
        lines.append((Piece(depth, "quiet"), *row))
    means = [grid.at_length(index) for index in range(len(grid.lengths))]
    if cells > GLYPH_CELL:
        lines.append((Piece(f"{'all':>{LABEL_CELLS - 1}} ", "quiet"), *(_mean(mean, cells) for mean in means)))
    return lines


def kept_rows(grid: HeatGrid, most: int) -> list[int]:
    """Which depths are shown where there is no room for all: evenly spread, the first and the last among them."""
    count = len(grid.depths)
    if most >= count or count < 3:
        return list(range(count))
    most = max(most, 2)
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _heading(grid: HeatGrid, cells: int) -> Line:
    if cells == GLYPH_CELL:
        first, last = short_length(grid.lengths[0]), short_length(grid.lengths[-1])
        room = cells * len(grid.lengths) - len(first) - len(last)
        return (Piece(f"{'':<{LABEL_CELLS}}{first}{' ' * max(room, 1)}{last}", "quiet"),)
    names = "".join(f"{short_length(length):>{cells}}" for length in grid.lengths)
    return (Piece(f"{'depth':>{LABEL_CELLS - 1}} {names}", "quiet"),)


def _cell(cell: HeatCell | None, cells: int, *, unicode: bool) -> Piece:
    if cell is None:
        return Piece(f"{'?':>{cells}}", "quiet")
    glyph = shade(cell.level, unicode=unicode)
    texts = {WIDE_CELL: f" {glyph} {cell.percent:>3}", FIGURE_CELL: f" {cell.percent:>3}", GLYPH_CELL: glyph * 2}
    return Piece(texts[cells], TONES[cell.level], cell.level)


def _mean(share: float | None, cells: int) -> Piece:
    if share is None:
        return Piece(" " * cells)
    return Piece(f"{percent(share):>{cells}}", TONES[level_of(share)])


def legend(*, unicode: bool) -> Line:
    """What the glyphs stand for."""
    words = {(LEVELS - 1,): f"{GOOD * 100:.0f} % and more", (3, 2): f"{POOR * 100:.0f} % and more", (1, 0): "less"}
    parts: list[Piece] = [Piece("right answers: ", "quiet")]
    for levels, word in words.items():
        parts += [Piece(shade(level, unicode=unicode), TONES[level], level) for level in levels]
        parts.append(Piece(f" {word}  ", "quiet"))
    return tuple(parts)


def plain(lines: Sequence[Line]) -> list[str]:
    """The characters alone, for pipes and screen readers."""
    return ["".join(piece.text for piece in line).rstrip() for line in lines]
